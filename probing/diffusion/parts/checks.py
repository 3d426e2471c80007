"""Checks all files of a pipeline before any of its weights is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probing.diffusion.config import PAPER_STEPS
from probing.diffusion.families.layouts import layout
from probing.diffusion.families.registry import Family
from probing.diffusion.parts.fields import TEXT_ENCODER, TOKENIZER, TRANSFORMER_VAE, check_fields, refuse
from probing.diffusion.parts.noise import read_scheduler
from probing.diffusion.parts.reading import components, read_index, read_json, read_network, read_unet, read_vae
from probing.diffusion.parts.weights import (
    by_level,
    check_tensors,
    tensor_shapes,
    text_tensors,
    unet_tensors,
    vae_tensors,
)
from probing.diffusion.schedules import LMS


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
        check_tensors(folder, part, text_tensors(text))
    _check_conditioning(unet, vae, encoders, sum(widths))
    _check_scale(vae, encoders)
    tiny = vae.get("_class_name") == "AutoencoderTiny"
    if not tiny:
        _check_levels(vae)
    for name, values, default in (("unet/config.json", unet, 32), ("vae/config.json", vae, 32)):
        groups = values.get("norm_num_groups", default)
        for channels in () if tiny and values is vae else values["block_out_channels"]:
            if channels % groups:
                raise refuse(name, "norm_num_groups", f"={groups} does not divide block_out_channels {channels}")
    check_tensors(folder, "unet", unet_tensors(unet))
    if not tiny:
        check_tensors(folder, "vae", vae_tensors(vae))


def check_transformer(
    folder: Path, index: Mapping[str, Any], family: Family, sampler: str, steps: int, partial: bool
) -> None:
    """Check the files of a transformer's pipeline: all there, readable, and of supported classes.

    partial: text encoders and tokenizers may be missing.
    """
    network, vae = read_network(folder, family)
    if vae["_class_name"] == "AutoencoderKL":
        vae = {"block_out_channels": [64], "layers_per_block": 1, "latent_channels": 4} | vae
        check_fields("vae/config.json", vae, TRANSFORMER_VAE)
        _check_levels(vae)
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
    if vae["_class_name"] == "AutoencoderKL":
        check_tensors(folder, "vae", vae_tensors(vae))


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
    needed = by_level(unet, "cross_attention_dim", 1280)
    if set(needed) != {width}:
        raise refuse(name, "cross_attention_dim", f"={needed[0]} does not fit text states of width {width}")
    heads = by_level(unet, "attention_head_dim", 8)
    for channels, count in zip(unet["block_out_channels"], heads, strict=True):
        if channels % count:
            raise refuse(name, "attention_head_dim", f"={count} does not divide block_out_channels {channels}")


def _check_levels(vae: Mapping[str, Any]) -> None:
    """Raise ValueError if the lists of an AutoencoderKL have different lengths."""
    levels = len(vae["block_out_channels"])
    for field in ("down_block_types", "up_block_types"):
        if (count := len(vae.get(field, [""]))) != levels:
            raise refuse("vae/config.json", field, f" has {count} values, block_out_channels {levels}")


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
