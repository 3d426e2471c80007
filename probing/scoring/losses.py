"""Losses over full-size pixels, computed per patch from pooled labels: exact values and exact gradients.

Every function returns the mean over the K pixels of each patch and its derivative by the patch's prediction.
Shapes: S steps, H heads (probes of one task), n patches of a batch; labels broadcast over the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probing.scoring.targets import DepthTargets


def crossentropy(logit: Tensor, fraction: Tensor) -> tuple[Tensor, Tensor]:
    """Two-class cross-entropy of the logit difference (foreground minus background), label = foreground fraction."""
    value = torch.nn.functional.softplus(logit, threshold=60.0).addcmul_(logit, fraction, value=-1)
    return value, torch.sigmoid(logit).sub_(fraction)


@dataclass(frozen=True, eq=False)
class PatchPixels:
    """The depth pixels of R patches minus each patch's mean, ascending, with running sums, on one device."""

    size: int
    """K, pixels in one patch"""
    width: int
    """K rounded up to a power of two"""
    values: Tensor
    """(R * width) pixel minus patch mean, ascending within a patch, padded with infinity"""
    sums: Tensor
    """(R * (K + 1)) sum of the first 0..K values of each patch"""
    squares: Tensor
    """(R * (K + 1)) the same of squares"""

    def count_below(self, rows: Tensor, bound: Tensor) -> Tensor:
        """Number of pixels of patches `rows` below `bound` (same shape): bisection, all queries at once."""
        start = rows * self.width
        position, step = start, self.width >> 1
        while step:
            position = position.add(self.values.take(position + (step - 1)) < bound, alpha=step)
            step >>= 1
        return position.add(self.values.take(position) < bound).sub_(start)


_PATCHES = 1 << 14
"""patches that patch_pixels converts at once, to save memory"""


def patch_pixels(targets: DepthTargets, dtype: torch.dtype, device: torch.device) -> PatchPixels:
    """Sorted pixels and running sums of all samples, made once per targets, type and device."""
    return targets.cached(("pixels", dtype, device), lambda: _make_pixels(targets, dtype, device))


def _make_pixels(targets: DepthTargets, dtype: torch.dtype, device: torch.device) -> PatchPixels:
    size = targets.pixels
    width = 1 << (size - 1).bit_length()
    raw, mean = (torch.from_numpy(a) for a in (targets.values.reshape(-1, size), targets.mean.reshape(-1, 1)))
    values = torch.full((len(raw), width), torch.inf, dtype=dtype)
    sums, squares = (torch.zeros(len(raw), size + 1, dtype=dtype) for _ in range(2))
    for start in range(0, len(raw), _PATCHES):
        block = slice(start, start + _PATCHES)
        centred = raw[block].double().sub_(mean[block])
        values[block, :size] = centred
        sums[block, 1:] = centred.cumsum(1)
        squares[block, 1:] = centred.square_().cumsum(1)
    return PatchPixels(size, width, *(part.view(-1).to(device) for part in (values, sums, squares)))


def huber(
    offset: Tensor, shape: Sequence[Tensor], rows: Tensor, pixels: PatchPixels, delta: float
) -> tuple[Tensor, Tensor]:
    """Huber loss over each patch's pixels, exactly: half a square, less half the squared excess over delta.

    offset: (S, H, n) prediction minus patch mean. shape: centre and half of the range of the patch's centred
    pixels, and half their variance, each (H, n). rows: (H, n) int64 index of each patch in `pixels`.
    Patches whose pixels are all within delta, or all beyond it on one side, need no pixels; of the others,
    few after the first epochs, the pixels beyond delta are counted in sorted order."""
    centre, half, spread = shape
    centred = offset - centre
    reach = centred.abs().sub_(delta)
    gradient = offset.clamp(-delta, delta)
    value = torch.add(offset, gradient, alpha=-0.5).mul_(gradient).add_(torch.where(reach < 0, spread, 0.0))
    mixed = (reach < half).logical_and_(reach > -half).view(-1).nonzero().squeeze(1)
    if len(mixed):
        patch = mixed % rows.numel()
        some, outer = offset.view(-1).take(mixed), half.view(-1).take(patch).sub_(delta)
        exact = _huber_of_pixels(some, centred.view(-1).take(mixed), outer, rows.view(-1).take(patch), pixels, delta)
        value.view(-1).index_copy_(0, mixed, exact[0].add_(spread.reshape(-1).take(patch)))
        gradient.view(-1).index_copy_(0, mixed, exact[1])
    return value, gradient


def _huber_of_pixels(
    offset: Tensor, centred: Tensor, outer: Tensor, rows: Tensor, pixels: PatchPixels, delta: float
) -> tuple[Tensor, Tensor]:
    """Loss (less half the patch's variance) and gradient of m patches some of whose pixels may lie beyond delta.

    offset, centred: prediction minus the patch's mean, and minus the centre of its range; outer: half its range less
    delta. Most patches reach beyond delta on one side only, so each side is looked up on its own."""
    count = len(offset)
    beyond = torch.cat([centred + outer, outer - centred]).gt_(0).nonzero().squeeze(1)
    patch, low = beyond % count, beyond < count
    excess, slope = _excess(offset.take(patch), low, rows.take(patch), pixels, delta)
    value = (offset * offset).index_add_(0, patch, excess, alpha=-1).mul_(0.5)
    return value, offset.clone().index_add_(0, patch, slope, alpha=-1)


def _excess(offset: Tensor, low: Tensor, rows: Tensor, pixels: PatchPixels, delta: float) -> tuple[Tensor, Tensor]:
    """Mean over a patch's pixels of the squared and of the signed part by which |offset - pixel| exceeds delta.

    offset, rows: (m). low: (m) whether the pixels below the prediction are meant, or those above."""
    size = pixels.size
    bound = torch.where(low, offset - delta, offset + delta)
    count = pixels.count_below(rows, bound)
    first = rows * (size + 1)
    sums, squares = pixels.sums.take(first + count), pixels.squares.take(first + count)
    last = first.add_(size)
    count = torch.where(low, count, size - count).to(offset.dtype)
    sums = torch.where(low, sums, pixels.sums.take(last) - sums)
    squares = torch.where(low, squares, pixels.squares.take(last) - squares)
    signed = bound * count - sums
    return (bound * (signed - sums)).add_(squares).div_(size), signed.div_(size)


def smoothness(prediction: Tensor, across: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Edge-aware smoothness (appendix F) of the enlarged predictions (S, H, b, h, w).

    across, down: (b, h, w-1) and (b, h-1, w) border weights from `pool_edges`. Returns the mean over the b images
    (S, H) and the derivative of that mean by every patch's prediction."""
    right, below = prediction.diff(dim=-1), prediction.diff(dim=-2)
    value = (right.abs() * across).sum((-3, -2, -1)) + (below.abs() * down).sum((-3, -2, -1))
    gradient = torch.zeros_like(prediction)
    right_slope, below_slope = right.sign() * across, below.sign() * down
    gradient[..., 1:] += right_slope
    gradient[..., :-1] -= right_slope
    gradient[..., 1:, :] += below_slope
    gradient[..., :-1, :] -= below_slope
    images = prediction.shape[2]
    return value / images, gradient / images
