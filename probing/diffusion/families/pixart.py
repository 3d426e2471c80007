"""PixArt-alpha and PixArt-sigma: a transformer with cross-attention to T5's text states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probing.diffusion.families.base import Conditions, TextTransformer, check_words, default_of, without_variance


@dataclass(frozen=True)
class PixArt(TextTransformer):
    """A PixArt pipeline."""

    @torch.inference_mode()
    def conditions(self, prompts: Sequence[str], guidance: float, conditional_only: bool = False) -> Conditions:
        """Text states and their mask, and the image's size and shape where the network takes them.

        Raises ValueError if the scenes model does not know a word.
        """
        if self.embedded:
            check_words(self.pipeline.tokenizer, prompts)
        doubled = self.doubles(guidance) and not conditional_only
        states, mask, empty_states, empty_mask = self.pipeline.encode_prompt(
            list(prompts),
            doubled,
            device=self.device,
            max_sequence_length=self.encoder_length(default_of(self.pipeline, "max_sequence_length")),
        )
        if doubled:
            states, mask = torch.cat([empty_states, states]), torch.cat([empty_mask, mask])
        sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if getattr(self.network, "use_additional_conditions", False):
            height, width = self.image_size
            resolution = torch.tensor([[height, width]], dtype=states.dtype, device=self.device)
            aspect = torch.tensor([[height / width]], dtype=states.dtype, device=self.device)
            sizes = {"resolution": resolution.repeat(len(states), 1), "aspect_ratio": aspect.repeat(len(states), 1)}
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask, "added_cond_kwargs": sizes}

    def predict(self, latents: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        """The transformer's prediction (n, C, h, w), without variances."""
        times = time.to(self.device).expand(len(latents))
        output = self.network(latents.to(self.network.dtype), timestep=times, **conditions).sample
        return without_variance(output, self.latent_shape[0]).float()
