"""Many probes as one batched model: forward, backward and weights, without autograd.

Shapes: S steps, K heads (probes on the same activations: tasks and controls), n = samples x T patches of a batch,
C channels, O outputs. A saliency probe has two outputs, but cross-entropy and argmax depend on their difference alone;
the gradients of the two rows are opposite, and Adam and SGD are odd, so their sum never changes. Training the
difference at twice the step is therefore the same as training both rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.probes.features import ActivationBatch
from probing.probes.optimiser import Layer

Starts = Sequence[Sequence[list[Layer]]]
"""[step][head] the layers that a probe starts from"""
Weights = list[list[tuple[NDArray, NDArray | None]]]
"""[step][head] last layer (O, inputs [+ 1]) and hidden layer (units, C [+ 1]) if any; a last column is the bias"""


class LastLayer:
    """The final map of S x K probes: trained differences of outputs, and the part that training does not change."""

    def __init__(self, layers: list[list[Layer]], dtype: torch.dtype, device: torch.device) -> None:
        weights = [[_difference(weight) for weight, _ in heads] for heads in layers]
        self.pairs = torch.tensor([len(weight) == 2 for weight, _ in layers[0]], device=device)
        self.weight, self.rest = (_stack(weights, part, dtype, device) for part in (0, 1))
        factor = torch.where(self.pairs, 2.0, 1.0).to(dtype)
        self.parameters, self.factors = [self.weight], [factor[:, None]]
        self.bias = self.bias_rest = None
        if layers[0][0][1] is not None:
            biases = [[_difference(_present(bias)) for _, bias in heads] for heads in layers]
            self.bias, self.bias_rest = (_stack(biases, part, dtype, device) for part in (0, 1))
            self.parameters, self.factors = [self.weight, self.bias], [factor[:, None], factor]

    def add_bias(self, out: Tensor) -> Tensor:
        """Outputs (S, K, n) plus the bias, if there is one."""
        return out if self.bias is None else out + self.bias[..., None]

    def gradients(self, weight: Tensor, gradient: Tensor) -> list[Tensor]:
        """Gradients of `parameters`, from the weight's and from the predictions' (S, K, n)."""
        return [weight] if self.bias is None else [weight, gradient.sum(2)]

    def rows(self, scale: Tensor | None = None) -> list[list[NDArray]]:
        """[step][head] (O, inputs [+ 1]), weights divided by `scale` (S)."""
        weight, rest = self.weight, self.rest
        if scale is not None:
            weight, rest = weight / scale[:, None, None], rest / scale[:, None, None]
        if self.bias is not None and self.bias_rest is not None:
            weight = torch.cat([weight, self.bias[..., None]], -1)
            rest = torch.cat([rest, self.bias_rest[..., None]], -1)
        both = torch.stack([rest - weight / 2, rest + weight / 2], 2).cpu().numpy()
        single = weight.unsqueeze(2).cpu().numpy()
        pairs = self.pairs.tolist()
        return [[both[s, k] if pair else single[s, k] for k, pair in enumerate(pairs)] for s in range(len(both))]


def _difference(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Two rows as (second - first, their mean); one row as (itself, zero)."""
    rows = rows.double()
    if len(rows) == 2:
        return rows[1] - rows[0], (rows[0] + rows[1]) / 2
    return rows[0], torch.zeros_like(rows[0])


def _stack(table: list[list[tuple[Tensor, Tensor]]], part: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.stack([torch.stack([pair[part] for pair in row]) for row in table]).to(device, dtype)


def _present(bias: Tensor | None) -> Tensor:
    assert bias is not None
    return bias


class LinearProbes:
    """S x K linear maps, trained together, on the channels of each patch (section 3.1), divided by `scale` (S).

    Inputs after the `channels` are a learned value per patch of the grid: what position in the image predicts without
    activations (`channels` 0), or what activations add to it. It is the linear probe on one-hot patch numbers."""

    def __init__(self, starts: Starts, scale: Tensor, channels: int) -> None:
        self.last = LastLayer([[layers[0] for layers in heads] for heads in starts], scale.dtype, scale.device)
        self.channels, self.scale, self.inverse = channels, scale, (1 / scale)[:, None, None]
        self.parameters, self.factors = self.last.parameters, self.last.factors
        self.patches = self.last.weight.shape[2] - channels

    def forward(self, x: ActivationBatch) -> Tensor:
        """Predictions (S, K, n); of two outputs their difference."""
        weight, position = self.last.weight.split([self.channels, self.patches], 2)
        if not self.channels:
            return self.last.add_bias(position.repeat(1, 1, x.count))
        out = x.apply(weight * self.inverse)
        return self.last.add_bias(position.repeat(1, 1, x.count).add_(out) if self.patches else out)

    def backward(self, x: ActivationBatch, gradient: Tensor) -> list[Tensor]:
        """Gradients of the parameters from those of the predictions (S, K, n); uses the last forward pass."""
        parts = [x.weight_grad(gradient).mul_(self.inverse)] if self.channels else []
        if self.patches:
            parts.append(gradient.unflatten(2, (-1, self.patches)).sum(2))
        return self.last.gradients(torch.cat(parts, 2) if len(parts) > 1 else parts[0], gradient)

    def weights(self) -> Weights:
        """The weights for raw activations."""
        if not self.patches:
            return [[(row, None) for row in rows] for rows in self.last.rows(self.scale)]
        table = self.last.rows()
        for rows, scale in zip(table, self.scale.tolist(), strict=True):
            for row in rows:
                row[:, : self.channels] /= scale
        return [[(row, None) for row in rows] for rows in table]


class HiddenProbes:
    """A hidden ReLU layer before the linear map, to show what more capacity could predict; methods as LinearProbes."""

    def __init__(self, starts: Starts, scale: Tensor) -> None:
        self.last = LastLayer([[layers[1] for layers in heads] for heads in starts], scale.dtype, scale.device)
        self.scale, self.inverse = scale, (1 / scale)[:, None, None]
        self.weight = torch.stack([torch.stack([layers[0][0] for layers in heads]) for heads in starts]).to(scale)
        self.bias = None
        self.parameters, self.factors = [self.weight], [torch.ones_like(scale[0])]
        if self.last.bias is not None:
            stacked = [torch.stack([_present(layers[0][1]) for layers in heads]) for heads in starts]
            self.bias = torch.stack(stacked).to(scale)
            self.parameters, self.factors = [*self.parameters, self.bias], [*self.factors, torch.ones_like(scale[0])]
        self.parameters, self.factors = self.parameters + self.last.parameters, self.factors + self.last.factors

    def forward(self, x: ActivationBatch) -> Tensor:
        units = x.apply(self.weight.flatten(1, 2) * self.inverse)
        units = units.view(*self.last.weight.shape, -1)
        self.units = (units if self.bias is None else units + self.bias[..., None]).relu_()
        return self.last.add_bias(torch.einsum("skh,skhn->skn", self.last.weight, self.units))

    def backward(self, x: ActivationBatch, gradient: Tensor) -> list[Tensor]:
        last = self.last.gradients(torch.einsum("skn,skhn->skh", gradient, self.units), gradient)
        units = self.last.weight[..., None] * gradient.unsqueeze(2) * (self.units > 0)
        weight = x.weight_grad(units.flatten(1, 2)).mul_(self.inverse).view_as(self.weight)
        return [weight, *last] if self.bias is None else [weight, units.sum(3), *last]

    def weights(self) -> Weights:
        hidden = self.weight / self.scale[:, None, None, None]
        if self.bias is not None:
            hidden = torch.cat([hidden, self.bias[..., None]], 3)
        units = hidden.cpu().numpy()
        return [[(row, units[s, k]) for k, row in enumerate(rows)] for s, rows in enumerate(self.last.rows())]


Probes = LinearProbes | HiddenProbes


def predict(weights: NDArray | Tensor, acts: NDArray | Tensor, hidden: NDArray | Tensor | None = None) -> Tensor:
    """Apply a fitted probe to raw activations (..., C): logits or depth (..., O), differentiable.

    weights: (O, C), or (O, C + 1) with the bias last. hidden: the hidden layer of an MLP probe, likewise.
    Raises ValueError if the numbers of channels differ."""
    x = torch.as_tensor(acts)
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if hidden is not None:
        x = _affine(torch.as_tensor(hidden), x).relu()
    return _affine(torch.as_tensor(weights), x)


def _affine(weight: Tensor, x: Tensor) -> Tensor:
    weight = weight.to(x.device, x.dtype)
    channels = x.shape[-1]
    if weight.shape[1] not in (channels, channels + 1):
        raise ValueError(f"the probe has weights for {weight.shape[1]} channels, the activations have {channels}")
    out = x @ weight[:, :channels].T
    return out if weight.shape[1] == channels else out + weight[:, channels]
