"""Single-file checkpoints of Stable Diffusion: all weights in one safetensors file, named as in the first releases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from probing.diffusion.families.registry import Family
from probing.diffusion.parts.reading import read_json

WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""endings by which `model.name` is taken for a file"""
PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
}
"""part of a pipeline -> how the names of its tensors begin"""


def tensor_sizes(file: Path) -> dict[str, dict[str, int]]:
    """Number of values of each tensor by name, for each part of the pipeline. Raises ValueError for a damaged file."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            values = {name: math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file.name}: weights truncated or damaged; download them again") from error
    return {part: {n: v for n, v in values.items() if n.startswith(starts)} for part, starts in PREFIXES.items()}


def check(file: Path, folder: Path, family: Family, partial: bool) -> None:
    """Raise ValueError if the file has not the weights of a family's pipeline with the configuration in `folder`.

    partial: look only whether each part is there, which needs neither torch nor diffusers. Otherwise UNet and
    autoencoder have to have as many tensors and values as the configuration states, so that none is left out.
    """
    if family.network != "unet":
        raise ValueError(f"a single file of {family.name} is not supported; give the pipeline's directory")
    found = tensor_sizes(file)
    for part in family.weighted_parts:
        if not found[part]:
            raise ValueError(
                f"{file.name} has no weights of its {part}, named {' or '.join(PREFIXES[part])}...; give a checkpoint "
                "of the whole pipeline, or a pipeline's directory"
            )
    for part in () if partial else (family.network, "vae"):
        expected = [tensor.numel() for tensor in _skeleton(folder, part).values()]
        have = found[part]
        if (len(have), sum(have.values())) != (len(expected), sum(expected)):
            raise ValueError(
                f"model.config: {part}/config.json states {len(expected)} tensors with {sum(expected)} values, "
                f"{file.name} has {len(have)} with {sum(have.values())}; give the configuration of this model"
            )


def _skeleton(folder: Path, part: str) -> dict[str, Any]:
    """The tensors of a network of diffusers by name, without their values."""
    import diffusers
    import torch

    values = read_json(folder, f"{part}/config.json")
    usual = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
    kind = getattr(diffusers, values.get("_class_name", usual[part]))
    with torch.device("meta"):
        skeleton: dict[str, Any] = kind.from_config(values).state_dict()
    return skeleton


def load(file: Path, folder: Path, index: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The networks of a pipeline by part, in float32. Raises ValueError as `check`, or if the file lacks a tensor."""
    import diffusers

    check(file, folder, family, partial=False)
    pipeline = getattr(diffusers, index["_class_name"])
    absent = dict.fromkeys((*(p for p in family.text_parts if p.startswith("tokenizer")), "scheduler"))
    optional = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    made = pipeline.from_single_file(str(file), config=str(folder), local_files_only=True, **absent, **optional)
    parts = {part: getattr(made, part) for part in family.weighted_parts}
    for part, network in parts.items():
        if missing := [name for name, tensor in network.state_dict().items() if tensor.is_meta]:
            raise ValueError(f"its {part} lacks {len(missing)} tensors ({missing[0]}); download the weights again")
    return parts
