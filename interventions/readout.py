"""Wanted labels pooled to the grids of sites, and how well a probe's reading agrees with them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interventions.counterfactual import scale_range
from interventions.steer import DepthObjective, MaskObjective, Objective
from probing.scoring import metrics
from probing.scoring.targets import Grid, pixel_ranks, pool_depth, pool_saliency


@dataclass(frozen=True, eq=False)
class Wanted:
    """The wanted labels of all trials on one grid."""

    objective: Objective
    """for the inner optimisation"""
    cells: Tensor
    """(trials, T) wanted foreground cells (bool), or wanted mean depth of cells (float64)"""

    def scores(self, reading: Tensor, trials: Tensor) -> tuple[Tensor, Tensor]:
        """Agreement and rank correlation (R) of readings (R, T) with the trials' wanted cells.

        Saliency: Dice over cells, both empty counts 1, and no correlation (NaN). Depth: RMSE and
        Spearman over cells.
        """
        cells = self.cells[trials]
        if cells.dtype == torch.bool:
            dice = metrics.dice(reading > 0, cells, 1)
            return dice, torch.full_like(dice, torch.nan)
        error = metrics.squared_error(reading, cells, torch.zeros_like(cells)).sqrt()
        ranks = metrics.cell_ranks(cells, 1)
        squares = (ranks - (cells.shape[1] + 1) / 2).square().sum(-1)
        return error, metrics.spearman(reading, 1, ranks, squares)


@dataclass(eq=False)
class Goals:
    """The wanted labels of all trials, pooled once for each grid."""

    task: str
    targets: NDArray
    """(trials, H, W) bool, or standardised depth before its scaling"""
    span: float
    """depth is scaled to plus and minus this"""
    like: Tensor
    """device and type of the optimisation"""
    pooled: dict[Grid, Wanted] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.task == "depth":
            self.scaled = scale_range(self.targets.astype(np.float32), self.span)
            self.ranks = pixel_ranks(self.scaled)

    def on(self, grid: Grid) -> Wanted:
        """The wanted labels on a grid of (height, width) cells."""
        if grid not in self.pooled:
            self.pooled[grid] = self._mask(grid) if self.task == "saliency" else self._depth(grid)
        return self.pooled[grid]

    def _mask(self, grid: Grid) -> Wanted:
        found = pool_saliency(self.targets.astype(np.uint8), grid)
        cells = torch.from_numpy(2 * found.counts > found.pixels).to(self.like.device)
        return Wanted(MaskObjective.of(found, self.like), cells)

    def _depth(self, grid: Grid) -> Wanted:
        found = pool_depth(self.scaled, grid, self.ranks)
        cells = torch.from_numpy(found.mean).to(self.like.device)
        return Wanted(DepthObjective.of(found, self.like), cells)
