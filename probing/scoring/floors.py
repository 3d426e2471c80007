"""Saliency scores that need no activation, from pooled masks alone: a probe has to beat them (numpy only).

Shapes: N samples, T patches of K pixels each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probing.dataset.split import Split
from probing.scoring.targets import SaliencyTargets

SMOOTH = 1e-8
"""added to both sides of Dice, as in the paper: an empty mask predicted for an empty label scores 1"""
QUANTILES = 64
"""candidate thresholds: quantiles of the training predictions, beside the argmax's zero"""


@dataclass(frozen=True, eq=False)
class MaskFloor:
    """Masks that need no activation, and their Dice."""

    mean_mask: NDArray[np.float64]
    """(T) mean foreground share of each patch over training samples"""
    threshold: float
    """share above which the mean mask is foreground, chosen for the highest mean Dice on train"""
    dice: NDArray[np.float64]
    """(test samples) Dice of the thresholded mean mask"""
    all_foreground: NDArray[np.float64]
    """(test samples) Dice of calling every pixel foreground"""

    @property
    def best_dice(self) -> float:
        """The better of mean mask and all foreground, mean over test images."""
        return float(max(self.dice.mean(), self.all_foreground.mean()))


def mask_floor(targets: SaliencyTargets, split: Split) -> MaskFloor:
    """Saliency floors of one grid on the test samples of `split`."""
    return count_floor(targets.counts[split.train], targets.counts[split.test], targets.pixels)


def count_floor(train: NDArray[np.int32], test: NDArray[np.int32], pixels: int) -> MaskFloor:
    """Saliency floors from the foreground pixels (N, T) of each patch, of training and of test samples."""
    mean_mask = train.astype(np.float64).mean(0) / pixels
    threshold = _best_threshold(mean_mask, train, pixels)
    everywhere = np.ones_like(mean_mask, dtype=bool)
    return MaskFloor(mean_mask, threshold, _dice(mean_mask > threshold, test, pixels), _dice(everywhere, test, pixels))


def _dice(chosen: NDArray[np.bool_], counts: NDArray[np.int32], pixels: int) -> NDArray[np.float64]:
    """Dice (...) of the masks `chosen` (..., T) on images with `counts` (..., T)."""
    overlap = np.where(chosen, counts, 0).sum(-1, dtype=np.float64)
    size = chosen.sum(-1) * float(pixels) + counts.sum(-1)
    return (2 * overlap + SMOOTH) / (size + SMOOTH)


def _best_threshold(mean_mask: NDArray[np.float64], train: NDArray[np.int32], pixels: int) -> float:
    """The threshold of `metrics.best_threshold`, if every training sample had the mean mask as its prediction."""
    samples, patches = train.shape
    order = np.argsort(mean_mask, kind="stable")
    ordered = mean_mask[order]
    quantiles = np.linspace(0, samples * patches - 1, QUANTILES).astype(np.int64) // samples
    candidates = np.concatenate([[0.0], ordered[quantiles]])
    below = np.searchsorted(ordered, candidates, side="right")
    foreground = np.pad(np.cumsum(train[:, order], axis=1, dtype=np.int64), ((0, 0), (1, 0)))
    total = foreground[:, -1:]
    size = (patches - below) * float(pixels) + total
    quality = (2 * (total - foreground[:, below]) + SMOOTH) / (size + SMOOTH)
    return float(candidates[quality.mean(0).argmax()])
