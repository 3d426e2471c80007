"""Unedited samples, and how images become the masks and depth maps that edits are scored by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from interventions.score import Seen
from probing.diffusion.model import LatentDiffusion
from probing.diffusion.sampling import sample
from probing.labelling import registry
from probing.labelling.registry import LabelConfig

Labeller = Callable[[NDArray[np.uint8]], NDArray]


@dataclass(frozen=True, eq=False)
class Original:
    """An unedited sample with its raw labels."""

    prompt: str
    seed: int
    """of its initial noise"""
    image: NDArray[np.uint8]
    """(H, W, 3)"""
    saliency: NDArray[np.uint8]
    """(H, W) as the labeller gave it"""
    depth: NDArray[np.float32]
    """(H, W) relative inverse depth as the labeller gave it"""


@dataclass(frozen=True)
class Labelling:
    """Turns images into masks and standardised depth."""

    saliency: Labeller
    """(n, H, W, 3) to uint8 (n, H, W)"""
    depth: Labeller
    """(n, H, W, 3) to float32 (n, H, W)"""
    threshold: int = 0
    """a pixel is foreground where its saliency is above this"""
    mean: float = 0.0
    """of relative inverse depth, over training samples"""
    deviation: float = 1.0
    """likewise"""
    content: Callable[[NDArray[np.bool_], NDArray[np.uint8]], frozenset[str]] | None = None
    """mask (H, W) and image (H, W, 3) to names of what is there; None leaves column content_kept empty"""

    def seen(self, original: Original) -> Seen:
        """The unedited sample made comparable."""
        return self._seen(original.image[None], original.saliency[None], original.depth[None])[0]

    def __call__(self, images: NDArray[np.uint8]) -> list[Seen]:
        """Labels of images (n, H, W, 3)."""
        return self._seen(images, self.saliency(images), self.depth(images))

    def _seen(self, images: NDArray, saliency: NDArray, depth: NDArray) -> list[Seen]:
        masks = saliency > self.threshold
        standardised = ((depth.astype(np.float32) - self.mean) / self.deviation).astype(np.float32)
        parts = zip(images, masks, standardised, strict=True)
        return [Seen(i, m, d, self.content(m, i) if self.content else None) for i, m, d in parts]


def build_labelling(config: LabelConfig, mean: float, deviation: float, device: torch.device) -> Labelling:
    """The labellers of a configuration; with the scenes labeller also the objects' colours."""
    saliency = registry.build("saliency", config.saliency, config.saliency_weights, device)
    depth = registry.build("depth", config.depth, config.depth_weights, device)
    if config.saliency != "scenes":
        return Labelling(saliency, depth, config.threshold, mean, deviation)
    from probing.scenes.evaluate import seen_colours

    return Labelling(saliency, depth, config.threshold, mean, deviation, seen_colours)


def fresh_original(
    model: LatentDiffusion, labelling: Labelling, prompt: str, seed: int, *, guidance: float, steps: int = 15
) -> Original:
    """Samples one prompt and seed without any edit and labels it."""
    images = sample(model, [prompt], [seed], steps=steps, guidance=guidance).images.numpy()
    return Original(prompt, seed, images[0], labelling.saliency(images)[0], labelling.depth(images)[0])
