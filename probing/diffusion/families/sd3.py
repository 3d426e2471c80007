"""Stable Diffusion 3 and 3.5: a transformer that attends to text and image jointly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probing.diffusion.families.base import Conditions, TextTransformer, default_of


def shift_of(config: Any, tokens: int, most: float) -> float:
    """Shift of the noise levels for a number of image tokens: linear in it, as in the pipelines of these models.

    config: the scheduler's. most: the pipeline's own default of `max_shift`.
    """
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    start, end = config.get("base_shift", 0.5), config.get("max_shift", most)
    slope = (end - start) / (high - low)
    return tokens * slope + start - slope * low


@dataclass(frozen=True)
class StableDiffusion3(TextTransformer):
    """A Stable Diffusion 3 pipeline."""

    @torch.inference_mode()
    def conditions(self, prompts: Sequence[str], guidance: float, conditional_only: bool = False) -> Conditions:
        """Text states and pooled text."""
        doubled = self.doubles(guidance) and not conditional_only
        states, empty_states, pooled, empty_pooled = self.pipeline.encode_prompt(
            list(prompts),
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=doubled,
            max_sequence_length=default_of(self.pipeline, "max_sequence_length"),
        )
        if doubled:
            states, pooled = torch.cat([empty_states, states]), torch.cat([empty_pooled, pooled])
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    @staticmethod
    def timesteps(scheduler: Any, steps: int, tokens: int) -> dict[str, Any]:
        """The shift of noise levels by image size, where the scheduler's file asks for it."""
        if not scheduler.config.get("use_dynamic_shifting"):
            return {}
        return {"mu": shift_of(scheduler.config, tokens, 1.16)}

    def predict(self, latents: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        """The transformer's prediction (n, C, h, w)."""
        times = time.to(self.device).expand(len(latents))
        output = self.network(latents.to(self.network.dtype), timestep=times, **conditions).sample
        return output.float()
