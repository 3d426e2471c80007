"""Moves activations until a linear probe reads the wanted label: the inner Adam, as a recursion on readings.

A linear probe has one direction w (of two outputs, their difference), so the gradient of any loss at a token
is g w with one number g per token. Adam's moments are then w M and w^2 V with two numbers per token, and its
step of channel c is sign(w_c) a / (s + e_c), where a = lr M', s = sqrt(V'), e_c = epsilon / |w_c| (primes:
bias-corrected). Neither the loss nor the step needs the channels: the whole optimisation runs on readings,
and channels are filled in once at the end. As 1 / (s + e) is smooth in log e, it is evaluated at a few
Chebyshev nodes and interpolated to the channels, exact to rounding.

Shapes: R rows (trial and control), T tokens, C channels, P probes, K nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.scoring.targets import DepthTargets, SaliencyTargets


@dataclass(frozen=True)
class Adam:
    """The inner optimiser (section 5.1; its other parameters are Adam's defaults)."""

    lr: float
    """step size in units of the activation"""
    iterations: int
    """how many steps"""
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


Gradient = Callable[[Tensor], Tensor]
"""readings (R, T) to the derivative by them of a loss that is a mean over each row's own pixels"""


class Objective(Protocol):
    """The wanted label of every trial, pooled to a site's grid."""

    def gradient(self, trials: Tensor) -> Gradient:
        """For rows of the given trials (R)."""
        ...


@dataclass(frozen=True, eq=False)
class MaskObjective:
    """Cross-entropy over all pixels of the moved mask, from foreground shares."""

    share: Tensor
    """(trials, T) foreground share of each cell"""

    @staticmethod
    def of(targets: SaliencyTargets, like: Tensor) -> MaskObjective:
        """On the device and in the type of `like`."""
        share = targets.counts.astype(np.float64) / targets.pixels
        return MaskObjective(torch.from_numpy(share).to(like))

    def gradient(self, trials: Tensor) -> Gradient:
        share = self.share[trials]
        return lambda reading: reading.sigmoid().sub_(share).div_(share.shape[1])


@dataclass(frozen=True, eq=False)
class DepthObjective:
    """Huber loss over all pixels of the moved depth map, from every cell's sorted pixels."""

    mean: Tensor
    """(trials, T) mean of each cell"""
    values: Tensor
    """(trials, T, pixels) pixels minus the cell's mean, ascending"""
    sums: Tensor
    """(trials, T, pixels + 1) sum of the first 0.. of them"""
    delta: float = 1.0
    """where the loss turns from square to linear"""

    @staticmethod
    def of(targets: DepthTargets, like: Tensor) -> DepthObjective:
        """On the device and in the type of `like`."""
        values = targets.values.astype(np.float64) - targets.mean[..., None]
        sums = np.pad(values.cumsum(axis=2), ((0, 0), (0, 0), (1, 0)))
        tensors = [torch.from_numpy(a).to(like) for a in (targets.mean, values, sums)]
        return DepthObjective(tensors[0], tensors[1], tensors[2])

    def gradient(self, trials: Tensor) -> Gradient:
        """A cell's pixels below the reading by more than delta pull with delta, those above push with it,
        those between with their distance."""
        mean, values, sums = (part[trials].flatten(0, 1) for part in (self.mean, self.values, self.sums))
        mean, size, reach = mean[:, None], values.shape[1], values.new_tensor([-self.delta, self.delta])

        def gradient(reading: Tensor) -> Tensor:
            offset = reading.reshape(-1, 1) - mean
            ends = torch.searchsorted(values, offset + reach)
            low, high = ends.to(offset.dtype).unbind(1)
            first, last = sums.gather(1, ends).unbind(1)
            pull = (low - (size - high)) * self.delta + (high - low) * offset[:, 0] - (last - first)
            return pull.div_(size * reading.shape[1]).view(reading.shape)

        return gradient


@dataclass(frozen=True, eq=False)
class Readers:
    """The probes of one site and step, and Adam's step by each of them."""

    weight: Tensor
    """(P, C) directions"""
    bias: Tensor
    """(P)"""
    nodes: Tensor
    """(K) epsilon / |w| at which the step is evaluated"""
    spread: Tensor
    """(P, K, C) from nodes to channels, with the sign of w"""
    pull: Tensor
    """(P, K) from nodes to the reading: spread times w"""

    def read(self, acts: Tensor, which: Tensor) -> Tensor:
        """Readings (R, T) of activations (R, T, C): logit difference, or depth."""
        return torch.bmm(acts, self.weight[which][..., None])[..., 0] + self.bias[which][:, None]


def as_direction(weights: NDArray, channels: int) -> tuple[NDArray[np.float64], float]:
    """A probe (O, C [+ 1]; a last column is the bias) as one direction (C) and one offset."""
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 2 or len(weights) not in (1, 2) or weights.shape[1] not in (channels, channels + 1):
        raise ValueError(f"probe of shape {weights.shape}: needs 1 or 2 outputs and {channels} channels (and a bias)")
    row = weights[0] if len(weights) == 1 else weights[1] - weights[0]
    return row[:channels], float(row[channels]) if len(row) > channels else 0.0


def make_readers(probes: Sequence[NDArray], channels: int, like: Tensor, epsilon: float = 1e-8) -> Readers:
    """Readers of probes (O, C [+ 1]) on the device and in the type of `like`."""
    pairs = [as_direction(weights, channels) for weights in probes]
    weight = np.stack([direction for direction, _ in pairs])
    tolerance = 1e-8 if like.dtype == torch.float32 else 1e-14
    nodes, spread = _interpolation(np.abs(weight), epsilon, tolerance)
    spread = spread * np.sign(weight)[:, None, :]
    pull = np.einsum("pkc,pc->pk", spread, weight)
    bias = np.array([offset for _, offset in pairs])
    return Readers(*(torch.from_numpy(a).to(like) for a in (weight, bias, nodes, spread, pull)))


def _interpolation(size: NDArray, epsilon: float, tolerance: float) -> tuple[NDArray, NDArray]:
    """Nodes (K) and the matrices (P, K, C) that interpolate 1 / (s + epsilon / size) from them.

    In log e the function is logistic, with its nearest pole pi from the real axis: that gives the
    number of nodes. Where the channels are fewer than that, or only one probe is asked about few
    channels, the channels are the nodes.
    """
    probes, channels = size.shape
    used = size[size > 0]
    if not len(used):
        return np.full(1, epsilon), np.zeros((probes, 1, channels))
    low, high = np.log(epsilon / used.max()), np.log(epsilon / used.min())
    half = max((high - low) / 2, 1e-9)
    count = math.ceil(-math.log(tolerance) / math.asinh(math.pi / half)) + 2
    if count >= channels * probes:
        return _every_channel(size, epsilon)
    angles = (2 * np.arange(count) + 1) * math.pi / (2 * count)
    nodes = (low + high) / 2 + half * np.cos(angles)
    signs = np.sin(angles) * (-1.0) ** np.arange(count)
    place = np.log(epsilon / np.where(size > 0, size, used.max()))
    gap = place[:, None, :] - nodes[:, None]
    gap = np.where(gap == 0, 1e-15, gap)
    matrix = signs[:, None] / gap
    matrix /= matrix.sum(axis=1, keepdims=True)
    return np.exp(nodes), matrix * (size > 0)[:, None, :]


def _every_channel(size: NDArray, epsilon: float) -> tuple[NDArray, NDArray]:
    """One node for each channel of each probe."""
    probes, channels = size.shape
    own = np.eye(probes)[:, :, None, None] * np.eye(channels) * (size > 0)[:, None, None, :]
    nodes = epsilon / np.where(size > 0, size, 1.0)
    return nodes.reshape(-1), own.reshape(probes, probes * channels, channels)


def steer(acts: Tensor, readers: Readers, which: Tensor, objective: Objective, trials: Tensor, adam: Adam) -> Tensor:
    """What Adam adds to activations (R, T, C): each row after its own probe `which` (R) and trial (R).

    The loss is a mean over one row's pixels, summed over rows, so a row's edit does not depend on the
    rows beside it.
    """
    reading = readers.read(acts, which)
    pull = readers.pull[which][..., None]
    first, second = torch.zeros_like(reading), torch.zeros_like(reading)
    moved = acts.new_zeros(*reading.shape, len(readers.nodes))
    gradient_of = objective.gradient(trials)
    for count in range(1, adam.iterations + 1):
        gradient = gradient_of(reading)
        first.lerp_(gradient, 1 - adam.beta1)
        second.mul_(adam.beta2).addcmul_(gradient, gradient, value=1 - adam.beta2)
        scale = adam.lr / (1 - adam.beta1**count)
        root = (second / (1 - adam.beta2**count)).sqrt_()
        step = (root[..., None] + readers.nodes).reciprocal_().mul_((first * scale)[..., None])
        moved += step
        reading -= torch.bmm(step, pull)[..., 0]
    return torch.bmm(moved, readers.spread[which]).neg_()
