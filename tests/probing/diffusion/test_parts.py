"""Configuration files of pipelines: each field is honoured as in diffusers, without effect, or refused by name."""

from __future__ import annotations

import copy
import inspect
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig

from probing.diffusion import metadata, parts
from probing.diffusion import model as models
from probing.diffusion.config import ModelConfig
from probing.diffusion.sampling import initial_noise, sample, schedule
from support import tiny_families

PROMPT = ["a large red sphere on a green floor under a sky"]
SCHEDULER = "scheduler/scheduler_config.json"
UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
INSTALLED = [name for name in parts.SCHEDULERS if name != "DPMSolverSDE"]  # which needs torchsde


@pytest.fixture
def pipeline(tiny_pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "pipeline"))


def edit(folder: Path, name: str, **fields: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def config(folder: Path) -> ModelConfig:
    return ModelConfig(name=str(folder), device="cpu")


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        (diffusers.UNet2DConditionModel, parts.UNET),
        (diffusers.AutoencoderKL, parts.VAE),
        *((getattr(diffusers, f"{name}Scheduler"), parts.SCHEDULER) for name in INSTALLED),
    ],
)
def test_every_field_of_a_supported_class_is_in_its_table(kind, table):
    assert set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs"} <= set(table)


def test_every_field_of_the_text_encoder_is_in_its_table():
    common = {"_name_or_path", "id2label", "label2id", "problem_type"}  # without effect, and not in pipelines' files
    assert set(CLIPTextConfig().to_dict()) - common <= set(parts.TEXT_ENCODER)


@pytest.mark.parametrize("name", INSTALLED)
def test_betas_that_a_file_does_not_name_are_those_of_its_class(name):
    defaults = inspect.signature(getattr(diffusers, f"{name}Scheduler").__init__).parameters
    settings = parts.lms_settings({"_class_name": f"{name}Scheduler"})
    assert settings == {key: defaults[key].default for key in ("beta_start", "beta_end")}


BETAS = np.linspace(0.001, 0.01, 1000).tolist()


@pytest.mark.parametrize(
    "fields",
    [
        {"trained_betas": BETAS},
        {"trained_betas": BETAS[:600], "num_train_timesteps": 600},
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"timestep_spacing": "leading", "steps_offset": 0},
        {"timestep_spacing": "trailing"},
        {"prediction_type": "epsilon"},
        {"use_karras_sigmas": True},
        {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False, "clip_sample": False},
    ],
)
def test_the_schedule_is_that_of_diffusers(pipeline, fields):
    edit(pipeline, SCHEDULER, **fields)
    metadata.check(config(pipeline))
    reference = diffusers.LMSDiscreteScheduler.from_config(json.loads((pipeline / SCHEDULER).read_text()))
    reference.set_timesteps(15)
    model = models.load(config(pipeline))
    found = schedule(model, 15)
    assert found.config.prediction_type == reference.config.prediction_type
    assert torch.equal(found.sigmas, reference.sigmas)
    assert torch.equal(found.timesteps, reference.timesteps)
    assert found.init_noise_sigma == reference.init_noise_sigma
    levels = metadata.noise_levels(config(pipeline), 15)
    assert levels == () if "use_karras_sigmas" in fields else levels == pytest.approx(reference.sigmas[:15], rel=1e-5)


def test_trained_betas_change_the_image(pipeline):
    plain = sample(models.load(config(pipeline)), PROMPT, [3], steps=2).images
    edit(pipeline, SCHEDULER, trained_betas=BETAS)
    assert not torch.equal(sample(models.load(config(pipeline)), PROMPT, [3], steps=2).images, plain)


def test_a_model_that_earlier_versions_sampled_otherwise_has_another_revision(pipeline):
    plain = metadata.revision(config(pipeline))
    assert len(plain) == 16
    edit(pipeline, SCHEDULER, timestep_spacing="linspace", steps_offset=0, set_alpha_to_one=True)
    assert metadata.revision(config(pipeline)) == plain
    edit(pipeline, SCHEDULER, timestep_spacing="leading")
    assert metadata.revision(config(pipeline)).startswith(f"{plain}+")


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        (VAE, {"latents_mean": [0.0] * 4}),
        (VAE, {"latents_std": [1.0] * 4}),
        (VAE, {"shift_factor": 0.1}),
        (VAE, {"scaling_factor": 0}),
        (VAE, {"_class_name": "AutoencoderTiny"}),
        (SCHEDULER, {"rescale_betas_zero_snr": True}),
        (SCHEDULER, {"beta_schedule": "sigmoid"}),
        (SCHEDULER, {"prediction_type": "sample"}),
        (SCHEDULER, {"trained_betas": [0.1]}),
        (SCHEDULER, {"sigma_max": 80.0}),
        (SCHEDULER, {"use_flow_sigmas": True}),
        (SCHEDULER, {"timestep_type": "continuous"}),
        (SCHEDULER, {"timestep_spacing": "even"}),
        (SCHEDULER, {"steps_offset": 90, "timestep_spacing": "leading"}),
        (SCHEDULER, {"snr_shift_scale": 3.0}),
        *((SCHEDULER, {"_class_name": f"{name}Scheduler"}) for name in
          ("EDMEuler", "EDMDPMSolverMultistep", "FlowMatchEulerDiscrete", "LCM", "TCD", "CogVideoXDDIM", "ScoreSdeVe")),
        (UNET, {"time_cond_proj_dim": 256}),
        (UNET, {"in_channels": 9}),
        (UNET, {"out_channels": 8}),
        (UNET, {"class_embed_type": "timestep"}),
        (UNET, {"num_class_embeds": 1000}),
        (UNET, {"encoder_hid_dim_type": "image_proj"}),
        (UNET, {"addition_embed_type": "text_time"}),
        (UNET, {"only_cross_attention": True}),
        (UNET, {"down_block_types": ["SimpleCrossAttnDownBlock2D"] * 4}),
        (UNET, {"cross_attention_dim": 64}),
        (UNET, {"norm_num_groups": 7}),
        (UNET, {"attention_head_dim": 5}),
        (UNET, {"sample_size": None}),
        (UNET, {"a_field_of_tomorrow": 1}),
        (TEXT, {"return_dict": False}),
        ("model_index.json", {"controlnet": ["diffusers", "ControlNetModel"]}),
    ],
)  # fmt: skip
def test_what_would_be_dropped_is_refused_by_name(pipeline, name, fields):
    edit(pipeline, name, **fields)
    with pytest.raises(ValueError, match=name) as caught:
        metadata.check(config(pipeline))
    assert next(iter(fields)) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=name):
        models.load(config(pipeline))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        (UNET, {"layers_per_block": 3}),
        (UNET, {"layers_per_block": 1}),
        (UNET, {"block_out_channels": [16, 16, 32, 16]}),
        (UNET, {"use_linear_projection": True}),
        (UNET, {"transformer_layers_per_block": 2}),
        (UNET, {"mid_block_type": None}),
        (UNET, {"conv_in_kernel": 5}),
        (VAE, {"block_out_channels": [8, 16, 16, 8]}),
        (VAE, {"layers_per_block": 2}),
        (VAE, {"mid_block_add_attention": False}),
        (VAE, {"use_post_quant_conv": False}),
        (TEXT, {"num_hidden_layers": 1}),
        (TEXT, {"num_hidden_layers": 3}),
        (TEXT, {"vocab_size": 40}),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_refused_without_loading_them(pipeline, name, fields):
    edit(pipeline, name, **fields)
    with pytest.raises(ValueError, match=f"{name}: .* does not fit the weights|lacks .* which {name}"):
        metadata.check(config(pipeline))


def test_full_size_configurations_are_accepted(tmp_path):
    for unet in (tiny_families.V14, tiny_families.V21, tiny_families.XL):
        (tmp_path / "unet").mkdir(exist_ok=True)
        (tmp_path / UNET).write_text(json.dumps(unet | {"_class_name": "UNet2DConditionModel", "decay": 0.9999}))
        assert parts.read_unet(tmp_path)["in_channels"] == 4


WRONG: tuple[Any, ...] = ("text", -1, 2.5, True, [], [1], {}, {"a": [1]}, None)
FILES = ("model_index.json", UNET, VAE, TEXT, SCHEDULER, "tokenizer/tokenizer_config.json")


def mutations(folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(file, change, new content) of every field of every JSON file: removed, nulled and given other types."""
    for name in FILES:
        original = json.loads((folder / name).read_text())
        for field in original:
            yield name, f"{field} removed", {key: value for key, value in original.items() if key != field}
            for value in WRONG:
                if type(value) is not type(original[field]):
                    yield name, f"{field}={value!r}", original | {field: copy.deepcopy(value)}


def reference(folder: Path, noise: torch.Tensor) -> np.ndarray:
    """Images of diffusers' own pipeline with the protocol's sampler, in grey levels."""
    scheduler = diffusers.LMSDiscreteScheduler.from_config(json.loads((folder / SCHEDULER).read_text()))
    made = diffusers.StableDiffusionPipeline.from_pretrained(folder, scheduler=scheduler, torch_dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2.5, "output_type": "np"}
    return 255 * made(PROMPT, latents=noise, **options).images


def refusal(folder: Path) -> str:
    """Why a pipeline is refused before anything is loaded; empty if it is not."""
    try:
        metadata.check(config(folder))
    except ValueError as error:
        return str(error)
    return ""


def without_effect(name: str, field: str) -> bool:
    """Whether a field changes nothing, whatever it holds."""
    tables = {UNET: parts.UNET, VAE: parts.VAE, SCHEDULER: parts.SCHEDULER}
    return field.startswith("_") or field in parts.NOT_NEEDED or tables.get(name, {}).get(field) is parts.NO_EFFECT


@pytest.mark.slow
def test_each_mutated_field_gives_what_diffusers_makes_of_it_or_one_line(pipeline):
    originals = {name: (pipeline / name).read_bytes() for name in FILES}
    noise = initial_noise(models.load(config(pipeline)), [3])
    plain, wrong, unused = reference(pipeline, noise), [], {}
    for name, change, content in mutations(pipeline):
        (pipeline / name).write_text(json.dumps(content))
        message = refusal(pipeline)
        assert "\n" not in message, change
        assert len(message) < 600, change
        field, _, value = change.partition("=")
        if not message and value and without_effect(name, field):
            unused.setdefault(name, {})[field] = content[field]
        elif not message:
            found = sample(models.load(config(pipeline)), PROMPT, [3], steps=2, guidance=2.5).images.numpy()
            if np.abs(found - plain).max() > 1 and np.abs(found - reference(pipeline, noise)).max() > 1:
                wrong.append(f"{name} {change}")
        (pipeline / name).write_bytes(originals[name])
    assert not wrong
    for name, fields in unused.items():
        edit(pipeline, name, **fields)
    assert refusal(pipeline) == ""
    found = sample(models.load(config(pipeline)), PROMPT, [3], steps=2, guidance=2.5).images.numpy()
    assert np.abs(found - plain).max() <= 1
