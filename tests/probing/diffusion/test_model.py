"""Loading pipelines: three families by one rule, strictness, one-line errors, metadata and memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from safetensors.torch import load_file, save_file

from probing.diffusion import devices, hooks, metadata
from probing.diffusion.config import ModelConfig
from probing.diffusion.families.base import LatentDiffusion
from probing.diffusion.model import load
from probing.diffusion.sampling import generators, initial_noise, sample
from probing.libraries import loading_errors
from support import tiny_families
from sweeps.cli.main import main

PROMPTS = ["a large red sphere on a green floor under a sky", "a small blue box on a white floor under a sky"]
SEEDS = [3, 99]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    made = {
        "2.x": tiny_families.second(), "2.x epsilon": tiny_families.second("epsilon"),
        "XL": tiny_families.extra_large(), "XL empty": tiny_families.extra_large(zeros=False),
    }  # fmt: skip
    for name, pipeline in made.items():
        pipeline.save_pretrained(folder / name)
    return {name: folder / name for name in made}


def loaded(folder: Path) -> LatentDiffusion:
    return load(ModelConfig(name=str(folder), device="cpu"))


@pytest.mark.parametrize("family", ["2.x", "2.x epsilon", "XL", "XL empty"])
def test_sampling_equals_diffusers(folders, family):
    from diffusers import DiffusionPipeline

    model = loaded(folders[family])
    pipeline = DiffusionPipeline.from_pretrained(folders[family])
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        PROMPTS, num_inference_steps=4, guidance_scale=2.5, output_type="latent", 
        latents=initial_noise(model, generators(SEEDS)),
    ).images  # fmt: skip
    samples = sample(model, PROMPTS, SEEDS, steps=4, guidance=2.5)
    assert expected.std() > 0.1
    torch.testing.assert_close(samples.latents, expected, atol=2e-4, rtol=1e-4)
    assert samples.images.shape == (2, 128, 128, 3)


@pytest.mark.parametrize(("family", "count"), [("2.x", 16), ("XL", 2 * 2 + 2 * 3 + 3 + 3 * 3 + 3 * 2)])
@pytest.mark.parametrize("kind", ["attention", "conv"])
def test_sites_are_modules_that_the_network_runs(folders, family, count, kind):
    model = loaded(folders[family])
    sites = model.sites(kind)
    assert len(sites) == count or kind == "conv"
    seen = []
    for site in sites:
        model.network.get_submodule(site.module)
    with hooks.record(model.network, sites, lambda site, x: seen.append((site.name, tuple(x.shape)))):
        sample(model, PROMPTS, SEEDS, steps=1, guidance=2.0, decode=False)
    assert seen == [(s.name, (4, s.tokens, s.channels)) for s in sites]


def test_every_self_attention_of_the_network_is_a_site(folders):
    for family in ("2.x", "XL"):
        model = loaded(folders[family])
        found = {n for n, m in model.network.named_modules() if isinstance(m, Attention) and n.endswith("attn1")}
        assert {site.module.removesuffix(".to_out.0") for site in model.sites()} == found
        processors = {type(m.processor) for m in model.network.modules() if isinstance(m, Attention)}
        assert processors == {AttnProcessor2_0}  # scaled dot product attention, no attention matrix


def test_half_precision_and_the_autoencoder_that_overflows(folders, tmp_path):
    import shutil

    half = load(ModelConfig(name=str(folders["XL"]), dtype="float16", device="cpu"))
    assert half.network.dtype == torch.float16
    shutil.copytree(folders["XL"], tmp_path / "up")
    path = tmp_path / "up" / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"force_upcast": True}))
    assert load(ModelConfig(name=str(tmp_path / "up"), dtype="float16", device="cpu")).vae.dtype == torch.float32
    path.write_text(json.dumps(json.loads(path.read_text()) | {"force_upcast": False}))
    assert load(ModelConfig(name=str(tmp_path / "up"), dtype="float16", device="cpu")).vae.dtype == torch.float16


@pytest.fixture
def broken(folders, tmp_path) -> Path:
    import shutil

    shutil.copytree(folders["XL"], tmp_path / "model")
    return tmp_path / "model"


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError, match="model.name") as caught:
        loaded(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


def weights(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_missing_truncated_or_incomplete_weights_are_refused(broken, part):
    path = weights(broken, part)
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    data = path.read_bytes()
    for length in (len(data) // 2, 5):
        path.unlink()  # the old file may still be mapped
        path.write_bytes(data[:length])
        assert "truncated" in refusal(broken)
    name = sorted(n for n in tensors if n.endswith("weight"))[0]
    path.unlink()
    save_file({n: v for n, v in tensors.items() if n != name}, path, metadata={"format": "pt"})
    assert f"its {part} lacks " in refusal(broken)
    path.unlink()
    assert str(broken) in refusal(broken)


def test_pickled_weights_are_not_read(broken):
    path = weights(broken, "unet")
    torch.save(load_file(path), broken / "unet" / "diffusion_pytorch_model.bin")
    path.unlink()
    assert "safetensors" in refusal(broken)


def test_another_pipeline_is_refused(broken):
    path = broken / "model_index.json"
    kinds = {
        "LDMTextToImagePipeline": "is a LDMTextToImagePipeline; supported pipelines: StableDiffusionPipeline",
        "FluxPipeline": 'unet=["diffusers", "UNet2DConditionModel"] is not known here',
    }
    text = path.read_text()
    for kind, expected in kinds.items():
        path.write_text(text.replace("StableDiffusionXLPipeline", kind))
        assert expected in refusal(broken)
    path.write_text("{broken")
    assert str(broken) in refusal(broken)


def test_too_little_memory_is_refused_before_loading(folders, monkeypatch):
    config = ModelConfig(name=str(folders["XL"]), device="cpu")
    sizes = metadata.weight_bytes(folders["XL"], config)
    model = loaded(folders["XL"])
    assert sizes["network"] == 4 * sum(p.numel() for p in model.network.parameters())
    assert sizes["text_encoder_2"] == 4 * sum(p.numel() for p in model.text[1].encoder.parameters())
    assert metadata.weight_bytes(folders["XL"], replace(config, dtype="float16"))["network"] * 2 == sizes["network"]
    need = int(devices.MARGIN * (sum(sizes.values()) + sizes["network"]))
    monkeypatch.setattr(devices, "free_memory", lambda device: need)
    load(config, variants=2)
    monkeypatch.setattr(devices, "free_memory", lambda device: need - 1)
    load(config, variants=1)
    with pytest.raises(ValueError, match=r"model.name: .* cpu memory.*model.dtype=float16"):
        load(config, variants=2)


def test_memory_that_runs_out_is_one_line():
    for error in (torch.OutOfMemoryError("CUDA out of memory.\nTried"), MemoryError()):
        with pytest.raises(ValueError, match="memory; try model.dtype=float16"), loading_errors("x"):
            raise error


def test_free_memory_is_that_of_this_machine():
    import psutil

    found = devices.free_memory("cpu")
    assert 0 < found <= psutil.virtual_memory().total


def hub_error(name: str) -> Exception:
    from huggingface_hub import errors

    kind = getattr(errors, name)
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("GatedRepoError", "https://huggingface.co/o/m"),
        ("RepositoryNotFoundError", "HF_TOKEN"),
        ("RevisionNotFoundError", "model.revision"),
        ("LocalEntryNotFoundError", "local directory"),
    ],
)
def test_errors_of_the_hub_name_the_fix(name, fix):
    wrapped = OSError("We couldn't connect\nto the hub\nfor reasons")
    wrapped.__cause__ = hub_error(name)
    with pytest.raises(ValueError, match="model.name: o/m: ") as caught, loading_errors("o/m"):
        raise wrapped
    assert fix in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("unet", "count", "total"),
    [(tiny_families.V14, 16, 11_550_720), (tiny_families.V21, 16, 25_989_120), (tiny_families.XL, 70, 104_857_600)],
)
def test_sites_of_full_configurations_without_weights(tmp_path, capsys, unet, count, total):
    for part, config in (("unet", unet), ("vae", tiny_families.V14_VAE)):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    (tmp_path / "model_index.json").write_text("{}")
    assert main(["sites", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith(f"{count} sites, {total} values")
    assert lines[-1] == "recorded by default"
    first = lines[1].split()
    side = unet["sample_size"]
    if count == 16:
        assert first[:7] == ["down.0.0", "encoder", str(side), "x", str(side), "320", str(side * side * 640)]
    sizes = [int(line.split()[6]) for line in lines[1:-2]]
    assert sum(sizes) == 2 * total
    assert main(["sites", str(tmp_path), "--family", "vae"]) == 0
    assert "vae.mid" in capsys.readouterr().out
    assert main(["sites", str(tmp_path), "--family", "conv"]) == 0
    assert "conv.mid.1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("nowhere", "give scenes, scenes-dit, a pipeline's directory or OWNER/NAME"),
        ("owner/name", "pin the commit"),
        (".", "model_index.json"),
    ],
)
def test_unknown_models_are_one_line_and_code_2(tmp_path, monkeypatch, capsys, name, fix):
    monkeypatch.chdir(tmp_path)
    for verb in ("sites", "run"):
        words = [verb, name] if verb == "sites" else [verb, "scenes", f"model.name={name}", "ray.address=none"]
        assert main(words) == 2
        error = capsys.readouterr().err
        assert fix in error
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_sites_is_refused(tmp_path, capsys):
    plain = tiny_families.V14 | {"down_block_types": ["DownBlock2D"] * 4, "up_block_types": ["UpBlock2D"] * 4}
    plain["mid_block_type"] = "UNetMidBlock2D"
    for part, config in (("unet", plain), ("vae", tiny_families.V14_VAE)):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    (tmp_path / "model_index.json").write_text("{}")
    assert main(["sites", str(tmp_path)]) == 2
    assert "no blocks with cross-attention" in capsys.readouterr().err


def test_unknown_dtypes_are_refused():
    with pytest.raises(ValueError, match="model.dtype='int8'"):
        ModelConfig(dtype="int8")
    assert ModelConfig(autocast="").autocast == ""


def test_decoding_is_the_same_alone_and_together(folders):
    model = loaded(folders["2.x"])
    latents = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    together = model.decode(latents).numpy().astype(int)
    alone = np.concatenate([model.decode(x[None]).numpy() for x in latents]).astype(int)
    assert np.abs(together - alone).max() <= 1


def test_shard_advice_follows_free_memory(monkeypatch):
    from probing.diffusion.sites import attention_sites

    sample = devices.sample_bytes(attention_sites(tiny_families.V14, (64, 64)), True, 2)
    assert sample == 24 * 2 * 4096 * 320 * 2
    monkeypatch.setattr(devices, "free_memory", lambda device: int(1.1 * (3e9 + 10.5 * sample)))
    fits = devices.shard_advice(10, int(3e9), sample, "cpu")
    assert "enough for 10 " in fits
    assert "lower sampling.shard" not in fits
    assert "lower sampling.shard" in devices.shard_advice(11, int(3e9), sample, "cpu")


def test_the_plan_shows_the_memory_of_a_shard(capsys):
    assert main(["plan", "scenes"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("shard of 16"))
    assert "of weights" in line
    assert "are free on this" in line
