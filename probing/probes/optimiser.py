"""Seeded starts of probes, the order of their training samples, and their optimisers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probing.probes.config import ProbeConfig


def dtype_of(config: ProbeConfig) -> torch.dtype:
    """The torch type that the probes train in."""
    return {"float32": torch.float32, "float64": torch.float64}[config.dtype]


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
