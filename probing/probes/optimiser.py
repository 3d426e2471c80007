"""Seeded starts of probes, the order of their training samples, and their optimisers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from probing.probes.config import ProbeConfig

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's defaults (Kingma and Ba, algorithm 1)"""


def dtype_of(config: ProbeConfig) -> torch.dtype:
    """The torch type that the probes train in."""
    return {"float32": torch.float32, "float64": torch.float64}[config.dtype]


def initial_seed(seed: int, step: int, task: str) -> int:
    """The seed of a probe's start; it depends on these alone, so never on what is fitted at the same time."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{task}".encode()).digest()[:7], "big")


Layer = tuple[Tensor, Tensor | None]
"""weight (O, inputs) and bias (O) of one linear map"""


def initial_layers(seed: int, sizes: Sequence[int], bias: bool) -> list[Layer]:
    """nn.Linear's default start for the maps sizes[0] -> sizes[1] -> ..., as drawn after torch.manual_seed(seed)."""
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
    """The order of the training samples in each epoch, from one generator (the paper's seed is 100)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(samples, generator=generator) for _ in range(epochs)]


class Optimizer:
    """Adam or SGD on a list of tensors; `factors` scale each tensor's step (broadcast against it)."""

    def __init__(self, config: ProbeConfig, parameters: list[Tensor], factors: list[Tensor]) -> None:
        self.adaptive = config.optimizer == "adam"
        self.parameters = parameters
        self.steps = [factor * -config.lr for factor in factors]
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]
        self.count = 0

    def step(self, gradients: list[Tensor]) -> None:
        """Move the parameters by one step along their gradients."""
        self.count += 1
        moves = map(self._adam, gradients, self.first, self.second) if self.adaptive else gradients
        for parameter, step, move in zip(self.parameters, self.steps, moves, strict=True):
            parameter.addcmul_(move, step)

    def _adam(self, gradient: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Adam's direction of one tensor, after updating its moments in place."""
        first.lerp_(gradient, 1 - BETA1)
        second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        root = second.sqrt().div_(math.sqrt(1 - BETA2**self.count)).add_(EPSILON)
        return first.div(root.mul_(1 - BETA1**self.count))
