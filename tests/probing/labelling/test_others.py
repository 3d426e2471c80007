"""The other labellers: Depth Anything, rembg models, the safety checker, scenes; and the registry."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from probing.labelling import depth_anything, registry, safety
from support import labelling_reference
from support.labelling_reference import random_state

CPU = torch.device("cpu")


def pictures(count: int, height: int = 40, width: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


# --- registry


def test_an_unknown_labeller_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match="no labeller 'nothing'") as caught:
        registry.build("saliency", "nothing", "", CPU)
    for name in ("tracer", "tracer-te0", "tracer-te7", "rembg-u2net", "scenes"):
        assert name in str(caught.value)
    with pytest.raises(ValueError, match="depth-anything-v2-base, .*midas, scenes"):
        registry.build("depth", "nothing", "", CPU)


def test_the_registry_imports_nothing_heavy():
    code = "import sys, probing.labelling.registry; print([m for m in {heavy} if m in sys.modules])"
    code = code.format(heavy=("torch", "transformers", "diffusers", "rembg", "PIL"))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# --- Depth Anything


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A directory with a narrow Depth Anything, run at 56 pixels."""
    monkeypatch.setattr(depth_anything, "SIZE", 56)
    monkeypatch.setitem(depth_anything.WIDTHS, "small", 24)
    backbone = Dinov2Config(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14,
        out_indices=[1, 2, 3, 4], reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=24, neck_hidden_sizes=[8, 8, 12, 12],
        fusion_hidden_size=8, head_hidden_size=8,
    )  # fmt: skip
    network = DepthAnythingForDepthEstimation(config)
    state = random_state({name: tuple(value.shape) for name, value in network.state_dict().items()})
    state["head.conv3.bias"] += 2  # or the last ReLU leaves nothing to compare
    network.load_state_dict(state)
    network.save_pretrained(tmp_path)
    return tmp_path


def test_depth_anything_labels(small):
    labeller = registry.build("depth", "depth-anything-v2-small", str(small), CPU)
    images = pictures(2)
    labels = labeller(images)
    assert labels.shape == (2, 40, 40)
    assert labels.dtype == np.float32
    assert labels.std() > 0.01
    scaled = labelling_reference.cubic(images[1].transpose(2, 0, 1) / 255, 56, 56)
    x = (scaled - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))) / np.reshape([0.229, 0.224, 0.225], (3, 1, 1))
    network = DepthAnythingForDepthEstimation.from_pretrained(small).double()
    with torch.no_grad():
        depth = network(torch.from_numpy(x)[None]).predicted_depth.numpy()
    assert np.abs(labels[1] - labelling_reference.cubic(depth, 40, 40)[0]).max() < 1e-4
    assert "depth-anything-v2-small sha256:" in labeller.revision


def test_depth_anything_refuses_other_sizes_metric_depth_and_nothing(small):
    with pytest.warns(UserWarning, match="non-commercial"), pytest.raises(ValueError, match="768 channels, got 24"):
        depth_anything.load(str(small), CPU, "base")
    config = (small / "config.json").read_text()
    (small / "config.json").write_text(config.replace('"relative"', '"metric"'))
    with pytest.raises(ValueError, match="labels.depth_weights: .*metric depth"):
        depth_anything.load(str(small), CPU, "small")
    with pytest.raises(ValueError, match="labels.depth_weights: .*no such directory") as caught:
        depth_anything.load(str(small / "none"), CPU, "small")
    assert "\n" not in str(caught.value)


# --- rembg


def test_rembg_model_is_named_and_runs_on_the_processor(monkeypatch):
    requested = []

    class Session:
        def predict(self, image: Image.Image) -> list[Image.Image]:
            return [image.split()[2]]

    def new_session(name: str, **options) -> Session:
        requested.append((name, options))
        return Session()

    fake = ModuleType("rembg")
    monkeypatch.setattr(fake, "new_session", new_session, raising=False)
    monkeypatch.setitem(sys.modules, "rembg", fake)
    labeller = registry.build("saliency", "rembg-isnet-general-use", "", CPU)
    images = pictures(3)
    assert np.array_equal(labeller(images), images[..., 2])
    assert requested == [("isnet-general-use", {"providers": ["CPUExecutionProvider"]})]
    assert labeller.revision.endswith("isnet-general-use")


def test_rembg_is_optional_and_takes_no_weights_and_no_service(monkeypatch):
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(ValueError, match=r'pip install "rembg\[cpu\]"'):
        registry.build("saliency", "rembg-u2net", "", CPU)
    with pytest.raises(ValueError, match="labels.saliency_weights: w.onnx"):
        registry.build("saliency", "rembg-u2net", "w.onnx", CPU)
    with pytest.raises(ValueError, match="no labeller 'rembg-withoutbg'"):
        registry.build("saliency", "rembg-withoutbg", "", CPU)


# --- safety checker


@pytest.fixture
def checker(tmp_path):
    """A pipeline directory with a narrow safety checker that flags red images and no others."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8, "projection_dim": 16}  # fmt: skip
    torch.manual_seed(0)
    network = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16)).eval()
    red = torch.from_numpy(safety.clip_pixels(red_images(1), 32).numpy())
    with torch.no_grad():
        embedded = network.visual_projection(network.vision_model(red)[1])
        network.concept_embeds.copy_(torch.randn(17, 16))
        network.concept_embeds[4] = embedded[0]
        network.concept_embeds_weights.copy_(torch.full((17,), 2.0))  # no cosine gets there
        network.concept_embeds_weights[4] = 0.999
        network.special_care_embeds_weights.fill_(2.0)
    network.save_pretrained(tmp_path / "safety_checker")
    return tmp_path


def red_images(count: int) -> np.ndarray:
    images = np.zeros((count, 40, 48, 3), np.uint8)
    images[..., 0] = 255
    return images


def test_safety_checker_flags_and_leaves_images_alone(checker):
    found = safety.load(str(checker), CPU)
    images = np.concatenate([pictures(9, 40, 48), red_images(2)])
    before = images.copy()
    flags = found(images)
    assert flags.dtype == bool
    assert flags.tolist() == [False] * 9 + [True] * 2
    assert np.array_equal(images, before)
    assert found(images[:0]).shape == (0,)
    assert "safety-checker sha256:" in found.revision


def test_safety_checker_loads_the_old_nested_names(checker):
    path = checker / "safety_checker" / "model.safetensors"
    tensors = load_file(path)
    inner = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
    old = {}
    for name, value in tensors.items():
        rest = name.removeprefix("vision_model.").removeprefix("vision_model.")
        old[f"vision_model.vision_model.{rest}" if rest.startswith(inner) else name] = value
    assert sum(name.startswith("vision_model.vision_model.") for name in old) > 20
    save_file(old, path, metadata={"format": "pt"})
    flags = safety.load(str(checker / "safety_checker"), CPU)(np.concatenate([pictures(2, 40, 48), red_images(1)]))
    assert flags.tolist() == [False, False, True]


@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (90, 50)])
def test_pixels_are_those_of_clip(shape):
    processing = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    images = pictures(2, *shape)
    reference = processing.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = reference(list(images), return_tensors="np")["pixel_values"]
    assert np.abs(safety.clip_pixels(images, 32).numpy() - np.stack(expected)).max() < 1e-5


def test_safety_checker_errors_are_one_line(checker):
    path = checker / "safety_checker" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(ValueError, match="curation.safety_weights: .*truncated") as caught:
        safety.load(str(checker), CPU)
    assert "\n" not in str(caught.value)


def test_the_scenes_network_runs_once_for_both_tasks(monkeypatch: pytest.MonkeyPatch):
    from probing.scenes import teacher, weights

    images = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    depth, mask = teacher.label(weights.load_labeller()[0], images)
    runs = []
    plain = teacher.label
    monkeypatch.setattr(teacher, "label", lambda network, given: runs.append(1) or plain(network, given))
    saliency_of, depth_of = (registry.build(task, "scenes", "", CPU) for task in ("saliency", "depth"))
    np.testing.assert_array_equal(saliency_of(images), (mask * 255).round().astype(np.uint8))
    np.testing.assert_array_equal(depth_of(images.copy()), depth.clip(min=0))
    assert len(runs) == 1
    images[0, 5, 5] ^= 1
    assert (depth_of(images) != depth.clip(min=0)).any()
    assert len(runs) == 2
