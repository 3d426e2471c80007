"""Puts another image's whole activations in place of an image's own: the most that an edit there can do.

An edit changes what a probe reads at some sites and steps. If not even everything that another image holds there
moves the picture towards that image, no edit at these places can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interventions.config import STEPS
from probing.diffusion.hooks import record, rewrite
from probing.diffusion.model import LatentDiffusion
from probing.diffusion.sampling import sample
from probing.diffusion.sites import SiteSpec

Given = Mapping[tuple[str, int], Tensor]
"""(site, step) -> activations (T, C) of the conditional half"""


@dataclass(frozen=True, eq=False)
class PatchSource:
    """A finished image and what its network held."""

    image: NDArray[np.uint8]
    """(H, W, 3)"""
    given: Given


def record_source(
    model: LatentDiffusion,
    prompt: str,
    seed: int,
    sites: Sequence[SiteSpec],
    steps: Sequence[int],
    *,
    guidance: float,
    total: int = STEPS,
) -> PatchSource:
    """Samples an image and keeps the sites' activations of the given steps."""
    given: dict[tuple[str, int], Tensor] = {}

    @contextmanager
    def around(step: int) -> Iterator[None]:
        def keep(site: SiteSpec, acts: Tensor) -> None:
            given[site.name, step] = acts[-1].clone()  # with guidance the conditional half comes last

        if step not in steps:
            yield
            return
        with record(model.unet, sites, keep):
            yield

    finished = sample(model, [prompt], [seed], steps=total, guidance=guidance, around=around)
    return PatchSource(finished.images.numpy()[0], given)


def patch(
    model: LatentDiffusion,
    prompt: str,
    seed: int,
    given: Given,
    sites: Sequence[SiteSpec],
    *,
    guidance: float,
    total: int = STEPS,
) -> NDArray[np.uint8]:
    """Samples an image (H, W, 3) of its own prompt and noise with a donor's activations in place of its own.

    Raises ValueError where the latents are not finite.
    """
    steps = {step for _, step in given}

    @contextmanager
    def around(step: int) -> Iterator[None]:
        def replace(site: SiteSpec, acts: Tensor) -> Tensor:
            return given[site.name, step].to(acts).expand_as(acts)

        if step not in steps:
            yield
            return
        with rewrite(model.unet, sites, replace, guided=guidance > 1):
            yield

    finished = sample(model, [prompt], [seed], steps=total, guidance=guidance, around=around)
    if not bool(torch.isfinite(finished.latents).all()):
        raise ValueError(f"sample with seed {seed}: the latents are not finite after the transplant")
    return finished.images.numpy()[0]
