"""The configuration files of a pipeline's parts: every field is honoured, has no effect here, or is refused by name.

The tables below list the fields of the classes that are supported. A field that is in no table is refused unless it is
null, because what it changes would be lost. Reads JSON files and safetensors headers only, without torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from probing.diffusion import schedules
from probing.diffusion.config import PAPER_STEPS
from probing.diffusion.families.layouts import layout
from probing.diffusion.families.registry import Family, family_of
from probing.diffusion.schedules import LMS
from probing.diffusion.sites import unet_blocks

NOT_NEEDED = ("safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker", "add_watermarker")
"""components and settings of a pipeline's index that a run without images as inputs does not use"""
SCHEDULER_FILE = "scheduler/scheduler_config.json"
TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")


@dataclass(frozen=True)
class Field:
    """What a field of a configuration may hold."""

    expected: str
    """in words, for the message of a refusal"""
    accepts: Callable[[Any], bool]

    def __or__(self, other: Field) -> Field:
        return Field(f"{self.expected} or {other.expected}", lambda v: self.accepts(v) or other.accepts(v))


def only(*values: object) -> Field:
    """One of some values, so that another one is refused."""
    names = " or ".join(json.dumps(value) for value in values)
    return Field(names, lambda v: any(type(v) is type(value) and v == value for value in values))


def whole(low: int) -> Field:
    """A whole number from `low` on."""
    return Field(f"a whole number from {low} on", lambda v: type(v) is int and v >= low)


def each(field: Field) -> Field:
    """A list with at least one value."""
    return Field(
        f"a list of {field.expected}",
        lambda v: isinstance(v, list | tuple) and len(v) > 0 and all(map(field.accepts, v)),
    )


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


NUMBER = Field("a finite number", _is_number)
POSITIVE = Field("a positive number", lambda v: _is_number(v) and v > 0)
SHARE = Field("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1)
FLAG = Field("true or false", lambda v: type(v) is bool)
TEXT = Field("text", lambda v: isinstance(v, str))
NULL = only(None)
NO_EFFECT = Field("anything", lambda v: True)
"""a field that changes nothing here, whatever it holds"""
BETA = Field("a number between 0 and 1", lambda v: _is_number(v) and 0 < v < 1)
ACTIVATION = only("silu", "swish", "mish", "gelu", "relu")
SIZES = whole(1) | each(whole(1))
DEPTH = whole(0) | each(whole(1))
"""transformer layers of a block: a number for each of its attentions, or one for all"""

_LEFT_BY_TRAINING = (
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
)

UNET = {
    "sample_size": SIZES,
    "in_channels": whole(1),
    "out_channels": whole(1),
    "center_input_sample": FLAG,
    "flip_sin_to_cos": FLAG,
    "freq_shift": whole(0),
    "down_block_types": each(only("CrossAttnDownBlock2D", "DownBlock2D")),
    "mid_block_type": only("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "up_block_types": each(only("CrossAttnUpBlock2D", "UpBlock2D")),
    "only_cross_attention": FLAG | each(FLAG),
    "block_out_channels": each(whole(1)),
    "layers_per_block": SIZES,
    "downsample_padding": only(1),  # another one changes the sizes of sites
    "mid_block_scale_factor": POSITIVE,
    "dropout": SHARE,  # of training alone
    "act_fn": ACTIVATION,
    "norm_num_groups": whole(1),
    "norm_eps": POSITIVE,
    "cross_attention_dim": SIZES,
    "transformer_layers_per_block": SIZES | each(DEPTH),
    "reverse_transformer_layers_per_block": each(DEPTH) | NULL,
    "encoder_hid_dim": NULL,
    "encoder_hid_dim_type": NULL,
    "attention_head_dim": SIZES,
    "num_attention_heads": NULL,
    "dual_cross_attention": only(False),
    "use_linear_projection": FLAG,
    "class_embed_type": NULL,  # needs a class for each sample
    "addition_embed_type": only("text_time", None),
    "addition_time_embed_dim": whole(1) | NULL,
    "num_class_embeds": NULL,
    "upcast_attention": FLAG | NULL,
    "resnet_time_scale_shift": only("default", "scale_shift"),
    "resnet_skip_time_act": only(False),
    "resnet_out_scale_factor": only(1, 1.0),
    "time_embedding_type": only("positional"),
    "time_embedding_dim": whole(1) | NULL,
    "time_embedding_act_fn": ACTIVATION | NULL,
    "timestep_post_act": ACTIVATION | NULL,
    "time_cond_proj_dim": whole(4) | NULL,  # the guidance embedding of latent consistency models
    "conv_in_kernel": only(1, 3, 5, 7),
    "conv_out_kernel": only(1, 3, 5, 7),
    "projection_class_embeddings_input_dim": whole(1) | NULL,
    "attention_type": only("default"),
    "class_embeddings_concat": only(False),
    "mid_block_only_cross_attention": only(False, None),
    "cross_attention_norm": NULL,
    "addition_embed_type_num_heads": NO_EFFECT,  # of additional embeddings that are refused
} | dict.fromkeys(_LEFT_BY_TRAINING, NO_EFFECT)
"""fields of UNet2DConditionModel"""

VAE = {
    "in_channels": only(3),
    "out_channels": only(3),
    "down_block_types": each(only("DownEncoderBlock2D")),
    "up_block_types": each(only("UpDecoderBlock2D")),
    "block_out_channels": each(whole(1)),
    "layers_per_block": whole(1),
    "act_fn": ACTIVATION,
    "latent_channels": whole(1),
    "norm_num_groups": whole(1),
    "sample_size": SIZES,  # of tiled decoding, which is not used
    "scaling_factor": POSITIVE,
    "shift_factor": only(None, 0, 0.0),
    "latents_mean": each(NUMBER) | NULL,
    "latents_std": each(POSITIVE) | NULL,
    "force_upcast": FLAG,
    "use_quant_conv": FLAG,
    "use_post_quant_conv": FLAG,
    "mid_block_add_attention": FLAG,
}
"""fields of AutoencoderKL"""

TINY_VAE = {
    "in_channels": only(3),
    "out_channels": only(3),
    "encoder_block_out_channels": each(whole(1)),
    "decoder_block_out_channels": each(whole(1)),
    "act_fn": ACTIVATION,
    "upsample_fn": TEXT,
    "latent_channels": whole(1),
    "upsampling_scaling_factor": only(2),
    "num_encoder_blocks": each(whole(1)),
    "num_decoder_blocks": each(whole(1)),
    "latent_magnitude": POSITIVE,  # of its own scaling functions, which pipelines do not call
    "latent_shift": NUMBER,
    "force_upcast": FLAG,
    "scaling_factor": POSITIVE,
    "shift_factor": only(None, 0, 0.0),
    "block_out_channels": NO_EFFECT,
}
"""fields of AutoencoderTiny"""

TEXT_ENCODER = {
    "vocab_size": whole(1),
    "hidden_size": whole(1),
    "intermediate_size": whole(1),
    "projection_dim": whole(1) | NULL,
    "num_hidden_layers": whole(1),
    "num_attention_heads": whole(1),
    "max_position_embeddings": whole(1),
    "hidden_act": only("quick_gelu", "gelu", "gelu_new", "relu", "silu"),
    "layer_norm_eps": POSITIVE,
    "pad_token_id": whole(0) | NULL,
    "bos_token_id": whole(0) | NULL,
    "eos_token_id": whole(0),
    "model_type": only("clip_text_model"),
    "return_dict": only(True, None),
    "use_return_dict": only(True, None),
    # of training and of other uses, but checked by the library
    "attention_dropout": SHARE,
    "dropout": SHARE,
    "initializer_range": POSITIVE,
    "initializer_factor": POSITIVE,
    "output_hidden_states": only(False, None),
    "output_attentions": only(False, None),
    "chunk_size_feed_forward": whole(0),
    "is_encoder_decoder": only(False),
    "architectures": each(TEXT) | NULL,
    "dtype": TEXT | NULL,
    "torch_dtype": TEXT | NULL,
    "transformers_version": TEXT | NULL,
    "quantization_config": NULL,
}
"""fields of CLIPTextConfig"""

TOKEN = TEXT | Field("a token", lambda v: isinstance(v, dict) and isinstance(v.get("content"), str))
TOKENIZER = {
    "model_max_length": whole(3) | NULL,
    "tokenizer_class": TEXT | NULL,
    "backend": TEXT | NULL,
    "padding_side": only("left", "right"),
    "truncation_side": only("left", "right"),
} | dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), TOKEN | NULL)
"""fields of a tokenizer whose types are checked; all are honoured by transformers"""

NOISE = {
    "num_train_timesteps": whole(1),
    "beta_start": BETA,
    "beta_end": BETA,
    "beta_schedule": only("linear", "scaled_linear", "squaredcos_cap_v2"),
    "trained_betas": each(BETA) | NULL,
    "prediction_type": only("epsilon", "v_prediction"),
    "timestep_spacing": only("linspace", "leading", "trailing"),
    "steps_offset": whole(0),
    "use_karras_sigmas": FLAG,
    "use_exponential_sigmas": FLAG,
    "use_beta_sigmas": FLAG,
}
"""fields of a scheduler that are honoured: the noise schedule that the model was trained with, and the places of steps
in it. They are all that diffusers' LMSDiscreteScheduler takes"""

SCHEDULER = (
    NOISE
    | {
        "rescale_betas_zero_snr": only(False),  # LMS cannot start from pure noise, of infinite sigma
        "use_flow_sigmas": only(False),
        "use_dynamic_shifting": only(False),
        "shift_terminal": NULL,
        "sigma_min": NULL,
        "sigma_max": NULL,
        "timestep_type": only("discrete"),
    }
    | dict.fromkeys(
        # of the samplers that LMS takes the place of
        "algorithm_type clip_sample clip_sample_range corrector_order disable_corrector dynamic_thresholding_ratio "
        "euler_at_final final_sigmas_type flow_shift interpolation_type lambda_min_clipped lower_order_final "
        "noise_sampler_seed predict_x0 predictor_order sample_max_value set_alpha_to_one skip_prk_steps solver_order "
        "solver_p solver_type tau_func tensor_format thresholding time_shift_type use_lu_lambdas variance_type".split(),
        NO_EFFECT,
    )
)
"""fields of the schedulers in SCHEDULERS"""

_BETAS = {"beta_start": 0.0001, "beta_end": 0.02}
_LATENT_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS = {
    **dict.fromkeys(
        "DDIM DDIMParallel DDPM DDPMParallel DEISMultistep DPMSolverMultistep DPMSolverSinglestep "
        "EulerAncestralDiscrete EulerDiscrete LMSDiscrete PNDM SASolver UniPCMultistep".split(),
        _BETAS,
    ),
    **dict.fromkeys("DPMSolverSDE HeunDiscrete KDPM2AncestralDiscrete KDPM2Discrete".split(), _LATENT_BETAS),
}
"""schedulers of a discrete noise schedule, without the word Scheduler, and the betas of a file that names none"""


def lms_settings(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of diffusers' LMSDiscreteScheduler for a pipeline's scheduler configuration.

    The protocol samples every model with LMS (section 3.1: 15 steps), whichever sampler its file names. The model's
    noise schedule, what it predicts and the spacing of steps are taken from the file; fields of the replaced sampler
    have no effect. A missing spacing is LMS's own, evenly spaced, as in the paper.
    """
    kind = str(scheduler.get("_class_name", "LMSDiscreteScheduler")).removesuffix("Scheduler")
    return SCHEDULERS.get(kind, _BETAS) | {name: scheduler[name] for name in NOISE if name in scheduler}


def unlike_earlier(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a scheduler that runs of earlier versions dropped, where they differ from what was used."""
    settings = lms_settings(scheduler)
    used: dict[str, Any] = {"trained_betas": None, "timestep_spacing": "linspace"}
    used |= dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), False)
    found = {name: settings[name] for name, value in used.items() if settings.get(name, value) != value}
    if "timestep_spacing" in found and settings.get("steps_offset", 0) != 0:
        found["steps_offset"] = settings["steps_offset"]
    if "beta_start" not in scheduler and settings["beta_start"] != _BETAS["beta_start"]:
        found["beta_start"] = settings["beta_start"]
    return found


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a pipeline. Raises ValueError if it is missing, damaged or no object."""
    try:
        values = json.loads((folder / name).read_bytes())
    except OSError as error:
        raise ValueError(f"{folder}: {name} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / name}: no readable JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{folder / name}: holds no JSON object")
    return values


def refuse(name: str, field: str, problem: str) -> ValueError:
    """A ValueError that names a file of a pipeline and its field."""
    return ValueError(f"{name}: {field}{problem}")


def check_fields(name: str, values: Mapping[str, Any], table: Mapping[str, Field]) -> None:
    """Raise ValueError for the first field that is neither honoured nor known to have no effect.

    Names with an underscore are diffusers' own notes.
    """
    for field, value in values.items():
        if field.startswith("_"):
            continue
        shown = json.dumps(value)
        shown = f"={shown if len(shown) <= 80 else shown[:77] + '...'}"
        if field not in table:
            if value is not None:
                raise refuse(name, field, f"{shown} is not known here, and what it changes would be lost")
        elif not table[field].accepts(value):
            raise refuse(name, field, f"{shown} is not supported; supported: {table[field].expected}")


SIZES_OF = {
    "unet": ("sample_size", "in_channels", "block_out_channels", "down_block_types", "mid_block_type", "up_block_types",
             "layers_per_block", "transformer_layers_per_block"),
    "vae": ("block_out_channels", "latent_channels", "mid_block_add_attention"),
}  # fmt: skip
"""fields that the places and sizes of sites and images follow from"""


def read_unet(folder: Path, sizes_only: bool = False) -> dict[str, Any]:
    """The UNet's configuration with the defaults of fields that are read here.

    sizes_only: check no other fields, so that a model can be listed, and a finished run read, that cannot be sampled.
    Raises ValueError as `check_fields`.
    """
    name = "unet/config.json"
    values = read_json(folder, name)
    check_fields(name, {f: v for f, v in values.items() if not sizes_only or f in SIZES_OF["unet"]}, UNET)
    if values.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel":
        raise refuse(name, "_class_name", f"={values['_class_name']} is not supported; supported: UNet2DConditionModel")
    if "sample_size" not in values:
        raise refuse(name, "sample_size", " is missing, so the size of images is not known")
    defaults: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }
    values = defaults | values
    size, levels = values["sample_size"], len(values["block_out_channels"])
    if isinstance(size, list) and len(size) != 2:
        raise refuse(name, "sample_size", f"={size} is not supported; supported: a number, or height and width")
    by_level = ("down_block_types", "up_block_types", "layers_per_block", "cross_attention_dim",
                "transformer_layers_per_block", "attention_head_dim", "only_cross_attention",
                "reverse_transformer_layers_per_block")  # fmt: skip
    for field in by_level:
        if isinstance(values.get(field), list) and len(values[field]) != levels:
            raise refuse(name, field, f" has {len(values[field])} values, block_out_channels {levels}")
    return values


def read_vae(folder: Path, sizes_only: bool = False) -> dict[str, Any]:
    """The configuration of a Stable Diffusion's autoencoder with defaults, likewise."""
    name = "vae/config.json"
    values = read_json(folder, name)
    kind = values.get("_class_name", "AutoencoderKL")
    tables = {"AutoencoderKL": VAE, "AutoencoderTiny": TINY_VAE}
    if not isinstance(kind, str) or kind not in tables:
        raise refuse(name, "_class_name", f"={kind} is not supported; supported: {', '.join(tables)}")
    check_fields(name, {f: v for f, v in values.items() if not sizes_only or f in SIZES_OF["vae"]}, tables[kind])
    if kind == "AutoencoderTiny":
        sizes = {"latent_channels": 4, "encoder_block_out_channels": [64] * 4, "scaling_factor": 1.0}
        return sizes | values
    return {"latent_channels": 4, "block_out_channels": [64], "layers_per_block": 1} | values


def read_scheduler(folder: Path, sampler: str = LMS, steps: int = PAPER_STEPS) -> dict[str, Any]:
    """The scheduler's configuration, for a value of `sampling.scheduler`.

    LMS takes only the noise schedule from the file, so each of its fields is checked; another sampler is built by
    diffusers from the whole file. steps: of sampling. Raises ValueError for a scheduler or a field
    that is not supported, or that does not fit the sampler.
    """
    name = SCHEDULER_FILE
    values = read_json(folder, name)
    if "_class_name" not in values:
        component = read_json(folder, "model_index.json").get("scheduler")
        values["_class_name"] = component[1] if isinstance(component, list) and len(component) == 2 else None
    kind = values["_class_name"]
    if not isinstance(kind, str) or schedules.plain(kind) not in {*SCHEDULERS, *schedules.KINDS}:
        known = ", ".join(sorted({*SCHEDULERS, *schedules.KINDS}))
        raise refuse(name, "_class_name", f"={kind} is not supported; supported: {known}")
    if sampler == LMS and schedules.plain(kind) in ("LCM", "TCD"):
        raise refuse(name, "_class_name", f"={kind} is not what LMS can take the place of; set sampling.scheduler=own")
    schedules.check(sampler, values)
    if sampler == LMS:
        check_fields(name, values, SCHEDULER)
        _check_noise(name, lms_settings(values), steps)
    elif values.get("prediction_type", "epsilon") not in PREDICTIONS:
        shown = json.dumps(values["prediction_type"])[:80]
        raise refuse(name, "prediction_type", f"={shown} is not supported; supported: {', '.join(PREDICTIONS)}")
    return values


PREDICTIONS = ("epsilon", "v_prediction", "flow_prediction", "sample")
"""of which the clean estimate is known"""


def _check_noise(name: str, settings: Mapping[str, Any], steps: int) -> None:
    count, betas = settings.get("num_train_timesteps", 1000), settings.get("trained_betas")
    if betas is not None and len(betas) != count:
        raise refuse(name, "trained_betas", f" has {len(betas)} values, num_train_timesteps is {count}")
    if steps > count:
        raise refuse(name, "num_train_timesteps", f"={count} are fewer than sampling.steps={steps}")
    if settings.get("timestep_spacing") == "leading":
        last = count // steps * (steps - 1) + settings.get("steps_offset", 0)
        if last >= count:
            raise refuse(name, "steps_offset", f" puts a step at {last}, num_train_timesteps is {count}")
    if sum(settings.get(f"use_{which}_sigmas", False) for which in ("karras", "exponential", "beta")) > 1:
        raise refuse(name, "use_karras_sigmas", ", use_exponential_sigmas and use_beta_sigmas exclude each other")


def read_index(folder: Path) -> tuple[dict[str, Any], Family]:
    """A pipeline's index and its family.

    Raises ValueError for another class, or a component that would be left out.
    """
    name = "model_index.json"
    index = read_json(folder, name)
    family = family_of(index.get("_class_name"))
    parts = [family.network, "vae", "scheduler", *family.text_parts]
    optional = [f"{part}{suffix}" for part in ("text_encoder", "tokenizer") for suffix in family.optional]
    for field, value in index.items():
        if field in parts:
            named = isinstance(value, list) and len(value) == 2 and all(isinstance(x, str) for x in value)
            if not named and not (field in optional and value in (None, [None, None])):
                raise refuse(name, field, f"={json.dumps(value)} names no library and class")
        elif field == "force_zeros_for_empty_prompt":
            check_fields(name, {field: value}, {field: FLAG})
        elif field == "id2label" and not family.encoders:
            check_fields(name, {field: value}, {field: CLASSES})
        elif not field.startswith("_") and field not in NOT_NEEDED and value not in (None, [None, None]):
            raise refuse(name, field, f"={json.dumps(value)[:80]} is not known here, and what it does would be lost")
    expected = {family.network: family.networks, "vae": family.vaes}
    if family.network == "unet":
        expected |= {part: TEXT_ENCODERS for part in parts if part.startswith("text_encoder")}
    for part, classes in expected.items():
        found = (index.get(part) or [None, None if part.startswith("text") else classes[0]])[1]
        if found not in classes:
            raise ValueError(f"its {part} is a {found}; supported: {', '.join(classes)}")
    for part in parts:
        if part not in optional and part != "scheduler" and not index.get(part) and family.network != "unet":
            raise refuse(name, part, " is missing")
    return index, family


def components(index: Mapping[str, Any], family: Family) -> dict[str, tuple[str, str]]:
    """(library, class) of each network and tokenizer of a pipeline; an optional one that is null is absent.

    One that the index does not mention has the class that is usual in the family.
    """
    usual = {family.network: ("diffusers", family.networks[0]), "vae": ("diffusers", family.vaes[0])}
    usual |= {part: ("transformers", "AutoTokenizer") for part in family.text_parts if part.startswith("tokenizer")}
    found = {}
    for part in dict.fromkeys((*family.weighted_parts, *family.text_parts)):
        library, name = index.get(part) or usual.get(part) or (None, None)
        if library is not None and name is not None:
            found[part] = (library, name)
    return found


CLASSES = Field(
    "an object of class numbers and names",
    lambda v: isinstance(v, dict) and bool(v) and all(k.isdecimal() and isinstance(x, str) for k, x in v.items()),
)


def check(folder: Path, sampler: str = LMS, steps: int = PAPER_STEPS, partial: bool = False) -> None:
    """Check all configuration files of a pipeline, and that its weights, if they are there, have the stated sizes.

    sampler, steps: `sampling.scheduler` and `sampling.steps`. partial: a folder of the network's and the VAE's files
    alone is enough (to plan). Raises ValueError that names file and field.
    """
    if partial and "_class_name" not in read_json(folder, "model_index.json"):
        read_unet(folder)
        read_vae(folder)
        return
    index, family = read_index(folder)
    if family.network != "unet":
        check_transformer(folder, index, family, sampler, steps, partial)
        return
    encoders = len(family.encoders)
    unet, vae = read_unet(folder), read_vae(folder)
    read_scheduler(folder, sampler, steps)
    widths = []
    for part in ("text_encoder", "text_encoder_2")[:encoders]:
        name = f"{part}/config.json"
        text = {"hidden_size": 512, "num_attention_heads": 8} | read_json(folder, name)
        check_fields(name, text, TEXT_ENCODER)
        if text["hidden_size"] % text["num_attention_heads"]:
            raise refuse(name, "num_attention_heads", f"={text['num_attention_heads']} does not divide hidden_size")
        widths.append(text["hidden_size"])
        tokenizer = f"tokenizer{part.removeprefix('text_encoder')}"
        _check_tokenizer(folder, tokenizer, (index.get(tokenizer) or ["", ""])[1])
        _check_tensors(folder, part, _text_tensors(text))
    _check_conditioning(unet, vae, encoders, sum(widths))
    _check_scale(vae, encoders)
    tiny = vae.get("_class_name") == "AutoencoderTiny"
    levels = len(vae["encoder_block_out_channels" if tiny else "block_out_channels"])
    for field in () if tiny else ("down_block_types", "up_block_types"):
        if (count := len(vae.get(field, [""]))) != levels:
            raise refuse("vae/config.json", field, f" has {count} values, block_out_channels {levels}")
    for name, values, default in (("unet/config.json", unet, 32), ("vae/config.json", vae, 32)):
        groups = values.get("norm_num_groups", default)
        for channels in () if tiny and values is vae else values["block_out_channels"]:
            if channels % groups:
                raise refuse(name, "norm_num_groups", f"={groups} does not divide block_out_channels {channels}")
    _check_tensors(folder, "unet", _unet_tensors(unet))
    if not tiny:
        _check_tensors(folder, "vae", _vae_tensors(vae))


def read_network(folder: Path, family: Family, sizes_only: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configurations of the network and of the autoencoder.

    Those of a transformer are read as they are: diffusers builds it from all its fields, and it is called as its
    pipeline calls it, so that none is lost. Raises ValueError for a missing or damaged file, or another class.
    """
    if family.network == "unet":
        return read_unet(folder, sizes_only), read_vae(folder, sizes_only)
    found = []
    for part, classes in ((family.network, family.networks), ("vae", family.vaes)):
        values = read_json(folder, f"{part}/config.json")
        kind = values.setdefault("_class_name", classes[0])
        if kind not in classes:
            raise refuse(
                f"{part}/config.json", "_class_name", f"={kind} is not supported; supported: {', '.join(classes)}"
            )
        found.append(values)
    return found[0], found[1]


def check_transformer(
    folder: Path, index: Mapping[str, Any], family: Family, sampler: str, steps: int, partial: bool
) -> None:
    """Check the files of a transformer's pipeline: all there, readable, and of supported classes.

    partial: text encoders and tokenizers may be missing.
    """
    network, vae = read_network(folder, family)
    layout(family, network, vae)
    read_scheduler(folder, sampler, steps)
    for part in family.text_parts:
        if partial or part not in (found := components(index, family)):
            continue
        if part.startswith("tokenizer"):
            _check_tokenizer(folder, part, found[part][1])
        else:
            read_json(folder, f"{part}/config.json")
    for part in family.weighted_parts:
        tensor_shapes(folder, part)


def _check_tokenizer(folder: Path, part: str, kind: str) -> None:
    """Raise ValueError if a tokenizer of class `kind` has settings of a wrong type, or cannot pad.

    What the settings mean is left to the library.
    """
    name = f"{part}/tokenizer_config.json"
    settings: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / part / file).exists():
            settings |= read_json(folder, f"{part}/{file}")
    check_fields(name, {field: value for field, value in settings.items() if field in TOKENIZER}, TOKENIZER)
    if not kind.startswith("CLIP") and settings.get("pad_token") is None:
        raise refuse(name, "pad_token", " is missing, so that prompts of different lengths cannot go together")


def _check_conditioning(unet: Mapping[str, Any], vae: Mapping[str, Any], encoders: int, width: int) -> None:
    """Raise ValueError if the UNet needs other inputs than latents, the time and the text."""
    name = "unet/config.json"
    if not unet["in_channels"] == unet["out_channels"] == vae["latent_channels"]:
        raise refuse(
            name, "in_channels",
            f"={unet['in_channels']}, out_channels={unet['out_channels']}, and latents have {vae['latent_channels']}: "
            "a model that needs an image or a mask besides its text is not supported",
        )  # fmt: skip
    kind = unet.get("addition_embed_type")
    if (kind == "text_time") != (encoders == 2):
        raise refuse(name, "addition_embed_type", f"={json.dumps(kind)} does not fit {encoders} text encoder(s)")
    needed = _by_level(unet, "cross_attention_dim", 1280)
    if set(needed) != {width}:
        raise refuse(name, "cross_attention_dim", f"={needed[0]} does not fit text states of width {width}")
    heads = _by_level(unet, "attention_head_dim", 8)
    for channels, count in zip(unet["block_out_channels"], heads, strict=True):
        if channels % count:
            raise refuse(name, "attention_head_dim", f"={count} does not divide block_out_channels {channels}")


def _check_scale(vae: Mapping[str, Any], encoders: int) -> None:
    """Raise ValueError if latents have a mean and deviation that the pipeline does not undo, or not as many."""
    name, found = "vae/config.json", {field: vae.get(field) for field in ("latents_mean", "latents_std")}
    for field, values in found.items():
        if values is None:
            continue
        if encoders == 1:
            raise refuse(name, field, " is not supported: only the pipeline of XL undoes it")
        if len(values) != vae["latent_channels"]:
            raise refuse(name, field, f" has {len(values)} values, latent_channels is {vae['latent_channels']}")
        if None in found.values():
            raise refuse(name, field, " needs the other of latents_mean and latents_std")


def _by_level(values: Mapping[str, Any], field: str, default: int) -> list[int]:
    value = values.get(field, default)
    return list(value) if isinstance(value, list | tuple) else [value] * len(values["block_out_channels"])


Tensors = Iterator[tuple[str, str, tuple[int | None, ...] | None]]
"""(field, tensor, shape with None for any size, or None if there must be no such tensor)"""


def _unet_tensors(unet: Mapping[str, Any]) -> Tensors:
    """The tensors whose names and shapes follow from the UNet's configuration, one for each field that sets sizes."""
    channels, last = unet["block_out_channels"], len(unet["block_out_channels"]) - 1
    layers = _by_level(unet, "layers_per_block", 2)
    widths = _by_level(unet, "cross_attention_dim", 1280)
    kernel, out_kernel = unet.get("conv_in_kernel", 3), unet.get("conv_out_kernel", 3)
    time = unet.get("time_embedding_dim") or 4 * channels[0]
    yield "conv_in_kernel", "conv_in.weight", (channels[0], unet["in_channels"], kernel, kernel)
    yield "conv_out_kernel", "conv_out.weight", (unet["out_channels"], channels[0], out_kernel, out_kernel)
    yield "time_embedding_dim", "time_embedding.linear_1.weight", (time, channels[0])
    guidance = unet.get("time_cond_proj_dim")
    yield "time_cond_proj_dim", "time_embedding.cond_proj.weight", (channels[0], guidance) if guidance else None
    if unet.get("addition_embed_type"):
        inputs = unet.get("projection_class_embeddings_input_dim")
        yield "projection_class_embeddings_input_dim", "add_embedding.linear_1.weight", (time, inputs)
    else:
        yield "addition_embed_type", "add_embedding.linear_1.weight", None
    mid = unet.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    blocks = [
        *(("down_block_types", f"down_blocks.{i}", kind, i, layers[i])
          for i, kind in enumerate(unet["down_block_types"])),
        *(("up_block_types", f"up_blocks.{i}", kind, last - i, layers[last - i] + 1)
          for i, kind in enumerate(unet["up_block_types"])),
        ("mid_block_type", "mid_block", mid or "", last, 2 if "CrossAttn" in (mid or "") else 1 if mid else 0),
    ]  # fmt: skip
    linear: tuple[int | None, ...] = (None, None) if unet.get("use_linear_projection") else (None, None, 1, 1)
    own = {block.site.module: block for block in unet_blocks(unet, (1, 1), "attention")}
    for field, path, kind, level, count in blocks:
        attentions = (1 if path == "mid_block" else count) if "CrossAttn" in kind else 0
        if count:
            shape = (channels[level], None, 3, 3)
            yield "block_out_channels", f"{path}.resnets.{count - 1}.conv1.weight", shape
        yield "layers_per_block", f"{path}.resnets.{count}.conv1.weight", None
        yield field, f"{path}.attentions.{attentions}.norm.weight", None
        if attentions:
            block = f"{path}.attentions.{attentions - 1}"
            yield "use_linear_projection", f"{block}.proj_in.weight", linear
            inner, depth = f"{block}.transformer_blocks", own[path].depths[-1]
            width = (channels[level], widths[level])
            seen = width if own[path].only_cross else (channels[level], channels[level])
            yield "only_cross_attention", f"{inner}.{depth - 1}.attn1.to_k.weight", seen
            yield "cross_attention_dim", f"{inner}.{depth - 1}.attn2.to_k.weight", width
            yield "transformer_layers_per_block", f"{inner}.{depth}.norm1.weight", None


def _vae_tensors(vae: Mapping[str, Any]) -> Tensors:
    """Those that follow from the autoencoder's configuration."""
    channels, layers, latent = vae["block_out_channels"], vae["layers_per_block"], vae["latent_channels"]
    yield "latent_channels", "decoder.conv_in.weight", (channels[-1], latent, 3, 3)
    yield "block_out_channels", "decoder.conv_out.weight", (3, channels[0], 3, 3)
    post = (latent, latent, 1, 1) if vae.get("use_post_quant_conv", True) else None
    yield "use_post_quant_conv", "post_quant_conv.weight", post
    quant = (2 * latent, 2 * latent, 1, 1) if vae.get("use_quant_conv", True) else None
    yield "use_quant_conv", "quant_conv.weight", quant
    norm = (channels[-1],) if vae.get("mid_block_add_attention", True) else None
    yield "mid_block_add_attention", "decoder.mid_block.attentions.0.group_norm.weight", norm
    for i, width in enumerate(channels):
        yield "block_out_channels", f"encoder.down_blocks.{i}.resnets.{layers - 1}.conv1.weight", (width, None, 3, 3)
        yield "layers_per_block", f"encoder.down_blocks.{i}.resnets.{layers}.conv1.weight", None
        mirrored = channels[-1 - i]
        yield "block_out_channels", f"decoder.up_blocks.{i}.resnets.{layers}.conv1.weight", (mirrored, None, 3, 3)
        yield "layers_per_block", f"decoder.up_blocks.{i}.resnets.{layers + 1}.conv1.weight", None


def _text_tensors(text: Mapping[str, Any]) -> Tensors:
    """Those that follow from a CLIP text encoder's configuration."""
    width, layers = text["hidden_size"], text.get("num_hidden_layers", 12)
    inner = text.get("intermediate_size", 2048)
    yield "vocab_size", "embeddings.token_embedding.weight", (text.get("vocab_size", 49408), width)
    positions = text.get("max_position_embeddings", 77)
    yield "max_position_embeddings", "embeddings.position_embedding.weight", (positions, width)
    yield "intermediate_size", f"encoder.layers.{layers - 1}.mlp.fc1.weight", (inner, width)
    yield "num_hidden_layers", f"encoder.layers.{layers}.mlp.fc1.weight", None


def tensor_shapes(folder: Path, part: str, variant: str = "") -> dict[str, tuple[int, ...]]:
    """Shapes of a part's tensors by name, from the headers of its safetensors files; empty if there are none here.

    Other copies of the weights than the one to load are left out. Raises ValueError for a damaged file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder / part, variant):
        try:
            with safe_open(file, framework="numpy") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{part}/{file.name}: weights truncated or damaged; download them again") from error
    return shapes


def weight_files(folder: Path, variant: str = "") -> list[Path]:
    """The safetensors files of a part that are loaded: of a variant such as `fp16` if it has one, else the main."""
    # what some systems leave beside a file, such as ._model.safetensors, is no weights
    found = [file for file in sorted(folder.glob("*.safetensors")) if not file.name.startswith(".")]
    # NAME.safetensors, NAME.VARIANT.safetensors, NAME-00001-of-00002.safetensors, NAME.VARIANT-00001-of-00002...
    copies = {file: file.name.removesuffix(".safetensors").partition(".")[2].partition("-")[0] for file in found}
    of_variant = [file for file, copy in copies.items() if variant and copy == variant]
    return of_variant or [file for file, copy in copies.items() if not copy]


def _check_tensors(folder: Path, part: str, expected: Tensors) -> None:
    shapes = tensor_shapes(folder, part)
    if not shapes:  # a hub id's weights are loaded later
        return
    # text encoders are saved with and without this prefix
    shapes = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
    for field, tensor, shape in expected:
        found = shapes.get(tensor)
        fits = (
            found is not None and len(found) == len(shape)
            and all(want in (None, have) for want, have in zip(shape, found, strict=True))
            if shape is not None
            else found is None
        )  # fmt: skip
        if found is None and shape is not None:
            raise ValueError(f"its {part} lacks {tensor}, which {part}/config.json ({field}) states; download it again")
        if not fits:
            size = "absent" if shape is None else "x".join("?" if n is None else str(n) for n in shape)
            problem = f" does not fit the weights: {tensor} is {'x'.join(map(str, found or ()))}, expected {size}"
            raise refuse(f"{part}/config.json", field, problem)
