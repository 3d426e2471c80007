"""What a task provides: its loss on pooled labels and its scores, for all probes of one batch.

Shapes: S steps, H heads (the probes of this task in one batch: one per control), N samples, T patches of K pixels,
n = batch samples x T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.probes.config import ProbeConfig
from probing.scoring.targets import Edges, Targets


@dataclass(frozen=True)
class Scores:
    """Scores of S x H probes."""

    images: dict[str, Tensor]
    """name -> (S, H, test samples) float64, NaN if undefined"""
    probes: dict[str, Tensor]
    """name -> (S, H) float64, NaN if undefined"""


class Heads(Protocol):
    """The labels of one task for H heads, on the device."""

    def loss(self, prediction: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss (S, H) over the pixels of `samples`, and the gradient of what is optimised (S, H, n)."""
        ...

    def scores(self, predictions: dict[str, Tensor], parts: dict[str, Tensor]) -> Scores:
        """Scores from predictions {part: (S, H, samples, T)} and the parts' sample numbers."""
        ...


class Task(Protocol):
    """A class that makes the heads of a task."""

    outputs: int
    """outputs of one probe"""

    def __call__(
        self, targets: Targets, rows: NDArray[np.int64], config: ProbeConfig, device: torch.device, edges: Edges | None
    ) -> Heads:
        """Make the heads; rows: (H, N, T) the pooled label that each head's patches are given.

        Raises ValueError if the targets are another task's."""
        ...
