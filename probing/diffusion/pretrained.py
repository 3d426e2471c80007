"""Strict loading of a pipeline's parts from a directory or the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler
from torch import nn
from transformers import PreTrainedTokenizerBase

Network = TypeVar("Network", bound=nn.Module)

FAMILIES = {"StableDiffusionPipeline": 1, "StableDiffusionXLPipeline": 2}
"""pipeline class to its number of text encoders: Stable Diffusion 1.x and 2.x, and XL"""


@dataclass(frozen=True)
class SecondText:
    """XL's second text encoder, whose pooled output conditions the UNet too."""

    encoder: nn.Module
    tokenizer: PreTrainedTokenizerBase
    empty_is_zero: bool
    """whether zeros replace the encoded empty prompt in the unconditional half"""


@dataclass(frozen=True)
class Parts:
    """The parts of a pipeline."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: nn.Module
    tokenizer: PreTrainedTokenizerBase
    second: SecondText | None
    """XL's second text encoder"""
    scheduler: dict[str, object]
    """configuration of the scheduler"""

    @property
    def networks(self) -> list[nn.Module]:
        """All networks of the pipeline."""
        return [self.unet, self.vae, self.text_encoder, *([self.second.encoder] if self.second else [])]


class _Source(TypedDict):
    revision: str | None
    local_files_only: bool


def load(path: Path | str, revision: str, dtype: torch.dtype) -> Parts:
    """The parts of a directory or hub id, with weights from safetensors alone and no tensor missing.

    Raises ValueError if the pipeline is of another class or lacks tensors, and whatever the libraries raise
    (see `probing.libraries.loading_errors`).
    """
    source: _Source = {"revision": revision or None, "local_files_only": isinstance(path, Path)}
    index = DiffusionPipeline.load_config(str(path), **source)
    assert isinstance(index, dict)
    encoders = FAMILIES.get(index.get("_class_name", ""), 0)
    if not encoders:
        raise ValueError(f"is a {index.get('_class_name')}; supported pipelines: {', '.join(FAMILIES)}")
    text_encoder, tokenizer = _load_text(index, path, "", source, dtype)
    second = None
    if encoders == 2:
        empty_is_zero = bool(index.get("force_zeros_for_empty_prompt", True))
        second = SecondText(*_load_text(index, path, "_2", source, dtype), empty_is_zero)
    scheduler = LMSDiscreteScheduler.load_config(str(path), subfolder="scheduler", **source)
    return Parts(
        unet=_load_network(UNet2DConditionModel, path, "unet", source, dtype),
        vae=_load_network(AutoencoderKL, path, "vae", source, dtype),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        second=second,
        scheduler=dict(scheduler),
    )


def _load_text(
    index: Mapping[str, Any], path: Path | str, suffix: str, source: _Source, dtype: torch.dtype
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """A text encoder and its tokenizer; `suffix` is empty or `_2`."""
    part = f"text_encoder{suffix}"
    encoder_class = (index.get(part) or [None, None])[1]
    if encoder_class not in ("CLIPTextModel", "CLIPTextModelWithProjection"):
        raise ValueError(f"its {part} is a {encoder_class}; a CLIP text encoder is needed")
    encoder = _load_network(getattr(transformers, encoder_class), path, part, source, dtype)
    tokenizer_class = (index.get(f"tokenizer{suffix}") or [None, "AutoTokenizer"])[1]
    loader = getattr(transformers, tokenizer_class, transformers.AutoTokenizer)
    return encoder, loader.from_pretrained(str(path), subfolder=f"tokenizer{suffix}", **source)


def _load_network(
    network_class: type[Network], path: Path | str, part: str, source: _Source, dtype: torch.dtype
) -> Network:
    """A network with every tensor from the file."""
    loader: Any = network_class  # the loaders of diffusers and transformers share no base class
    if part == "vae" and dtype == torch.float16:
        # autoencoders marked so (XL's) overflow in float16
        if loader.load_config(str(path), subfolder=part, **source).get("force_upcast"):
            dtype = torch.float32
    dtype_key = "dtype" if network_class.__module__.startswith("transformers") else "torch_dtype"
    options = {dtype_key: dtype, **source}
    network, report = loader.from_pretrained(
        str(path), subfolder=part, use_safetensors=True, output_loading_info=True, **options
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"its {part} lacks {len(missing)} tensors ({missing[0]}); download the weights again")
    return network.eval().requires_grad_(False)
