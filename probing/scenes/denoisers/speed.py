"""Ways to run a training's network faster, and a training that is ready to take steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from probing.scenes.optimise import Loop

EAGER, GRAPHS, COMPILED = "eager", "graphs", "compiled"
WAYS = (EAGER, GRAPHS, COMPILED)
"""operation by operation; as a recorded CUDA graph, which launches all operations at once; fused by a compiler, which
needs a C++ compiler and a minute at the start"""
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Training(Generic[Network]):
    """A network with its loop and loss."""

    network: Network
    loop: Loop
    loss: Callable[[int, torch.Generator], Tensor]
    """(step, its generator) -> scalar"""


def faster(network: nn.Module, way: str, sample: Callable[[], tuple[Tensor, ...]]) -> Callable[..., Any]:
    """A callable that does what a network does, one of WAYS.

    sample: makes inputs as the training calls it with, tensors alone; a graph takes others of the same shapes only.
    """
    if way == COMPILED:
        return torch.compile(network)
    if way == GRAPHS:
        # a graph must not read copies of weights that autocast made before it was recorded
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            return torch.cuda.make_graphed_callables(network, sample(), allow_unused_input=True)
    return network
