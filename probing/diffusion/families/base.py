"""What every family of models offers: conditions from prompts, one call of the network, decoding, and its sites."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probing.diffusion import schedules
from probing.diffusion.families.layouts import ModelLayout, layout
from probing.diffusion.families.registry import Family
from probing.diffusion.sites import ATTENTION, SiteSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conditions = dict[str, Any]
"""what a network takes beside latents and the time, for a whole batch"""
DECODED = 16
"""maximal number of latents that are decoded together"""
DECODED_PIXELS = 1 << 20
"""maximal number of pixels that are decoded together (a single larger image is decoded alone)"""


@dataclass(frozen=True)
class LatentDiffusion(ABC):
    """A latent diffusion model that is ready to run."""

    family: Family
    network: Any
    """denoises: a UNet or a transformer of diffusers"""
    vae: Any
    """autoencoder of diffusers"""
    scheduler_config: dict[str, Any]
    device: torch.device
    autocast: torch.dtype | None = None
    sampler: str = schedules.LMS
    """`sampling.scheduler`"""
    size: int = 0
    """side of an image in pixels; 0 is the model's own"""
    embedded: bool = False
    """whether its tokenizer is that of the scenes models, which knows only the grammar's words"""
    pipeline: Any = None
    """diffusers' pipeline, for what only it knows: how prompts are encoded; its network is not used"""

    @cached_property
    def layout(self) -> ModelLayout:
        """Sizes and sites."""
        return layout(self.family, self.network.config, self.vae.config, self.size)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a latent."""
        return self.layout.latent

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of an image in pixels."""
        return self.layout.image

    def sites(self, family: str = ATTENTION) -> tuple[SiteSpec, ...]:
        """Sites of a family, such as `attention`, `conv` or `vae`; empty if the model has none."""
        return self.layout.families.get(family, ())

    @property
    def recordable(self) -> tuple[SiteSpec, ...]:
        """Sites of all kinds that sampling can record, in order of execution."""
        return self.layout.recordable

    def doubles(self, guidance: float) -> bool:
        """Whether a batch is [unconditional, conditional]: with guidance that the network does not do itself."""
        return guidance > 1

    @abstractmethod
    def conditions(self, prompts: Sequence[str], guidance: float, conditional_only: bool = False) -> Conditions:
        """Conditions of a batch; of a doubled one, (2n, ...), unless `conditional_only`.

        Raises ValueError for a prompt that the model does not know.
        """

    @abstractmethod
    def predict(self, latents: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        """The network's prediction (n, C, h, w) for scaled latents (n, C, h, w) at one timestep (a number)."""

    @staticmethod
    def timesteps(scheduler: Any, steps: int, tokens: int) -> dict[str, Any]:
        """Arguments of the scheduler's `set_timesteps` beside the number of steps; tokens: of the image."""
        return {}

    def unscaled(self, latents: Tensor) -> Tensor:
        """Latents as the autoencoder's decoder takes them."""
        config: Any = self.vae.config
        raw = latents.to(self._vae_dtype)
        mean, deviation = (config.get(name) for name in ("latents_mean", "latents_std"))
        if mean is not None and deviation is not None:
            mean, deviation = (torch.tensor(x, dtype=raw.dtype, device=raw.device).view(1, -1, 1, 1)
                               for x in (mean, deviation))  # fmt: skip
            return raw * deviation / config["scaling_factor"] + mean
        raw = raw / config["scaling_factor"]
        return raw + config["shift_factor"] if config.get("shift_factor") else raw

    @property
    def _vae_dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Images uint8 (n, H, W, 3) on the CPU from scaled latents (n, C, h, w); memory is bounded."""
        batch = min(DECODED, max(1, DECODED_PIXELS // (self.image_size[0] * self.image_size[1])))
        raw = self.unscaled(latents)
        parts = [self.vae.decode(raw[i : i + batch]).sample for i in range(0, len(raw), batch)]
        images = torch.cat(parts).float().div(2).add(0.5).clamp(0, 1).mul(255).round()
        return images.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()

    def check_sites(self) -> None:
        """Raise ValueError if the network's own modules are not those that its configuration was read as."""
        modules = dict(self.network.named_modules())
        named = [site for name, sites in self.layout.families.items() if name != "vae" for site in sites]
        for site in named:
            if site.module not in modules:
                raise ValueError(f"its {self.family.network} has no {site.module}, which its config.json states")
        found = {
            path
            for path, module in modules.items()
            # in blocks that have only cross-attention, `attn1` looks at the text
            if path.rsplit(".", 1)[-1] in ("attn1", "attn") and not getattr(module, "is_cross_attention", False)
        }
        recorded = {site.module.removesuffix(".to_out.0") for site in self.sites()}
        if left := sorted(found - recorded):
            raise ValueError(f"its {self.family.network} has self-attention at {left[0]} that is not known here")


@dataclass(frozen=True)
class TextTransformer(LatentDiffusion):
    """A transformer whose prompts the pipeline encodes into a batch of [negative, positive] conditions."""

    def encoder_length(self, default: int) -> int:
        """Tokens of a prompt that are read: the pipeline's own number, if its encoder has as many positions."""
        positions = getattr(self.pipeline.text_encoder.config, "max_position_embeddings", None)
        return min(default, positions) if positions else default


def adapter_of(family: Family) -> type[LatentDiffusion]:
    """The class that runs a family's models."""
    module, _, name = family.adapter.partition(":")
    found: type[LatentDiffusion] = getattr(import_module(f"probing.diffusion.families.{module}"), name)
    return found


def check_words(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> None:
    """Raise ValueError if a scenes model does not know a word of the prompts."""
    known = set(tokenizer.get_vocab())
    for prompt in prompts:
        for word in prompt.lower().split():
            if word not in known:
                words = " ".join(sorted(w for w in known if not w.startswith("<")))
                raise ValueError(f"prompt {prompt!r}: the scenes model does not know {word!r}; its words: {words}")


def default_of(pipeline: Any, argument: str) -> Any:
    """The default that a pipeline's own call has for an argument."""
    return inspect.signature(type(pipeline).__call__).parameters[argument].default


def without_variance(output: Tensor, channels: int) -> Tensor:
    """The prediction (n, C, h, w) of a network that may also predict variances, which no sampler here uses."""
    return output[:, :channels] if output.shape[1] == 2 * channels else output
