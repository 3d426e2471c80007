"""What the fields of Stable Diffusion's parts may hold."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


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

TRANSFORMER_VAE = VAE | {"shift_factor": NUMBER | NULL, "latents_mean": NULL, "latents_std": NULL}
"""the same in the pipelines of transformers, which undo scale and shift, but neither mean nor deviation"""

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

CLASSES = Field(
    "an object of class numbers and names",
    lambda v: isinstance(v, dict) and bool(v) and all(k.isdecimal() and isinstance(x, str) for k, x in v.items()),
)
