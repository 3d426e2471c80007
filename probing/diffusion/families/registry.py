"""The families of pipelines that are supported, by the class that a pipeline's index names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Family:
    """What a family's directory holds, and who runs it."""

    name: str
    pipelines: tuple[str, ...]
    """classes in `model_index.json`"""
    network: str
    """part that denoises: `unet` or `transformer`"""
    networks: tuple[str, ...]
    """its classes"""
    vaes: tuple[str, ...]
    """classes of the autoencoder"""
    encoders: tuple[str, ...]
    """suffixes of `text_encoder` and `tokenizer`; empty for a model of classes"""
    adapter: str
    """module in this package, and its class"""
    optional: tuple[str, ...] = ()
    """encoders that may be absent"""

    @property
    def text_parts(self) -> tuple[str, ...]:
        """Names of the text encoders and tokenizers."""
        return tuple(f"{part}{suffix}" for part in ("text_encoder", "tokenizer") for suffix in self.encoders)

    @property
    def weighted_parts(self) -> tuple[str, ...]:
        """Names of the parts with weights."""
        return self.network, "vae", *(part for part in self.text_parts if part.startswith("text_encoder"))


KL, TINY, DC = "AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"
FAMILIES = (
    Family("Stable Diffusion", ("StableDiffusionPipeline", "LatentConsistencyModelPipeline"), "unet",
           ("UNet2DConditionModel",), (KL, TINY), ("",), "unet:StableDiffusion"),
    Family("Stable Diffusion XL", ("StableDiffusionXLPipeline",), "unet",
           ("UNet2DConditionModel",), (KL, TINY), ("", "_2"), "unet:StableDiffusion"),
    Family("Stable Diffusion 3", ("StableDiffusion3Pipeline",), "transformer",
           ("SD3Transformer2DModel",), (KL, TINY), ("", "_2", "_3"), "sd3:StableDiffusion3", optional=("_3",)),
    Family("FLUX", ("FluxPipeline",), "transformer",
           ("FluxTransformer2DModel",), (KL, TINY), ("", "_2"), "flux:Flux"),
    Family("PixArt", ("PixArtAlphaPipeline", "PixArtSigmaPipeline"), "transformer",
           ("PixArtTransformer2DModel", "Transformer2DModel"), (KL, TINY), ("",), "pixart:PixArt"),
    Family("Sana", ("SanaPipeline",), "transformer",
           ("SanaTransformer2DModel",), (DC,), ("",), "sana:Sana"),
    Family("DiT", ("DiTPipeline",), "transformer",
           ("DiTTransformer2DModel", "Transformer2DModel"), (KL, TINY), (), "dit:ClassConditional"),
)  # fmt: skip

BY_PIPELINE: Mapping[str, Family] = {pipeline: family for family in FAMILIES for pipeline in family.pipelines}


def family_of(pipeline: object) -> Family:
    """The family of a pipeline class. Raises ValueError if it is not supported."""
    # an index may name a module and a class in it
    if isinstance(pipeline, list) and pipeline and isinstance(pipeline[-1], str):
        pipeline = pipeline[-1]
    if not isinstance(pipeline, str) or pipeline not in BY_PIPELINE:
        raise ValueError(f"is a {pipeline}; supported pipelines: {', '.join(BY_PIPELINE)}")
    return BY_PIPELINE[pipeline]


def has_configuration(folder: Path, index: Mapping[str, Any]) -> bool:
    """Whether the configuration files of a pipeline's network and autoencoder are in a folder."""
    try:
        parts = (family_of(index.get("_class_name", "StableDiffusionPipeline")).network, "vae")
    except ValueError:
        return False
    return all((folder / part / "config.json").exists() for part in parts)
