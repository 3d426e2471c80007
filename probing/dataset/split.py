"""The split of samples into train, val and test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Split:
    """Disjoint sample numbers: positions along the sample axis of activations and labels.

    Raises ValueError if train or test is empty, a sample is listed twice, or a number is negative.
    """

    train: NDArray[np.int64]
    """samples to fit on, at least one"""
    val: NDArray[np.int64]
    """samples for selection; may be empty"""
    test: NDArray[np.int64]
    """samples scored once, at the end; at least one"""

    def __post_init__(self) -> None:
        for name in ("train", "val", "test"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.int64).reshape(-1))
        if not len(self.train) or not len(self.test):
            raise ValueError(f"empty split: {len(self.train)} train and {len(self.test)} test samples")
        used = np.concatenate([self.train, self.val, self.test])
        if len(np.unique(used)) != len(used):
            raise ValueError("split: a sample is listed twice among train, val and test")
        if used.min() < 0:
            raise ValueError("split: sample numbers must not be negative")

    @property
    def parts(self) -> tuple[tuple[str, NDArray[np.int64]], ...]:
        """(name, sample numbers) of every part that has samples."""
        named = (("train", self.train), ("val", self.val), ("test", self.test))
        return tuple((name, part) for name, part in named if len(part))
