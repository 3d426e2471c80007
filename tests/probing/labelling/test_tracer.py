"""TRACER: names and shapes, padding, every module against numpy, and labels from a checkpoint."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from torch import nn

from probing.labelling import efficientnet, registry, tracer, tracer_modules
from support import labelling_reference
from support.labelling_reference import Part, doubles, random_state, thin_state, tracer_shapes

CPU = torch.device("cpu")


def random_module(module: nn.Module, seed: int) -> tuple[nn.Module, Part]:
    """A module in double precision with random tensors, and the same tensors for the reference."""
    state = random_state({name: tuple(v.shape) for name, v in module.state_dict().items()}, seed)
    module.load_state_dict(state)
    return module.double().eval().requires_grad_(False), Part(doubles(state))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def assert_same(found: torch.Tensor, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert expected.std() > 1e-3  # a flat result would agree with anything flat
    assert np.abs(found.numpy() - expected).max() < 1e-10


@pytest.mark.parametrize(("side", "seed"), [(40, 1), (41, 2)])
def test_edge_module(side, seed):
    module, part = random_module(tracer_modules.EdgeModule(24), seed)
    x = noise(24, side, side, seed=seed)
    kept = labelling_reference.high_frequencies(x)
    assert 0.1 < kept.std() < 0.8 * x.std()  # the mask takes some frequencies and leaves some
    assert_same(tracer_modules.high_frequencies(torch.from_numpy(x)[None], 16)[0], kept)
    assert_same(module(torch.from_numpy(x)[None])[0], labelling_reference.edges(x, part))


@pytest.mark.parametrize(("inputs", "outputs"), [(12, 8), (8, 16)])
def test_receptive_field(inputs, outputs):
    module, part = random_module(tracer_modules.ReceptiveField(inputs, outputs), 3)
    x = noise(inputs, 16, 18)
    assert_same(module(torch.from_numpy(x)[None])[0], labelling_reference.receptive_field(x, part))


@pytest.mark.parametrize(("channels", "dropped"), [(20, 2), (21, 3)])  # of 21 the threshold is a gate itself
def test_union_attention_drops_the_least_attended_channels(channels, dropped):
    module, part = random_module(tracer_modules.UnionAttention(channels, spatial=True), 4)
    x = 2 * noise(2, channels, 8, 9)
    found = module(torch.from_numpy(x))
    for one, image in zip(found, x, strict=True):  # each image has its own threshold
        assert_same(one, labelling_reference.union(image, part))
    gates = labelling_reference.trace(x[0], part)[1]
    assert (gates <= np.quantile(gates, 0.1)).sum() == dropped


def test_aggregation():
    module, part = random_module(tracer_modules.Aggregation(8, 12, 16), 5)
    coarse, middle, fine = noise(16, 3, 4), noise(12, 6, 8), noise(8, 12, 16)
    found = module(*(torch.from_numpy(x)[None] for x in (coarse, middle, fine)))[0]
    assert_same(found, labelling_reference.aggregation(coarse, middle, fine, part))


def test_object_attention_ignores_certain_background():
    module, part = random_module(tracer_modules.ObjectAttention(24), 6)
    logits, features = 4 * noise(1, 12, 14), noise(24, 12, 14, seed=1)
    share = (labelling_reference.sigmoid(-logits) > 0.93).mean()
    assert 0.05 < share < 0.9
    found = module(torch.from_numpy(logits)[None], torch.from_numpy(features)[None])[0]
    assert_same(found, labelling_reference.object_attention(logits, features, part))


@pytest.mark.parametrize(
    ("arm", "taps", "channels"),
    [
        (0, [2, 4, 10, 15], [24, 40, 112, 320]),
        (1, [4, 7, 15, 22], [24, 40, 112, 320]),
        (2, [4, 7, 15, 22], [24, 48, 120, 352]),
        (3, [4, 7, 17, 25], [32, 48, 136, 384]),
        (4, [5, 9, 21, 31], [32, 56, 160, 448]),
        (5, [7, 12, 26, 38], [40, 64, 176, 512]),
        (6, [8, 14, 30, 44], [40, 72, 200, 576]),
        (7, [10, 17, 37, 54], [48, 80, 224, 640]),
    ],
)
def test_taps_of_every_arm(arm, taps, channels):
    shapes = efficientnet.blocks(efficientnet.ARMS[arm])
    assert efficientnet.tapped_blocks(shapes) == taps
    assert [shapes[number].outputs for number in taps] == channels
    assert len(shapes) == taps[-1] + 1


@pytest.mark.parametrize(("arm", "trapped"), [(0, []), (4, [6]), (5, [13, 27]), (6, [31]), (7, [18])])
def test_padding_is_that_of_the_nominal_size(arm, trapped):
    shape = efficientnet.ARMS[arm]
    size, differing = shape.size // 2, []
    for number, block in enumerate(efficientnet.blocks(shape)):
        if block.pad != efficientnet.same_padding(size, block.kernel, block.stride):
            differing.append(number)
            assert block.pad == (block.kernel // 2,) * 2
        size = math.ceil(size / block.stride)
    assert differing == trapped


def test_official_names_and_shapes_of_te5():
    shapes = tracer_shapes(5)
    with torch.device("meta"):
        made = tracer.Tracer(5)
    assert {name: tuple(value.shape) for name, value in made.state_dict().items()} == shapes
    assert len(shapes) == 1387
    assert sum(value.numel() for value in made.parameters()) == 31_303_954


@pytest.mark.parametrize(("arm", "seed"), [(0, 0), pytest.param(5, 2, marks=pytest.mark.slow)])
def test_whole_network(arm, seed):
    state = random_state(tracer_shapes(arm), seed)
    network = tracer.network(state, tracer.source("w.pth", arm), arm).double()
    x = noise(3, 64, 64, seed=seed)
    found = network(torch.from_numpy(x)[None])
    assert_same(found[0, 0], labelling_reference.tracer(x, Part(doubles(state)), arm))


def test_checkpoint_of_another_arm_or_model(tmp_path):
    path = tmp_path / "w.pth"
    for state, arm, fault in (
        (thin_state(tracer_shapes(5)), 0, "is a checkpoint of TRACER-TE5, not TE0; set labels.saliency=tracer-te5"),
        (thin_state(tracer_shapes(0)), 5, "is a checkpoint of TRACER-TE0, not TE5; set labels.saliency=tracer-te0"),
        ({"encoder.conv.weight": torch.ones(1)}, 5, "1387 tensors missing"),
    ):
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
        with pytest.raises(ValueError, match=f"labels.saliency_weights: {path}") as caught:
            tracer.load(str(path), CPU, arm)
        assert fault in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rfb3.branch2.1.conv.weight", "model._blocks.38._bn2.running_var"])
def test_missing_tensor_is_named(name):
    state = thin_state(tracer_shapes(5))
    del state[name]
    with pytest.raises(ValueError, match=rf"1 tensors missing \({name}\)"):
        tracer.network(state, tracer.source("w.pth", 5), 5)


def test_te5_loads_strictly_from_a_file_in_the_official_form(tmp_path):
    path = tmp_path / "TRACER-Efficient-5.pth"
    torch.save({f"module.{name}": value for name, value in thin_state(tracer_shapes(5)).items()}, path)
    labeller = registry.build("saliency", "tracer", str(path), CPU)
    assert labeller.revision.startswith("tracer-te5 sha256:")


class Fixed(nn.Module):
    """A network whose saliency is its input's red channel, brought back to 0..1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x[:, :1] * 0.229 + 0.485).clamp(0, 1)


def test_saliency_is_cut_not_rounded_and_has_the_size_of_the_image():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    found = tracer.saliency(Fixed(), levels, 16)[0].numpy().astype(int)
    expected = np.arange(256).reshape(16, 16)
    assert found.dtype == int
    assert np.isin(expected - found, (0, 1)).all()  # float32 may end just below a whole level
    half = torch.full((1, 1, 8, 8), 0.9999 * 100.9 / 255)
    assert (tracer.saliency(lambda x: half, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 8) == 100).all()


def test_images_of_another_size_are_scaled_to_the_arms_size_and_back():
    pictures = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8)).astype(np.uint8)
    seen = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return Fixed()(x)

    found = tracer.saliency(network, torch.from_numpy(pictures), 32)
    assert seen[0].shape == (1, 3, 32, 32)
    assert found.shape == (1, 8, 8)
    scaled = np.rint(labelling_reference.linear(pictures[0].astype(float), 4))
    back = seen[0][0].double() * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    levels = (back + torch.tensor([0.485, 0.456, 0.406])[:, None, None]) * 255
    assert np.abs(levels.numpy() - scaled).max() <= 1.001  # halves may round either way
    assert (np.abs(levels.numpy() - scaled) < 1e-3).mean() > 0.99


def test_labels_from_a_checkpoint(tmp_path):
    path = tmp_path / "w.pth"
    state = random_state(tracer_shapes(0), 3)
    torch.save({f"module.{name}": value for name, value in state.items()}, path)
    labeller = registry.build("saliency", "tracer-te0", str(path), CPU)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    labels = labeller(pictures)
    assert labels.shape == (2, 64, 64)
    assert labels.dtype == np.uint8
    assert labels.std() > 1
    assert np.array_equal(labels[1:], labeller(pictures[1:]))


@pytest.mark.slow
def test_te5_labels_a_512_image_within_its_time():
    network = tracer.network(random_state(tracer_shapes(5)), tracer.source("w.pth", 5), 5)
    levels = torch.randint(0, 256, (1, 3, 512, 512), dtype=torch.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other on a busy machine burn time too
    try:
        with torch.inference_mode():
            start = time.process_time()
            labels = tracer.saliency(network, levels, 512)
            spent = time.process_time() - start
    finally:
        torch.set_num_threads(threads)
    assert labels.shape == (1, 512, 512)
    assert spent <= 12  # processor seconds of two cores in 6 s
