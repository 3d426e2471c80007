"""FLUX.1: a transformer of joint and single blocks over 2 x 2 patches of the latents; guidance is embedded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probing.diffusion.families.base import Conditions, TextTransformer, default_of
from probing.diffusion.families.sd3 import shift_of


@dataclass(frozen=True)
class Flux(TextTransformer):
    """A FLUX pipeline."""

    def doubles(self, guidance: float) -> bool:
        """Never: the network is told the guidance (dev), or trained for one (schnell)."""
        return False

    @torch.inference_mode()
    def conditions(self, prompts: Sequence[str], guidance: float, conditional_only: bool = False) -> Conditions:
        """Text states, pooled text, the positions of both, and the guidance where the network takes it."""
        states, pooled, text_places = self.pipeline.encode_prompt(
            list(prompts), None, device=self.device,
            max_sequence_length=default_of(self.pipeline, "max_sequence_length"),
        )  # fmt: skip
        _, height, width = self.latent_shape
        places = self.pipeline._prepare_latent_image_ids(0, height // 2, width // 2, self.device, states.dtype)
        scale = torch.full([len(prompts)], guidance, device=self.device, dtype=torch.float32)
        return {
            "encoder_hidden_states": states,
            "pooled_projections": pooled,
            "txt_ids": text_places,
            "img_ids": places,
            "guidance": scale if self.network.config.guidance_embeds else None,
        }

    @staticmethod
    def timesteps(scheduler: Any, steps: int, tokens: int) -> dict[str, Any]:
        """Evenly spaced noise levels, shifted by image size."""
        if not type(scheduler).__name__.startswith("FlowMatchEuler"):
            return {}
        shift = shift_of(scheduler.config, tokens, 1.15)
        return {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": shift}

    def predict(self, latents: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        """The transformer's prediction (n, C, h, w)."""
        count, channels, height, width = latents.shape
        times = time.to(self.device).expand(count).to(latents.dtype) / 1000
        packed = self.pipeline._pack_latents(latents, count, channels, height, width).to(self.network.dtype)
        output = self.network(packed, timestep=times, **conditions).sample.float()
        patches = output.view(count, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return patches.reshape(count, channels, height, width)
