"""Many probes as one batched model: forward, backward and weights, without autograd.

Shapes: S steps, K heads (probes on the same activations: tasks and controls), n = samples x T cells of a
batch, C channels, O outputs. A saliency probe has two outputs, but cross-entropy and argmax only see their
difference; the gradients of the two rows are opposite, Adam and SGD are odd, so their sum never changes.
Training the difference at twice the step is therefore the same as training both rows.
"""

from __future__ import annotations

from typing import Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.probes.features import Batch
from probing.probes.optimiser import Layer


class Probes(Protocol):
    """S x K probes trained together; `x` is a batch of n cells."""

    parameters: list[Tensor]
    factors: list[Tensor]

    def forward(self, x: Batch) -> Tensor:
        """Predictions (S, K, n); of two outputs their difference."""
        ...

    def backward(self, x: Batch, gradient: Tensor) -> list[Tensor]:
        """Gradients of the parameters from those of the predictions (S, K, n); uses the last forward pass."""
        ...

    def weights(self) -> list[list[tuple[NDArray, NDArray | None]]]:
        """[step][head]: last layer (O, inputs [+ 1]) and hidden layer (units, C [+ 1]), last column the bias."""
        ...


class LastLayer:
    """The final map of S x K probes: trained differences of outputs, and the part that training leaves alone."""

    def __init__(self, layers: list[list[Layer]], dtype: torch.dtype, device: torch.device) -> None:
        weights = [[_difference(w) for w, _ in heads] for heads in layers]
        self.pairs = torch.tensor([len(w) == 2 for w, _ in layers[0]], device=device)
        self.weight, self.rest = (_stack(weights, part, dtype, device) for part in (0, 1))
        self.factor = torch.where(self.pairs, 2.0, 1.0).to(dtype)
        self.bias = self.bias_rest = None
        if layers[0][0][1] is not None:
            biases = [[_difference(_present(b)) for _, b in heads] for heads in layers]
            self.bias, self.bias_rest = (_stack(biases, part, dtype, device) for part in (0, 1))

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


Table = list[list[list[Layer]]]
"""[step][head] the layers of one probe's start"""


class LinearProbes:
    """One linear map on the channels of each cell (section 3.1), on activations divided by `scale` (S)."""

    def __init__(self, layers: Table, scale: Tensor) -> None:
        self.last = LastLayer([[cell[0] for cell in heads] for heads in layers], scale.dtype, scale.device)
        self.scale, self.inverse = scale, (1 / scale)[:, None, None]
        self.parameters, self.factors = [self.last.weight], [self.last.factor[:, None]]
        if self.last.bias is not None:
            self.parameters.append(self.last.bias)
            self.factors.append(self.last.factor)

    def forward(self, x: Batch) -> Tensor:
        weight = self.last.weight * self.inverse
        if self.last.bias is None:
            return x.read(weight)
        return x.read(weight).add_(self.last.bias[..., None])

    def backward(self, x: Batch, gradient: Tensor) -> list[Tensor]:
        weight = x.pull(gradient).mul_(self.inverse)
        return [weight] if self.last.bias is None else [weight, gradient.sum(2)]

    def weights(self) -> list[list[tuple[NDArray, NDArray | None]]]:
        return [[(row, None) for row in rows] for rows in self.last.rows(self.scale)]


class HiddenProbes:
    """A hidden ReLU layer before the linear map: what more capacity could read."""

    def __init__(self, layers: Table, scale: Tensor) -> None:
        self.last = LastLayer([[cell[1] for cell in heads] for heads in layers], scale.dtype, scale.device)
        self.scale, self.inverse = scale, (1 / scale)[:, None, None]
        self.weight = torch.stack([torch.stack([cell[0][0] for cell in heads]) for heads in layers]).to(scale)
        self.parameters = [self.weight, self.last.weight]
        self.factors = [torch.ones_like(scale[0]), self.last.factor[:, None]]
        self.bias = None
        if self.last.bias is not None:
            stacked = [torch.stack([_present(cell[0][1]) for cell in heads]) for heads in layers]
            self.bias = torch.stack(stacked).to(scale)
            self.parameters += [self.bias, self.last.bias]
            self.factors += [torch.ones_like(scale[0]), self.last.factor]

    def forward(self, x: Batch) -> Tensor:
        units = x.read(self.weight.flatten(1, 2) * self.inverse)
        units = units.view(*self.last.weight.shape, -1)
        self.units = (units if self.bias is None else units + self.bias[..., None]).relu_()
        out = torch.einsum("skh,skhn->skn", self.last.weight, self.units)
        return out if self.last.bias is None else out + self.last.bias[..., None]

    def backward(self, x: Batch, gradient: Tensor) -> list[Tensor]:
        last = torch.einsum("skn,skhn->skh", gradient, self.units)
        pull = self.last.weight[..., None] * gradient.unsqueeze(2) * (self.units > 0)
        weight = x.pull(pull.flatten(1, 2)).mul_(self.inverse).view_as(self.weight)
        return [weight, last] if self.bias is None else [weight, last, pull.sum(3), gradient.sum(2)]

    def weights(self) -> list[list[tuple[NDArray, NDArray | None]]]:
        hidden = self.weight / self.scale[:, None, None, None]
        if self.bias is not None:
            hidden = torch.cat([hidden, self.bias[..., None]], 3)
        units = hidden.cpu().numpy()
        return [[(row, units[s, k]) for k, row in enumerate(rows)] for s, rows in enumerate(self.last.rows())]


def _present(bias: Tensor | None) -> Tensor:
    assert bias is not None
    return bias


class PositionProbes:
    """A learned value per cell of the grid and no activations: what position in the image alone gives.

    It is the linear probe on one-hot cell numbers; of its batch `x` only the size matters."""

    def __init__(self, layers: Table, scale: Tensor) -> None:
        self.last = LastLayer([[cell[0] for cell in heads] for heads in layers], scale.dtype, scale.device)
        self.parameters, self.factors = [self.last.weight], [self.last.factor[:, None]]
        if self.last.bias is not None:
            self.parameters.append(self.last.bias)
            self.factors.append(self.last.factor)

    def forward(self, x: Batch) -> Tensor:
        out = self.last.weight if self.last.bias is None else self.last.weight + self.last.bias[..., None]
        return out.repeat(1, 1, x.count)

    def backward(self, x: Batch, gradient: Tensor) -> list[Tensor]:
        weight = gradient.unflatten(2, (-1, self.last.weight.shape[2])).sum(2)
        return [weight] if self.last.bias is None else [weight, gradient.sum(2)]

    def weights(self) -> list[list[tuple[NDArray, NDArray | None]]]:
        return [[(row, None) for row in rows] for rows in self.last.rows()]


class JointProbes:
    """A value per cell of the grid beside the linear map on channels: what activations add to position."""

    def __init__(self, layers: Table, scale: Tensor, channels: int) -> None:
        self.channels, self.scale, self.inverse = channels, scale, (1 / scale)[:, None, None]
        self.place = PositionProbes(layers, scale)
        self.last = self.place.last
        self.parameters, self.factors = self.place.parameters, self.place.factors

    def forward(self, x: Batch) -> Tensor:
        weight = self.last.weight
        read = x.read(weight[..., : self.channels] * self.inverse)
        out = weight[..., self.channels :].repeat(1, 1, x.count).add_(read)
        return out if self.last.bias is None else out.add_(self.last.bias[..., None])

    def backward(self, x: Batch, gradient: Tensor) -> list[Tensor]:
        cells = self.last.weight.shape[2] - self.channels
        read = x.pull(gradient).mul_(self.inverse)
        weight = torch.cat([read, gradient.unflatten(2, (-1, cells)).sum(2)], 2)
        return [weight] if self.last.bias is None else [weight, gradient.sum(2)]

    def weights(self) -> list[list[tuple[NDArray, NDArray | None]]]:
        rows = self.last.rows()
        for row, scale in zip(rows, self.scale.tolist(), strict=True):
            for weight in row:
                weight[:, : self.channels] /= scale
        return [[(weight, None) for weight in row] for row in rows]


def predict(weights: NDArray | Tensor, acts: NDArray | Tensor, hidden: NDArray | Tensor | None = None) -> Tensor:
    """Applies a shipped probe to raw activations (..., C): logits or depth (..., O), differentiable.

    weights: (O, C), or (O, C + 1) with the bias last. hidden: the hidden layer of an MLP probe, likewise.
    Raises ValueError where the channels do not match."""
    x = torch.as_tensor(acts)
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if hidden is not None:
        return _affine(torch.as_tensor(weights), _affine(torch.as_tensor(hidden), x).relu())
    return _affine(torch.as_tensor(weights), x)


def _affine(weight: Tensor, x: Tensor) -> Tensor:
    weight = weight.to(x.device, x.dtype)
    channels = x.shape[-1]
    if weight.shape[1] not in (channels, channels + 1):
        raise ValueError(f"probe reads {weight.shape[1]} channels, the activations have {channels}")
    out = x @ weight[:, :channels].T
    return out if weight.shape[1] == channels else out + weight[:, channels]
