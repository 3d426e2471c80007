"""Latents of renders, noised to the level of a denoising step.

Probes on their activations are scored against the renderer's own depth and masks, without a labelling network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from probing.diffusion import schedules
from probing.diffusion.families.base import LatentDiffusion
from probing.diffusion.sampling import generators, schedule
from probing.scenes.vae import encode


def clean_latents(model: LatentDiffusion, images: np.ndarray) -> Tensor:
    """Scaled latents (N, C, h, w) of images (N, H, W, 3), on the CPU."""
    return encode(model.vae, images, batch=16) * model.vae.config["scaling_factor"]


def noised(model: LatentDiffusion, clean: Tensor, seeds: Sequence[int], step: int, steps: int) -> Tensor:
    """Input latents (N, C, h, w) of a network call, counted from 1, in the scheduler's own scale.

    The noise depends on the seed alone, so it is the same at every step."""
    alpha, sigma = schedules.own_scale(schedule(model, steps), step - 1)
    noise = [torch.randn(clean.shape[1:], generator=draw) for draw in generators(seeds)]
    return alpha * clean + sigma * torch.stack(noise)
