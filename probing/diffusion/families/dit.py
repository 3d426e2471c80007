"""DiT: a transformer conditioned on a class; a prompt is the name of a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor

from probing.diffusion.families.base import Conditions, LatentDiffusion, without_variance


@dataclass(frozen=True)
class ClassConditional(LatentDiffusion):
    """A DiT pipeline."""

    def conditions(self, prompts: Sequence[str], guidance: float, conditional_only: bool = False) -> Conditions:
        """Class numbers; those of the unconditional half are one beyond the last class.

        Raises ValueError for a prompt that is no class's name.
        """
        names = self.pipeline.labels
        for prompt in prompts:
            if prompt not in names:
                near = get_close_matches(prompt, names, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"such as {', '.join(list(names)[:5])}"
                raise ValueError(f"prompt {prompt[:200]!r}: not a class of this model; {hint}")
        labels = torch.tensor([names[prompt] for prompt in prompts], device=self.device)
        if self.doubles(guidance) and not conditional_only:
            labels = torch.cat([torch.full_like(labels, self.network.config["num_embeds_ada_norm"]), labels])
        return {"class_labels": labels}

    def predict(self, latents: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        """The transformer's prediction (n, C, h, w), without variances."""
        times = time.to(self.device).expand(len(latents))
        output = self.network(latents.to(self.network.dtype), timestep=times, **conditions).sample
        return without_variance(output, self.latent_shape[0]).float()
