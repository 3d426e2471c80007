"""Stable Diffusion 1.x, 2.x and XL, and their distilled kin: a UNet with cross-attention to CLIP's text states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probing.diffusion.families.base import Conditions, LatentDiffusion, check_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder with its tokenizer."""

    encoder: Any
    tokenizer: PreTrainedTokenizerBase

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (n, positions), padded and truncated to the encoder's length."""
        length = self.tokenizer.model_max_length
        options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(list(prompts), **options).input_ids


@dataclass(frozen=True)
class StableDiffusion(LatentDiffusion):
    """A UNet with one text encoder, or the two of XL."""

    text: tuple[TextEncoder, ...] = ()
    empty_is_zero: bool = False
    """XL: whether zeros replace the encoded empty prompt in the unconditional half"""

    @property
    def guidance_width(self) -> int | None:
        """Width of the embedded guidance of latent consistency models; None without."""
        return self.network.config.get("time_cond_proj_dim")

    def doubles(self, guidance: float) -> bool:
        """Whether a batch has two halves: not for latent consistency models, which embed the guidance."""
        return guidance > 1 and self.guidance_width is None

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Hidden states (n, positions, width) of the first text encoder.

        Raises ValueError if the scenes model does not know a word.
        """
        first = self.text[0]
        if self.embedded:
            check_words(first.tokenizer, prompts)
        return first.encoder(first.tokens(prompts).to(self.device))[0]

    @torch.inference_mode()
    def conditions(self, prompts: Sequence[str], guidance: float, conditional_only: bool = False) -> Conditions:
        """Text states, and for XL also the pooled text and the image size; of a doubled batch (2n, ...)."""
        doubled = self.doubles(guidance) and not conditional_only
        added: Conditions = {}
        if self.guidance_width is not None:
            scale = torch.full((len(prompts),), guidance - 1, device=self.device)
            added["timestep_cond"] = _guidance_embedding(scale, self.guidance_width).to(self.network.dtype)
        if len(self.text) == 1:
            states = self.encode(prompts)
            if doubled:
                states = torch.cat([self.encode([""]).expand_as(states), states])
            return {"encoder_hidden_states": states, **added}
        states, pooled = self._encode_twice(prompts)
        if doubled:
            if self.empty_is_zero:
                empty_states, empty_pooled = torch.zeros_like(states), torch.zeros_like(pooled)
            else:
                empty_states, empty_pooled = self._encode_twice([""])
            states = torch.cat([empty_states.expand_as(states), states])
            pooled = torch.cat([empty_pooled.expand_as(pooled), pooled])
        # original size, crop offset and target size, as in diffusers' XL pipeline
        size = [*self.image_size, 0, 0, *self.image_size]
        time_ids = torch.tensor(size, dtype=states.dtype, device=states.device).expand(len(states), -1)
        added["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": time_ids}
        return {"encoder_hidden_states": states, **added}

    def _encode_twice(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """XL's penultimate states of both encoders (n, positions, sum of widths), and pooled text (n, width)."""
        outputs = [t.encoder(t.tokens(prompts).to(self.device), output_hidden_states=True) for t in self.text]
        return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[1][0]

    def predict(self, latents: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        """The UNet's prediction (n, C, h, w)."""
        return self.network(latents.to(self.network.dtype), time.to(self.device), **conditions).sample.float()


def _guidance_embedding(scale: Tensor, width: int) -> Tensor:
    """Sines and cosines (n, width) of a guidance scale (n) less one, as latent consistency models take it."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=scale.device) * -(torch.log(torch.tensor(10_000.0)) / (half - 1)))
    angles = 1000.0 * scale[:, None] * frequencies[None]
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))
