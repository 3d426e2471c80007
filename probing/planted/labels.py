"""Labels of planted pictures, read exactly: the mask is in red, depth in green."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from probing.labelling import registry
from probing.labelling.images import check

if TYPE_CHECKING:
    import torch

NAME = "planted"
"""name of the labellers"""
COLOUR = {"saliency": 0, "depth": 1}
"""task -> colour channel"""


class PlantedLabeller:
    """Reads one task's label from its colour."""

    revision = "1"

    def __init__(self, task: str) -> None:
        self.task = task

    def __call__(self, images: NDArray[np.uint8]) -> NDArray:
        """Labels (n, H, W) of uint8 images (n, H, W, 3): uint8 saliency, or float32 relative inverse depth 0 to 1."""
        check(images)
        label = images[..., COLOUR[self.task]]
        return label.copy() if self.task == "saliency" else label.astype(np.float32) / 255


def load(_weights: str, _device: torch.device, task: str) -> PlantedLabeller:
    """A labeller; it needs no weights."""
    return PlantedLabeller(task)


def register() -> None:
    """Make `labels.saliency=planted` and `labels.depth=planted` known in this process."""
    for task in COLOUR:
        registry.register(task, NAME, partial(load, task=task))


def painted(mask: NDArray[np.bool_], near: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The picture (H, W, 3) of a mask and a map of what is near (H, W)."""
    return np.stack([mask, near, np.full_like(mask, False)], -1).astype(np.uint8) * 255
