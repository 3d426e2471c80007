"""Probes: their configuration, seeded start, order of samples, optimiser and prediction.

Shapes: C channels, O outputs (2 for saliency: background, foreground; 1 for depth).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from numpy.typing import NDArray
from torch import Tensor

OPTIMIZERS = ("adam", "sgd")
NORMALISERS = ("none", "rms")
SELECTIONS = ("last", "val")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class ProbeConfig:
    """How probes are trained. The defaults are the paper's."""

    optimizer: str = "adam"
    """adam (betas 0.9 and 0.999, epsilon 1e-8) or sgd, both without weight decay"""
    lr: float = 1e-3
    """step size"""
    epochs: int = 30
    """passes over the training samples"""
    batch: int = 4
    """samples in one step; the last smaller batch is kept"""
    bias: bool = False
    """whether every linear layer has a bias"""
    normalise: str = "none"
    """rms: divide activations by their root mean square over the training samples, one constant per site and
    step that is folded back into the weights, so the probe stays linear in the raw activations"""
    selection: str = "last"
    """last: the last epoch counts, as in the paper; val: the epoch with the lowest validation loss"""
    val_every: int = 1
    """epochs between two validation losses; the last epoch always has one. With selection=val only epochs that
    have one are candidates"""
    smoothness: float = 0.0
    """weight of the smoothness loss of appendix F on depth probes; needs images"""
    hidden: int = 0
    """units of a hidden ReLU layer (capacity check); 0 is the linear probe. Position controls stay linear"""
    huber_delta: float = 1.0
    """where the depth loss turns from square to linear, in standardised depth"""
    seed: int = 100
    """seed of the order of the samples; a cell's own seed is added"""
    dtype: str = "float32"
    """float32 or float64 (for checks)"""

    def __post_init__(self) -> None:
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("normalise", self.normalise, NORMALISERS)
        _one_of("selection", self.selection, SELECTIONS)
        _one_of("dtype", self.dtype, DTYPES)
        for name, low in (("epochs", 1), ("batch", 1), ("val_every", 1), ("hidden", 0), ("smoothness", 0)):
            if not getattr(self, name) >= low:
                raise ValueError(f"probe.{name} must be at least {low}, not {getattr(self, name)}")
        for name in ("lr", "huber_delta"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"probe.{name} must be a positive number, not {getattr(self, name)}")


def _one_of(name: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ValueError(f"probe.{name} must be one of {', '.join(allowed)}, not {value!r}")


def initial_seed(seed: int, step: int, task: str) -> int:
    """The seed of a probe's start: depends on nothing but these, so never on what is fitted beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{task}".encode()).digest()[:7], "big")


Layer = tuple[Tensor, Tensor | None]
"""weight (O, inputs) and bias (O) of one linear map"""


def initial_layers(seed: int, sizes: Sequence[int], bias: bool) -> list[Layer]:
    """nn.Linear's default start for the maps sizes[0] -> sizes[1] -> ..., the draws of torch.manual_seed(seed)."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[Layer] = []
    for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
        weight = torch.empty(outputs, inputs)
        torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
        bound = 1 / math.sqrt(inputs)
        offset = torch.empty(outputs).uniform_(-bound, bound, generator=generator) if bias else None
        layers.append((weight, offset))
    return layers


def sample_orders(seed: int, samples: int, epochs: int) -> list[Tensor]:
    """The order of the training samples in every epoch, one generator for all (the paper's seed is 100)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(samples, generator=generator) for _ in range(epochs)]


@dataclass(frozen=True)
class Adam:
    """Hyperparameters of Adam (Kingma and Ba, algorithm 1)."""

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


class Optimizer:
    """Adam or SGD on a list of tensors; `factors` scale each tensor's step (broadcast against it)."""

    def __init__(self, config: ProbeConfig, parameters: list[Tensor], factors: list[Tensor]) -> None:
        self.hyper, self.adaptive = Adam(config.lr), config.optimizer == "adam"
        self.parameters = parameters
        self.steps = [factor * -config.lr for factor in factors]
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]
        self.count = 0

    def step(self, gradients: list[Tensor]) -> None:
        """Moves the parameters by one step along their gradients."""
        self.count += 1
        moves = map(self._adam, gradients, self.first, self.second) if self.adaptive else gradients
        for parameter, step, move in zip(self.parameters, self.steps, moves, strict=True):
            parameter.addcmul_(move, step)

    def _adam(self, gradient: Tensor, first: Tensor, second: Tensor) -> Tensor:
        hyper = self.hyper
        first.lerp_(gradient, 1 - hyper.beta1)
        second.mul_(hyper.beta2).addcmul_(gradient, gradient, value=1 - hyper.beta2)
        root = second.sqrt().div_(math.sqrt(1 - hyper.beta2**self.count)).add_(hyper.epsilon)
        return first.div(root.mul_(1 - hyper.beta1**self.count))


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
