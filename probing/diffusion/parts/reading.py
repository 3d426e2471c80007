"""Reads the index of a pipeline and the configurations of its network and autoencoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probing.diffusion.families.registry import Family, family_of
from probing.diffusion.parts.fields import CLASSES, FLAG, TINY_VAE, UNET, VAE, check_fields, refuse

NOT_NEEDED = ("safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker", "add_watermarker")
"""components and settings of a pipeline's index that a run without images as inputs does not use"""
TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")


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
