"""Activation patching: replace an image's activations by those of another image of the same prompt.

This is an upper bound for edits at the same sites and steps: an edit changes only what a probe reads there, patching
changes everything that is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.diffusion.config import PAPER_STEPS
from probing.diffusion.families.base import LatentDiffusion
from probing.diffusion.hooks import record, rewrite
from probing.diffusion.sampling import sample
from probing.diffusion.sites import SiteSpec

Activations = Mapping[tuple[str, int], Tensor]
"""(site, step) -> activations (T, C) of the conditional half"""


@dataclass(frozen=True, eq=False)
class PatchSource:
    """A finished image and its recorded activations."""

    image: NDArray[np.uint8]
    """(H, W, 3)"""
    activations: Activations


def record_source(
    model: LatentDiffusion,
    prompt: str,
    seed: int,
    sites: Sequence[SiteSpec],
    recorded_steps: Sequence[int],
    *,
    guidance: float,
    steps: int = PAPER_STEPS,
) -> PatchSource:
    """Sample an image in `steps` steps and record the sites' activations in some of them."""
    recorded: dict[tuple[str, int], Tensor] = {}

    def around(step: int) -> AbstractContextManager[None]:
        def keep(site: SiteSpec, acts: Tensor) -> None:
            recorded[site.name, step] = acts[-1].clone()  # with guidance the conditional half comes last

        return record(model.network, sites, keep) if step in recorded_steps else nullcontext()

    finished = sample(model, [prompt], [seed], steps=steps, guidance=guidance, around=around)
    return PatchSource(finished.images.numpy()[0], recorded)


def patch(
    model: LatentDiffusion,
    prompt: str,
    seed: int,
    activations: Activations,
    sites: Sequence[SiteSpec],
    *,
    guidance: float,
    steps: int = PAPER_STEPS,
) -> NDArray[np.uint8]:
    """Sample an image (H, W, 3) of its own prompt and noise with a source's activations in place of its own.

    Raises ValueError if the latents are not finite.
    """
    doubled = model.doubles(guidance)
    replaced = {step for _, step in activations}

    def around(step: int) -> AbstractContextManager[None]:
        def replace(site: SiteSpec, acts: Tensor) -> Tensor:
            return activations[site.name, step].to(acts).expand_as(acts)

        return rewrite(model.network, sites, replace, guided=doubled) if step in replaced else nullcontext()

    finished = sample(model, [prompt], [seed], steps=steps, guidance=guidance, around=around)
    if not bool(torch.isfinite(finished.latents).all()):
        raise ValueError(f"sample with seed {seed}: the latents are not finite after activation patching")
    return finished.images.numpy()[0]
