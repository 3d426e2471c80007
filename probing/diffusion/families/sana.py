"""Sana: a transformer of linear attention, with cross-attention to Gemma's text states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probing.diffusion.families.base import Conditions, TextTransformer, default_of, without_variance


@dataclass(frozen=True)
class Sana(TextTransformer):
    """A Sana pipeline."""

    @torch.inference_mode()
    def conditions(self, prompts: Sequence[str], guidance: float, conditional_only: bool = False) -> Conditions:
        """Text states and their mask; prompts follow the pipeline's own instruction to the language model."""
        doubled = self.doubles(guidance) and not conditional_only
        states, mask, empty_states, empty_mask = self.pipeline.encode_prompt(
            list(prompts),
            doubled,
            device=self.device,
            max_sequence_length=default_of(self.pipeline, "max_sequence_length"),
            complex_human_instruction=default_of(self.pipeline, "complex_human_instruction"),
        )
        if doubled:
            states, mask = torch.cat([empty_states, states]), torch.cat([empty_mask, mask])
        return {"encoder_hidden_states": states.to(self.network.dtype), "encoder_attention_mask": mask}

    def predict(self, latents: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        """The transformer's prediction (n, C, h, w), without variances."""
        times = time.to(self.device).expand(len(latents)) * self.network.config.timestep_scale
        output = self.network(latents.to(self.network.dtype), timestep=times, **conditions).sample
        return without_variance(output, self.latent_shape[0]).float()
