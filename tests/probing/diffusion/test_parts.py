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

from probing.dataset import tokens
from probing.dataset.prompts import Prompt
from probing.diffusion import metadata, schedules
from probing.diffusion import model as models
from probing.diffusion.config import ModelConfig
from probing.diffusion.parts import checks, fields, noise, reading
from probing.diffusion.sampling import generators, initial_noise, sample, schedule
from support import tiny_families

PROMPT = ["a large red sphere on a green floor under a sky"]
SCHEDULER = "scheduler/scheduler_config.json"
UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
INSTALLED = [name for name in noise.SCHEDULERS if name != "DPMSolverSDE"]  # which needs torchsde


@pytest.fixture
def pipeline(tiny_pipeline: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "pipeline"))
    plain = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "use_exponential_sigmas": False}
    return edit(folder, SCHEDULER, trained_betas=None, **plain)


def edit(folder: Path, name: str, **fields: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def config(folder: Path) -> ModelConfig:
    return ModelConfig(name=str(folder), device="cpu")


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        (diffusers.UNet2DConditionModel, fields.UNET),
        (diffusers.AutoencoderKL, fields.VAE),
        *((getattr(diffusers, f"{name}Scheduler"), noise.SCHEDULER) for name in INSTALLED),
        *((getattr(diffusers, f"{name}Scheduler"), noise.BUILT) for name in schedules.KINDS),
    ],
)
def test_every_field_of_a_supported_class_is_in_its_table(kind, table):
    assert set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs"} <= set(table)


def test_every_field_of_the_text_encoder_is_in_its_table():
    common = {"_name_or_path", "id2label", "label2id", "problem_type"}  # without effect, and not in pipelines' files
    assert set(CLIPTextConfig().to_dict()) - common <= set(fields.TEXT_ENCODER)


@pytest.mark.parametrize("name", INSTALLED)
def test_betas_that_a_file_does_not_name_are_those_of_its_class(name):
    defaults = inspect.signature(getattr(diffusers, f"{name}Scheduler").__init__).parameters
    settings = noise.lms_settings({"_class_name": f"{name}Scheduler"})
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
        {"use_exponential_sigmas": True, "num_train_timesteps": 700},
        {"use_beta_sigmas": True},
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
    assert levels == () if "use_beta_sigmas" in fields else levels == pytest.approx(reference.sigmas[:15], rel=1e-5)


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
        (VAE, {"_class_name": "AutoencoderOobleck"}),
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


def test_what_cannot_be_sampled_can_still_be_listed(pipeline):
    plain = metadata.read_model_info(config(pipeline), pipeline)
    edit(pipeline, UNET, time_cond_proj_dim=256, a_field_of_tomorrow=1)
    edit(pipeline, VAE, latents_mean=[0.0] * 4)
    edit(pipeline, SCHEDULER, _class_name="EDMEulerScheduler")
    found = metadata.read_model_info(config(pipeline), pipeline)
    assert (found.sites, found.families, found.image, found.latent) == (
        plain.sites, plain.families, plain.image, plain.latent
    )  # fmt: skip
    (pipeline / "unet" / "._diffusion_pytorch_model.safetensors").write_bytes(b"left by another system")
    assert list(metadata.model_files(config(pipeline)))[1] == f"unet/{next((pipeline / 'unet').glob('d*')).name}"


def test_full_size_configurations_are_accepted(tmp_path):
    # as their files hold them, with fields that a newer diffusers writes and training has left behind
    xl = tiny_families.XL | {"upcast_attention": None, "time_cond_proj_dim": None, "addition_embed_type_num_heads": 64}
    for unet in (tiny_families.V14, tiny_families.V21, xl):
        (tmp_path / "unet").mkdir(exist_ok=True)
        (tmp_path / UNET).write_text(json.dumps(unet | {"_class_name": "UNet2DConditionModel", "decay": 0.9999}))
        assert reading.read_unet(tmp_path)["in_channels"] == 4


BETAS_OF_SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
PNDM = BETAS_OF_SD | {
    "_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False, "clip_sample": False,
    "steps_offset": 1, "trained_betas": None,
}  # fmt: skip
EULER = PNDM | {
    "_class_name": "EulerDiscreteScheduler", "interpolation_type": "linear", "prediction_type": "epsilon",
    "sample_max_value": 1.0, "timestep_spacing": "leading", "use_karras_sigmas": False,
}  # fmt: skip


def text_files(width: int, act: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration of a CLIP text encoder and of its tokenizer."""
    encoder = {
        "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0,
        "eos_token_id": 2, "hidden_act": act, "hidden_size": width, "initializer_factor": 1.0,
        "initializer_range": 0.02, "intermediate_size": 4 * width, "layer_norm_eps": 1e-5,
        "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": width // 64,
        "num_hidden_layers": 12, "pad_token_id": 1, "torch_dtype": "float16", "transformers_version": "4.22.0.dev0",
        "vocab_size": 49408,
    }  # fmt: skip
    token = {"__type": "AddedToken", "content": "<|endoftext|>", "lstrip": False, "normalized": True}
    tokenizer = {
        "add_prefix_space": False, "bos_token": token, "do_lower_case": True, "eos_token": token, "errors": "replace",
        "model_max_length": 77, "name_or_path": "openai/clip", "pad_token": "<|endoftext|>",
        "special_tokens_map_file": "./map.json", "tokenizer_class": "CLIPTokenizer", "unk_token": token,
    }  # fmt: skip
    return encoder, tokenizer


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_files_as_the_public_models_have_them_are_accepted(tmp_path, kind):
    xl = kind.endswith("XLPipeline")
    widths = {"": (768, "quick_gelu"), "_2": (1280, "gelu")} if xl else {"": (768, "quick_gelu")}
    index: dict[str, Any] = {
        "_class_name": kind, "_diffusers_version": "0.19.0", "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", (EULER if xl else PNDM)["_class_name"]],
        "feature_extractor": [None, None] if xl else ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    } | ({"force_zeros_for_empty_prompt": True, "image_encoder": [None, None]} if xl else {})  # fmt: skip
    files = {
        UNET: tiny_families.XL if xl else tiny_families.V14,
        VAE: tiny_families.V14_VAE | {"_class_name": "AutoencoderKL", "act_fn": "silu", "force_upcast": True},
        SCHEDULER: EULER if xl else PNDM,
    }
    for suffix, (width, act) in widths.items():
        index[f"text_encoder{suffix}"] = ["transformers", "CLIPTextModelWithProjection" if suffix else "CLIPTextModel"]
        index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
        encoder, tokenizer = text_files(width, act)
        files |= {f"text_encoder{suffix}/config.json": encoder}
        files |= {f"tokenizer{suffix}/tokenizer_config.json": tokenizer}
    for name, content in (files | {"model_index.json": index}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    checks.check(tmp_path)
    levels = metadata.noise_levels(config(tmp_path), 15)
    assert levels[0] == pytest.approx(9.6 if xl else 14.61, abs=0.5)


WRONG: tuple[Any, ...] = ("text", -1, 2.5, True, [], [1], {}, {"a": [1]}, None)
FILES = ("model_index.json", UNET, VAE, TEXT, SCHEDULER, "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json")


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
        tokens.with_cuts([Prompt(PROMPT[0], 0)], folder)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", schedules.KINDS)
def test_each_mutated_field_of_an_own_scheduler_is_built_by_diffusers_or_refused_by_name(kind, tmp_path):
    scheduler = getattr(diffusers, f"{kind}Scheduler")
    scheduler().save_pretrained(tmp_path / "scheduler")
    original = json.loads((tmp_path / SCHEDULER).read_text())
    assert noise.read_scheduler(tmp_path, "own", 4) == original
    cases = [(field, value) for field in original if field[0] != "_" for value in WRONG]
    for field, value in [*cases, ("a_field_of_tomorrow", 1)]:
        if type(value) is type(original.get(field)):
            continue
        content = original | {field: copy.deepcopy(value)}
        (tmp_path / SCHEDULER).write_text(json.dumps(content))
        reason, found = "", {}
        try:
            found = noise.read_scheduler(tmp_path, "own", 4)
        except ValueError as error:
            reason = str(error)
        assert f": {field}" in reason or (not reason and field in original), (field, value)
        if not reason:
            made = scheduler.from_config(found)
            made.set_timesteps(4)
            assert made.config[field] == value


CLASSES = {
    UNET: diffusers.UNet2DConditionModel,
    VAE: diffusers.AutoencoderKL,
    SCHEDULER: diffusers.LMSDiscreteScheduler,
}
TABLES = {UNET: fields.UNET, VAE: fields.VAE, SCHEDULER: noise.SCHEDULER}


def changes_nothing(name: str, field: str, original: dict[str, Any], content: dict[str, Any]) -> bool:
    """Whether a mutation must give the same images: the field has no effect, or its default is what it held."""
    if field in content:
        no_effect = TABLES.get(name, {}).get(field) is fields.NO_EFFECT
        return field.startswith("_") or field in reading.NOT_NEEDED or no_effect
    parameters = inspect.signature(CLASSES[name].__init__).parameters if name in CLASSES else {}
    return field in parameters and json.loads(json.dumps(parameters[field].default)) == original[field]


@pytest.mark.slow
def test_each_mutated_field_gives_what_diffusers_makes_of_it_or_one_line(pipeline):
    originals = {name: json.loads((pipeline / name).read_text()) for name in FILES}
    together = copy.deepcopy(originals)  # mutations that must change nothing, which are tried all at once
    noise = initial_noise(models.load(config(pipeline)), generators([3]))
    plain, wrong = reference(pipeline, noise), []
    for name, change, content in mutations(pipeline):
        (pipeline / name).write_text(json.dumps(content))
        message, field = refusal(pipeline), change.partition("=")[0].removesuffix(" removed")
        assert "\n" not in message, change
        assert len(message) < 600, change
        if not message and changes_nothing(name, field, originals[name], content):
            together[name].pop(field, None)
            together[name] |= {field: content[field]} if field in content else {}
        elif not message:
            found = sample(models.load(config(pipeline)), PROMPT, [3], steps=2, guidance=2.5).images.numpy()
            if np.abs(found - plain).max() > 1 and np.abs(found - reference(pipeline, noise)).max() > 1:
                wrong.append(f"{name} {change}")
        (pipeline / name).write_text(json.dumps(originals[name]))
    assert not wrong
    for name, content in together.items():
        assert content != originals[name] or name in (TEXT, *FILES[-2:])
        (pipeline / name).write_text(json.dumps(content))
    assert refusal(pipeline) == ""
    found = sample(models.load(config(pipeline)), PROMPT, [3], steps=2, guidance=2.5).images.numpy()
    assert np.abs(found - plain).max() <= 1
