"""Losses over full-size pixels, computed per cell from pooled labels: exact values and exact gradients.

Every function gives the mean over the K pixels of each cell and its derivative by the cell's prediction.
Shapes: S steps, K' heads (probes of one task), n cells of a batch; labels broadcast over the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probing.scoring.targets import DepthTargets


def crossentropy(logit: Tensor, fraction: Tensor) -> tuple[Tensor, Tensor]:
    """Two-class cross-entropy of the logit difference (foreground minus background), label = foreground share."""
    value = torch.nn.functional.softplus(logit, threshold=60.0).addcmul_(logit, fraction, value=-1)
    return value, torch.sigmoid(logit).sub_(fraction)


@dataclass(frozen=True, eq=False)
class CellPixels:
    """The depth pixels of R cells about each cell's mean, ascending, with running sums, on one device."""

    size: int
    """pixels in one cell, P"""
    width: int
    """P rounded up to a power of two"""
    values: Tensor
    """(R * width) pixel minus cell mean, ascending within a cell, then infinity"""
    sums: Tensor
    """(R * (P + 1)) sum of the first 0..P values of each cell"""
    squares: Tensor
    """(R * (P + 1)) the same of squares"""

    def below(self, rows: Tensor, bound: Tensor) -> Tensor:
        """How many pixels of cells `rows` lie below `bound` (same shape): bisection, all queries at once."""
        start = rows * self.width
        found, step = start, self.width >> 1
        while step:
            found = found.add(self.values.take(found + (step - 1)) < bound, alpha=step)
            step >>= 1
        return found.add(self.values.take(found) < bound).sub_(start)


_CELLS = 1 << 14
"""cells that cell_pixels treats at once, to stay small in memory"""


def cell_pixels(targets: DepthTargets, dtype: torch.dtype, device: torch.device) -> CellPixels:
    """The sorted pixels and running sums of all samples, made once per targets, type and device."""
    key = ("pixels", dtype, device)
    if key not in targets.cache:
        targets.cache[key] = _make_pixels(targets, dtype, device)
    found = targets.cache[key]
    assert isinstance(found, CellPixels)
    return found


def _make_pixels(targets: DepthTargets, dtype: torch.dtype, device: torch.device) -> CellPixels:
    size = targets.pixels
    width = 1 << (size - 1).bit_length()
    raw, mean = (torch.from_numpy(a) for a in (targets.values.reshape(-1, size), targets.mean.reshape(-1, 1)))
    values = torch.full((len(raw), width), torch.inf, dtype=dtype)
    sums, squares = (torch.zeros(len(raw), size + 1, dtype=dtype) for _ in range(2))
    for start in range(0, len(raw), _CELLS):
        block = slice(start, start + _CELLS)
        centred = raw[block].double().sub_(mean[block])
        values[block, :size] = centred
        sums[block, 1:] = centred.cumsum(1)
        squares[block, 1:] = centred.square_().cumsum(1)
    return CellPixels(size, width, *(part.view(-1).to(device) for part in (values, sums, squares)))


def huber(
    offset: Tensor, shape: Sequence[Tensor], rows: Tensor, pixels: CellPixels, delta: float
) -> tuple[Tensor, Tensor]:
    """Huber loss of each cell's pixels, exactly: half a square, less half the squared excess over delta.

    offset: (S, K', n) prediction minus cell mean. shape: centre and half of the range of the cell's centred
    pixels, and half their variance, each (K', n). rows: (K', n) int64 numbers of the cells in `pixels`.
    Cells whose pixels are all within delta, or all beyond it on one side, need no pixels; of the others,
    few after the first epochs, the pixels beyond delta are counted in sorted order."""
    centre, half, spread = shape
    moved = offset - centre
    reach = moved.abs().sub_(delta)
    gradient = offset.clamp(-delta, delta)
    value = torch.add(offset, gradient, alpha=-0.5).mul_(gradient).add_(torch.where(reach < 0, spread, 0.0))
    mixed = (reach < half).logical_and_(reach > -half).view(-1).nonzero().squeeze(1)
    if len(mixed):
        cell = mixed % rows.numel()
        at, outer = offset.view(-1).take(mixed), half.view(-1).take(cell).sub_(delta)
        exact = _huber_of_pixels(at, moved.view(-1).take(mixed), outer, rows.view(-1).take(cell), pixels, delta)
        value.view(-1).index_copy_(0, mixed, exact[0].add_(spread.reshape(-1).take(cell)))
        gradient.view(-1).index_copy_(0, mixed, exact[1])
    return value, gradient


def _huber_of_pixels(
    offset: Tensor, moved: Tensor, outer: Tensor, rows: Tensor, pixels: CellPixels, delta: float
) -> tuple[Tensor, Tensor]:
    """Loss (less half the cell's variance) and gradient of m cells of which some pixels may lie beyond delta.

    offset, moved: prediction from the cell's mean and from the centre of its range; outer: half its range less
    delta. Most cells reach beyond delta on one side only, so the sides are looked up one by one."""
    count = len(offset)
    beyond = torch.cat([moved + outer, outer - moved]).gt_(0).nonzero().squeeze(1)
    cell, low = beyond % count, beyond < count
    excess, pull = _excess(offset.take(cell), low, rows.take(cell), pixels, delta)
    value = (offset * offset).index_add_(0, cell, excess, alpha=-1).mul_(0.5)
    return value, offset.clone().index_add_(0, cell, pull, alpha=-1)


def _excess(offset: Tensor, low: Tensor, rows: Tensor, pixels: CellPixels, delta: float) -> tuple[Tensor, Tensor]:
    """Mean over a cell's pixels of the squared and of the signed part by which |offset - pixel| exceeds delta.

    offset, rows: (m). low: (m) whether pixels below the prediction are meant, or those above."""
    size = pixels.size
    bound = torch.where(low, offset - delta, offset + delta)
    count = pixels.below(rows, bound)
    first = rows * (size + 1)
    sums, squares = pixels.sums.take(first + count), pixels.squares.take(first + count)
    last = first.add_(size)
    count = torch.where(low, count, size - count).to(offset.dtype)
    sums = torch.where(low, sums, pixels.sums.take(last) - sums)
    squares = torch.where(low, squares, pixels.squares.take(last) - squares)
    pull = bound * count - sums
    return (bound * (pull - sums)).add_(squares).div_(size), pull.div_(size)


def smoothness(prediction: Tensor, across: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Edge-aware smoothness of enlarged predictions (S, K', b, h, w), appendix F.

    across, down: (b, h, w-1) and (b, h-1, w) border weights as pool_edges gives them. Returns the mean over
    the b images (S, K') and the derivative of that mean by every cell's prediction."""
    right, below = prediction.diff(dim=-1), prediction.diff(dim=-2)
    value = (right.abs() * across).sum((-3, -2, -1)) + (below.abs() * down).sum((-3, -2, -1))
    gradient = torch.zeros_like(prediction)
    pull, drop = right.sign() * across, below.sign() * down
    gradient[..., 1:] += pull
    gradient[..., :-1] -= pull
    gradient[..., 1:, :] += drop
    gradient[..., :-1, :] -= drop
    images = prediction.shape[2]
    return value / images, gradient / images
