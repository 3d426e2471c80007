"""Original samples, and the masks and depth maps of images that edits are scored by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from interventions.score import LabelledImage
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
    """(H, W) output of the labeller"""
    depth: NDArray[np.float32]
    """(H, W) relative inverse depth, output of the labeller"""


@dataclass(frozen=True)
class Labelling:
    """Turns images into masks and standardised depth."""

    saliency: Labeller
    """(n, H, W, 3) to uint8 (n, H, W)"""
    depth: Labeller
    """(n, H, W, 3) to float32 (n, H, W)"""
    threshold: int = 0
    """a pixel is foreground if its saliency is above this"""
    mean: float = 0.0
    """of relative inverse depth, over training samples"""
    std: float = 1.0
    """standard deviation of relative inverse depth, over training samples"""
    content: Callable[[NDArray[np.bool_], NDArray[np.uint8]], frozenset[str]] | None = None
    """mask (H, W) and image (H, W, 3) to names of what the image shows; None leaves column content_kept empty"""

    def of_original(self, original: Original) -> LabelledImage:
        """The original with its own labels, thresholded and standardised."""
        return self._labelled(original.image[None], original.saliency[None], original.depth[None])[0]

    def __call__(self, images: NDArray[np.uint8]) -> list[LabelledImage]:
        """Label images (n, H, W, 3)."""
        return self._labelled(images, self.saliency(images), self.depth(images))

    def _labelled(self, images: NDArray, saliency: NDArray, depth: NDArray) -> list[LabelledImage]:
        masks = saliency > self.threshold
        standardised = ((depth.astype(np.float32) - self.mean) / self.std).astype(np.float32)
        parts = zip(images, masks, standardised, strict=True)
        return [LabelledImage(i, m, d, self.content(m, i) if self.content else None) for i, m, d in parts]


def build_labelling(config: LabelConfig, mean: float, std: float, device: torch.device) -> Labelling:
    """The labellers of a configuration; the scenes labeller also names the colours of objects."""
    saliency = registry.build("saliency", config.saliency, config.saliency_weights, device)
    depth = registry.build("depth", config.depth, config.depth_weights, device)
    labelling = Labelling(saliency, depth, config.threshold, mean, std)
    if config.saliency != "scenes":
        return labelling
    from probing.scenes.evaluate import seen_colours

    return replace(labelling, content=seen_colours)
