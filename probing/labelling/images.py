"""Resizing and normalisation as the labellers' authors do them, and a labeller that works in batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class ImageLabeller:
    """A network as a labeller: uint8 images (n, H, W, 3) to labels (n, H, W)."""

    revision: str
    """identifies the exact weights"""
    label: Callable[[Tensor], Tensor]
    """uint8 images (b, 3, H, W) on the device to labels (b, H, W)"""
    device: torch.device
    dtype: DTypeLike
    """of the labels: uint8 for saliency, float32 for depth"""

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray:
        """Labels (n, H, W) of images uint8 (n, H, W, 3). Raises ValueError for other arrays."""
        check(images)
        labels = np.empty(images.shape[:3], self.dtype)
        size = 1 if self.device.type == "cpu" else 8
        for start in range(0, len(images), size):
            batch = torch.tensor(images[start : start + size], device=self.device)
            labels[start : start + size] = self.label(batch.permute(0, 3, 1, 2)).cpu().numpy()
        return labels


def check(images: NDArray) -> None:
    """Raise ValueError for anything but uint8 (n, H, W, 3)."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"expected uint8 images (n, H, W, 3), got {images.dtype} {images.shape}")


def resize_cubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Cubic interpolation like OpenCV's INTER_CUBIC: half-pixel centres, no antialias. It may leave the input's range.

    images: (b, c, H, W).
    """
    return F.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=False)


def resize_linear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Linear interpolation like OpenCV's INTER_LINEAR: half-pixel centres, no antialias. maps: (b, c, H, W)."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=False)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(x - mean) / std per colour, computed in float64 and returned as float32. images: (b, 3, H, W)."""
    centre, scale = (images.new_tensor(v, dtype=torch.float64)[:, None, None] for v in (mean, std))
    return ((images.double() - centre) / scale).float()


def minimal_size(height: int, width: int, target: int, multiple: int) -> tuple[int, int]:
    """Both sides scaled by whichever of target/height, target/width is nearer to 1, rounded to a multiple.

    The rule "minimal" of MiDaS; a 512 x 512 image becomes 384 x 384 for target 384.
    """
    scale = min(target / height, target / width, key=lambda s: abs(1 - s))
    return _nearest(scale * height, multiple), _nearest(scale * width, multiple)


def covering_size(height: int, width: int, target: int, multiple: int) -> tuple[int, int]:
    """The smallest size with both sides at least target and the image's aspect ratio, rounded to a multiple.

    The rule "lower bound" of Depth Anything; target must be divisible by multiple.
    """
    scale = max(target / height, target / width)
    high, wide = (max(_nearest(scale * side, multiple), target) for side in (height, width))
    return high, wide


def _nearest(side: float, multiple: int) -> int:
    """The nearest multiple (ties to the even one), at least one."""
    return max(round(side / multiple), 1) * multiple
