"""Renders noised to a step's level: images of the scenes world with the renderer's own depth and masks.

Probes on them are scored against the renderer, so no labelling network is involved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probing.diffusion.model import LatentDiffusion
from probing.diffusion.sampling import schedule
from probing.scenes.render import draw_scene, render
from probing.scenes.vae import encode
from probing.scenes.world import TRUTH_SEED


@dataclass(frozen=True, eq=False)
class Truth:
    """N renders with their true labels."""

    seeds: tuple[int, ...]
    """seeds of the scenes, and of their noise"""
    captions: tuple[str, ...]
    images: np.ndarray
    """uint8 (N, H, W, 3)"""
    depth: np.ndarray
    """float32 (N, H, W), relative inverse depth"""
    masks: np.ndarray
    """uint8 (N, H, W), share of a pixel that objects cover in 255ths"""


def draw(count: int, size: int) -> Truth:
    """The first `count` scenes for probing at `size` pixels a side."""
    seeds = tuple(range(TRUTH_SEED, TRUTH_SEED + count))
    made = [render(draw_scene(seed), size) for seed in seeds]
    return Truth(
        seeds,
        tuple(r.caption for r in made),
        np.stack([r.image for r in made]),
        np.stack([r.depth for r in made]),
        np.stack([(r.mask * 255).round() for r in made]).astype(np.uint8),
    )


def clean_latents(model: LatentDiffusion, images: np.ndarray) -> Tensor:
    """Scaled latents (N, C, h, w) of images (N, H, W, 3), on the CPU."""
    return encode(model.vae, images, batch=16) * model.vae.config["scaling_factor"]


def noised(model: LatentDiffusion, clean: Tensor, seeds: Sequence[int], step: int, steps: int) -> Tensor:
    """Input latents (N, C, h, w) of denoising step 1..steps: clean + sigma * noise, in the scheduler's units.

    The noise depends on the seed alone, so it is the same at every step."""
    sigma = float(schedule(model, steps).sigmas[step - 1])
    noise = [torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    return clean + sigma * torch.stack(noise)
