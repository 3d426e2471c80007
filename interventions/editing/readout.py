"""Target labels pooled to the grids of sites: the losses of the inner optimisation, and the agreement of readings.

Shapes: R rows (trial and control), T tokens (patches of the grid).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interventions.counterfactual import scale_range
from interventions.editing.steer import Gradient, Objective
from probing.scoring import metrics
from probing.scoring.targets import (
    DepthTargets,
    Grid,
    SaliencyTargets,
    pixel_ranks,
    pool_depth,
    pool_saliency,
    split_patches,
)

HUBER_DELTA = 1.0
"""where the Huber loss changes from quadratic to linear"""


def mask_objective(targets: SaliencyTargets, like: Tensor) -> Objective:
    """Cross-entropy over all pixels, from the foreground share of each patch; with device and dtype of `like`."""
    shares = torch.from_numpy(targets.counts.astype(np.float64) / targets.pixels).to(like)

    def gradient_of(trials: Tensor) -> Gradient:
        share = shares[trials]
        return lambda reading: reading.sigmoid().sub_(share).div_(share.shape[1])

    return gradient_of


def depth_objective(targets: DepthTargets, like: Tensor) -> Objective:
    """Huber loss over all pixels, from the sorted pixels of each patch; with device and dtype of `like`."""
    offsets = targets.values.astype(np.float64) - targets.mean[..., None]
    prefix_sums = np.pad(offsets.cumsum(axis=2), ((0, 0), (0, 0), (1, 0)))
    tensors = [torch.from_numpy(array).to(like) for array in (targets.mean, offsets, prefix_sums)]

    def gradient_of(trials: Tensor) -> Gradient:
        mean, values, sums = (tensor[trials].flatten(0, 1) for tensor in tensors)
        pixels, ends = values.shape[1], values.new_tensor([-HUBER_DELTA, HUBER_DELTA])

        def gradient(reading: Tensor) -> Tensor:
            # Pixels farther than delta below the reading contribute +delta, those above -delta, those between their
            # distance to it.
            offset = reading.reshape(-1, 1) - mean[:, None]
            places = torch.searchsorted(values, offset + ends)
            below, not_above = places.to(offset.dtype).unbind(1)
            first, last = sums.gather(1, places).unbind(1)
            total = (below - (pixels - not_above)) * HUBER_DELTA + (not_above - below) * offset[:, 0] - (last - first)
            return total.div_(pixels * reading.shape[1]).view(reading.shape)

        return gradient

    return gradient_of


@dataclass(frozen=True, eq=False)
class GridTargets:
    """The target labels of all trials on one grid."""

    patches: Tensor
    """(trials, T) whether a patch is foreground (bool), or mean depth of each patch (float64)"""
    objective: Objective
    """of the inner optimisation"""
    change: Tensor
    """(trials, T) label of a patch minus that of the unedited image: shares of object, or standardised depth"""

    def scores(self, reading: Tensor, trials: Tensor) -> tuple[Tensor, Tensor]:
        """Agreement and rank correlation (R) of readings (R, T) with the patches of the trials (R).

        Saliency: Dice over patches, 1 if both are empty, and no correlation (NaN). Depth: RMSE and Spearman.
        """
        patches = self.patches[trials]
        if patches.dtype == torch.bool:
            dice = metrics.dice(reading > 0, patches, 1)
            return dice, torch.full_like(dice, torch.nan)
        error = metrics.squared_error(reading, patches, torch.zeros_like(patches)).sqrt()
        ranks = metrics.patch_ranks(patches, 1)
        squares = (ranks - (patches.shape[1] + 1) / 2).square().sum(-1)
        return error, metrics.spearman(reading, 1, ranks, squares)


@dataclass(eq=False)
class TargetLabels:
    """The target labels of all trials, pooled once for each grid."""

    task: str
    labels: NDArray
    """(trials, H, W) bool, or standardised depth before its scaling"""
    span: float
    """depth is scaled to plus and minus this"""
    like: Tensor
    """device and dtype of the optimisation"""
    original: NDArray
    """(H, W) label of the unedited image, standardised depth before any scaling"""
    pooled: dict[Grid, GridTargets] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.task == "depth":
            self.scaled = scale_range(self.labels.astype(np.float32), self.span)
            self.ranks = pixel_ranks(self.scaled)

    def on_grid(self, grid: Grid) -> GridTargets:
        """The target labels on a grid of (height, width) patches."""
        if grid not in self.pooled:
            targets: tuple[NDArray, Objective]
            if self.task == "saliency":
                masks = pool_saliency(self.labels.astype(np.uint8), grid)
                targets = 2 * masks.counts > masks.pixels, mask_objective(masks, self.like)
            else:
                depth = pool_depth(self.scaled, grid, self.ranks)
                targets = depth.mean, depth_objective(depth, self.like)
            after, before = (
                split_patches(labels, grid).mean(axis=2, dtype=np.float64)
                for labels in (self.labels, self.original[None])
            )
            patches = torch.from_numpy(targets[0]).to(self.like.device)
            self.pooled[grid] = GridTargets(patches, targets[1], torch.from_numpy(after - before).to(self.like))
        return self.pooled[grid]
