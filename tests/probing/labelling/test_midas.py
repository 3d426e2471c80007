"""MiDaS: official names, the network compared with functions on its state dict, transform and output."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DPTConfig, DPTForDepthEstimation

from probing.labelling import midas, midas_names, registry
from probing.labelling.checkpoints import Source
from support import labelling_reference
from support.labelling_reference import Trap, thin_state
from support.midas_reference import LARGE, NARROW, Forward, narrow, shapes, state

CPU = torch.device("cpu")
SOURCE = Source(midas.KEY, "w.pt", midas.ORIGIN)


@pytest.mark.parametrize("size", [(384, 384), (64, 96), (96, 32)])
def test_network_is_that_of_the_official_state_dict(size):
    tensors = state()
    network = midas.from_official(tensors, SOURCE, narrow()).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = midas.predict(network, x)
        expected = Forward({name: value.double() for name, value in tensors.items()}, NARROW)(x)
    assert found.shape == (2, *size)
    assert expected.std() > 0.05
    assert (found - expected).abs().max() < 1e-10


def test_full_size_loads_strictly_from_a_file_in_the_official_form(tmp_path):
    path, tensors = tmp_path / "dpt_large_384.pt", thin_state(shapes(LARGE))
    torch.save(tensors, path)
    labeller = registry.build("depth", "midas", str(path), CPU)
    assert labeller.revision.startswith("midas-dpt-large sha256:")
    assert round(sum(value.numel() for value in tensors.values()) / 1e6) == 344  # as MiDaS states


def test_full_size_has_the_numbers_that_shapes_do_not_show():
    config = midas.large()
    assert (config.num_attention_heads, config.layer_norm_eps) == (LARGE.heads, 1e-6)
    assert tuple(config.backbone_out_indices) == LARGE.hooks
    assert (config.hidden_act, config.readout_type, config.patch_size) == ("gelu", "project", 16)


def test_query_key_and_value_are_the_thirds_of_qkv():
    tensors = state()
    found = midas_names.translate(tensors, SOURCE)
    rows = tensors["pretrained.model.blocks.2.attn.qkv.weight"].split(NARROW.width)
    for part, expected in zip(("query", "key", "value"), rows, strict=True):
        assert torch.equal(found[f"dpt.encoder.layer.2.attention.attention.{part}.weight"], expected)


def test_every_official_name_but_the_classifier_has_its_own_new_name():
    names = [name for name in shapes(LARGE) if not name.startswith("pretrained.model.head.")]
    new = [midas_names.rename(name) for name in names]
    assert None not in new
    assert len(set(new)) == len(names)
    assert midas_names.rename("scratch.refinenet1.resConfUnit2.conv1.bias") == (
        "neck.fusion_stage.layers.3.residual_layer2.convolution1.bias"
    )


@pytest.mark.parametrize("shape", [(512, 512), (128, 128), (480, 640)])
def test_transform_is_cubic_without_antialias(shape):
    levels = np.random.default_rng(0).integers(0, 256, (3, *shape)).astype(np.uint8)
    found = midas.transform(torch.from_numpy(levels)[None])[0].numpy()
    size = {512: (384, 384), 128: (384, 384), 480: (384, 512)}[shape[0]]
    expected = (labelling_reference.cubic(levels / 255, *size) - 0.5) / 0.5
    assert found.dtype == np.float32
    assert found.shape == (3, *size)
    assert np.abs(found - expected).max() < 2e-5
    assert found.max() > 1.05  # overshoots of the cubic kernel are not clipped


def test_512_pixels_are_a_grid_of_24_tokens_and_come_back_by_cubic_interpolation():
    network = midas.from_official(state(), SOURCE, narrow())
    levels = torch.randint(0, 256, (1, 3, 512, 512), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    tokens = []
    watch = network.dpt.encoder.register_forward_pre_hook(lambda _, given: tokens.append(given[0].shape))
    with torch.no_grad():
        found = midas.depth(network, levels)
        watch.remove()
        small = midas.predict(network, midas.transform(levels))
    assert tokens == [(1, 1 + 24 * 24, NARROW.width)]
    assert small.shape == (1, 384, 384)
    expected = labelling_reference.cubic(small.double().numpy(), 512, 512)
    assert expected.std() > 0.05
    assert np.abs(found.numpy() - expected).max() < 1e-4


def test_labels_are_the_same_from_the_official_file_and_a_directory(tmp_path):
    torch.save(state(), tmp_path / "w.pt")
    official = midas.from_official(state(), SOURCE, narrow())
    saved = narrow()
    saved.layer_norm_eps = 1e-12  # as in the published directory
    official.config = saved
    official.save_pretrained(tmp_path / "dir")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    one = midas.load(str(tmp_path / "w.pt"), CPU, narrow())
    two = midas.load(str(tmp_path / "dir"), CPU, narrow())
    labels = one(pictures)
    assert labels.shape == (2, 64, 64)
    assert labels.dtype == np.float32
    assert labels.std() > 0.01
    assert np.array_equal(labels, two(pictures))
    assert one.revision != two.revision


def refusal(weights: str, config: DPTConfig | None = None) -> str:
    with pytest.raises(ValueError, match="labels.depth_weights") as caught:
        midas.load(weights, CPU, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("pretrained.model.patch_embed.backbone.stem.conv.weight", "DPT-Hybrid"),
        ("pretrained.model.blocks.0.attn.relative_position_bias_table", "DPT-BEiT"),
        ("pretrained.model.layers.0.blocks.0.norm1.weight", "DPT-Swin"),
        ("pretrained.layer1.0.weight", "MiDaS v2.1"),
    ],
)
def test_other_models_of_the_family_are_named(tmp_path, name, model):
    torch.save({name: torch.ones(1), "scratch.layer1_rn.weight": torch.ones(1)}, tmp_path / "w.pt")
    assert f"is a checkpoint of {model}" in refusal(str(tmp_path / "w.pt"))


def test_files_that_do_not_fit(tmp_path):
    path = tmp_path / "w.pt"
    for change, fault in (
        ({"pretrained.model.foo.weight": torch.ones(1)}, "1 tensors unknown to DPT-Large"),
        ({"pretrained.model.cls_token": torch.ones(1, 1, 8)}, "1 tensors of another shape (dpt.embeddings.cls_token)"),
    ):
        torch.save(state() | change, path)
        assert fault in refusal(str(path), narrow())
    short = state()
    del short["scratch.layer2_rn.weight"]
    torch.save(short, path)
    assert "1 tensors missing (neck.convs.1.weight)" in refusal(str(path), narrow())
    assert "tensors of another shape" in refusal(str(path))  # a narrow file is not DPT-Large
    assert "no such file" in refusal(str(tmp_path / "none.pt"))
    assert "not set" in refusal("")


@pytest.fixture
def directory(tmp_path):
    midas.from_official(state(), SOURCE, narrow()).save_pretrained(tmp_path)
    return tmp_path


def test_directory_of_another_shape_or_model(directory):
    assert "hidden_size 1024, got 32" in refusal(str(directory))
    config = (directory / "config.json").read_text()
    (directory / "config.json").write_text(config.replace('"model_type": "dpt"', '"model_type": "glpn"'))
    assert "glpn" in refusal(str(directory), narrow())


def test_directory_with_a_gap_or_damage(directory):
    weights = directory / "model.safetensors"
    tensors = load_file(weights)
    del tensors["neck.convs.1.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    assert "1 tensors missing (neck.convs.1.weight)" in refusal(str(directory), narrow())
    tensors["neck.convs.1.weight"] = torch.ones(1, 1, 3, 3)
    save_file(tensors, weights, metadata={"format": "pt"})
    assert "1 tensors of another shape (neck.convs.1.weight)" in refusal(str(directory), narrow())
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "truncated" in refusal(str(directory), narrow())
    weights.unlink()
    assert "not a model directory" in refusal(str(directory), narrow())


def test_directory_with_code_in_a_pickle(directory):
    (directory / "model.safetensors").unlink()
    torch.save({"neck.convs.1.weight": Trap(directory / "ran")}, directory / "pytorch_model.bin")
    assert "not run" in refusal(str(directory), narrow())
    assert not (directory / "ran").exists()


def test_directory_with_a_harmless_pickle(directory):
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(tensors, directory / "pytorch_model.bin")
    labeller = midas.load(str(directory), CPU, narrow())
    assert "sha256:" in labeller.revision
    path = directory / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "truncated" in refusal(str(directory), narrow())


def test_hub_id_without_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError("offline\nin two lines")

    monkeypatch.setattr(DPTConfig, "get_config_dict", refuse)
    assert "hub (OSError)" in refusal(f"someone/some-model@{'0a' * 20}")
    assert "some-model@COMMIT" in refusal("someone/some-model@main")
    assert DPTForDepthEstimation.config_class is DPTConfig
