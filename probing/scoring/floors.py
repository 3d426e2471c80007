"""Floors and ceilings of a grid: what is reached without reading any activation, and the best a grid allows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.dataset.split import Split
from probing.scoring import metrics
from probing.scoring.targets import DepthTargets, SaliencyTargets


@dataclass(frozen=True, eq=False)
class DepthFloor:
    """The mean depth map of the training samples as a prediction, and the grid oracle (cell means)."""

    mean_map: NDArray[np.float64]
    """(T) mean label of each cell over training samples"""
    rmse: NDArray[np.float64]
    """(test samples) error of the mean map"""
    oracle_rmse: NDArray[np.float64]
    """(test samples) error of each image's own cell means: no map constant on cells is better"""


@dataclass(frozen=True, eq=False)
class MaskFloor:
    """Masks that need no activation, and the grid oracle (whole cells, the densest first)."""

    mean_mask: NDArray[np.float64]
    """(T) mean foreground share of each cell over training samples"""
    threshold: float
    """share above which the mean mask is foreground, chosen for the highest mean Dice on train"""
    dice: NDArray[np.float64]
    """(test samples) Dice of the thresholded mean mask"""
    ap: NDArray[np.float64]
    """(test samples) average precision of the mean mask; NaN without foreground"""
    all_foreground: NDArray[np.float64]
    """(test samples) Dice of calling every pixel foreground"""
    oracle_dice: NDArray[np.float64]
    """(test samples) best Dice of any mask made of whole cells"""

    @property
    def best_dice(self) -> float:
        """The floor a probe has to pass: the better of mean mask and all foreground, mean over test images."""
        return float(max(self.dice.mean(), self.all_foreground.mean()))


def all_foreground(counts: Tensor, pixels: int) -> Tensor:
    """Dice (...) of calling every pixel foreground; counts: (..., T) foreground pixels of each cell."""
    return metrics.dice(torch.ones_like(counts, dtype=torch.bool), counts, pixels)


def mean_mask_scores(train: Tensor, test: Tensor, pixels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean mask (..., T), its threshold (...), its Dice and average precision (..., test samples).

    train, test: foreground counts (..., samples, T)."""
    score = train.double().mean(-2) / pixels
    threshold = metrics.best_threshold(score.unsqueeze(-2).expand(train.shape), train, pixels)
    spread = score.unsqueeze(-2).expand(test.shape)
    dice = metrics.dice(spread > threshold[..., None, None], test, pixels)
    return score, threshold, dice, metrics.average_precision(spread, test, pixels)


def depth_floor(targets: DepthTargets, split: Split) -> DepthFloor:
    """Floor and oracle of depth on one grid."""
    mean_map = targets.mean[split.train].mean(axis=0)
    mean, variance = targets.mean[split.test], targets.variance[split.test]
    error = np.square(mean_map - mean) + variance
    return DepthFloor(mean_map, np.sqrt(error.mean(axis=1)), np.sqrt(variance.mean(axis=1)))


def mask_floor(targets: SaliencyTargets, split: Split) -> MaskFloor:
    """Floor and oracle of saliency on one grid."""
    train, test = (torch.from_numpy(targets.counts[part]) for part in (split.train, split.test))
    score, threshold, dice, precision = mean_mask_scores(train, test, targets.pixels)
    return MaskFloor(
        mean_mask=score.numpy(),
        threshold=float(threshold),
        dice=dice.numpy(),
        ap=precision.numpy(),
        all_foreground=all_foreground(test, targets.pixels).numpy(),
        oracle_dice=metrics.oracle_dice(test, targets.pixels).numpy(),
    )
