"""The inner optimisation (section 5.1): Adam moves activations until a linear probe predicts the target label.

Derivation. A linear probe has one direction w (of two outputs, their difference), so the gradient of any loss at a
token is g w with one number g per token. Adam's moments are then w M and w^2 V with two numbers per token, and its
step of channel c is sign(w_c) a / (s + e_c), where a = lr M', s = sqrt(V'), e_c = epsilon / |w_c| (primes:
bias-corrected). Neither the loss nor the step needs the channels: the whole optimisation runs on the probe's readings
(its outputs, one number per token), and channels are filled in once at the end. As 1 / (s + e) is smooth in log e, it
is evaluated at a few Chebyshev nodes and interpolated to the channels, exact to rounding.

Shapes: R rows (trial and control), T tokens, C channels, P probes, K nodes, O probe outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Adam:
    """The inner optimiser; defaults other than the paper's step size and iterations are Adam's own."""

    lr: float
    """step size in units of the activation"""
    iterations: int
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


Gradient = Callable[[Tensor], Tensor]
"""readings (R, T) -> derivative (R, T) of a loss that is a mean over each row's own pixels"""
Objective = Callable[[Tensor], Gradient]
"""trials (R) of the rows -> gradient of the loss against their target labels"""


@dataclass(frozen=True, eq=False)
class LinearProbes:
    """The probes of one site and step, with the interpolation of Adam's step along each of them."""

    weight: Tensor
    """(P, C) directions"""
    bias: Tensor
    """(P)"""
    nodes: Tensor
    """(K) values of epsilon / |w| at which the step is evaluated"""
    to_channels: Tensor
    """(P, K, C) from steps at the nodes to steps of the channels, with the sign of w"""
    to_reading: Tensor
    """(P, K) from steps at the nodes to the step of the reading: `to_channels` times w"""

    def readings(self, acts: Tensor, which: Tensor) -> Tensor:
        """Outputs (R, T) for activations (R, T, C) of each row's probe `which` (R): logit difference, or depth."""
        return torch.bmm(acts, self.weight[which][..., None])[..., 0] + self.bias[which][:, None]


def as_direction(weights: NDArray, channels: int) -> tuple[NDArray[np.float64], float]:
    """A probe (O, C [+ 1]; a last column is the bias) as one direction (C) and one offset.

    Raises ValueError if the shape is another.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 2 or len(weights) not in (1, 2) or weights.shape[1] not in (channels, channels + 1):
        raise ValueError(f"probe of shape {weights.shape}: needs 1 or 2 outputs and {channels} channels (and a bias)")
    row = weights[0] if len(weights) == 1 else weights[1] - weights[0]
    return row[:channels], float(row[channels]) if len(row) > channels else 0.0


def make_probes(weights: Sequence[NDArray], channels: int, like: Tensor, epsilon: float = 1e-8) -> LinearProbes:
    """Probes with weights (O, C [+ 1]) each, on the device and with the dtype of `like`."""
    directions, biases = zip(*(as_direction(one, channels) for one in weights), strict=True)
    weight = np.stack(directions)
    tolerance = 1e-8 if like.dtype == torch.float32 else 1e-14
    nodes, to_channels = _interpolation(np.abs(weight), epsilon, tolerance)
    to_channels = to_channels * np.sign(weight)[:, None, :]
    to_reading = np.einsum("pkc,pc->pk", to_channels, weight)
    arrays = (weight, np.array(biases), nodes, to_channels, to_reading)
    return LinearProbes(*(torch.from_numpy(array).to(like) for array in arrays))


def _interpolation(size: NDArray, epsilon: float, tolerance: float) -> tuple[NDArray, NDArray]:
    """Nodes (K) and matrices (P, K, C) that interpolate 1 / (s + epsilon / size) from them; `size` is |w| (P, C).

    As a function of log e this is logistic, with its nearest pole at distance pi from the real axis, which gives the
    number of Chebyshev nodes for a tolerance. With no more channels than that, each channel is a node of its own.
    """
    probes, channels = size.shape
    used = size[size > 0]
    if not len(used):
        return np.full(1, epsilon), np.zeros((probes, 1, channels))
    low, high = np.log(epsilon / used.max()), np.log(epsilon / used.min())
    half = max((high - low) / 2, 1e-9)
    count = math.ceil(-math.log(tolerance) / math.asinh(math.pi / half)) + 2
    if count >= channels * probes:
        own = np.eye(probes)[:, :, None, None] * np.eye(channels) * (size > 0)[:, None, None, :]
        nodes = epsilon / np.where(size > 0, size, 1.0)
        return nodes.reshape(-1), own.reshape(probes, probes * channels, channels)
    # barycentric interpolation
    angles = (2 * np.arange(count) + 1) * math.pi / (2 * count)
    nodes = (low + high) / 2 + half * np.cos(angles)
    signs = np.sin(angles) * (-1.0) ** np.arange(count)
    points = np.log(epsilon / np.where(size > 0, size, used.max()))
    gap = points[:, None, :] - nodes[:, None]
    gap = np.where(gap == 0, 1e-15, gap)
    matrix = signs[:, None] / gap
    matrix /= matrix.sum(axis=1, keepdims=True)
    return np.exp(nodes), matrix * (size > 0)[:, None, :]


def steer(
    acts: Tensor, probes: LinearProbes, which: Tensor, objective: Objective, trials: Tensor, adam: Adam
) -> Tensor:
    """The change (R, T, C) that Adam makes to activations (R, T, C), with probe `which` (R) and trial (R) of each row.

    The loss is a mean over one row's pixels, summed over rows, so that a row's edit does not depend on the
    rows beside it.
    """
    reading = probes.readings(acts, which)
    to_reading = probes.to_reading[which][..., None]
    first, second = torch.zeros_like(reading), torch.zeros_like(reading)
    moved = acts.new_zeros(*reading.shape, len(probes.nodes))
    gradient_of = objective(trials)
    for count in range(1, adam.iterations + 1):
        gradient = gradient_of(reading)
        first.lerp_(gradient, 1 - adam.beta1)
        second.mul_(adam.beta2).addcmul_(gradient, gradient, value=1 - adam.beta2)
        scale = adam.lr / (1 - adam.beta1**count)
        root = (second / (1 - adam.beta2**count)).sqrt_()
        step = (root[..., None] + probes.nodes).reciprocal_().mul_((first * scale)[..., None])
        moved += step
        reading -= torch.bmm(step, to_reading)[..., 0]
    return torch.bmm(moved, probes.to_channels[which]).neg_()
