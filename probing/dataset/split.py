"""The split of samples into train, val and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


def curated(curation: Mapping[str, Sequence[Any]]) -> tuple[NDArray[np.int64], Split]:
    """The samples that a curation keeps in some part, ascending, and the split as positions in that list.

    curation: the columns of `curation.parquet`. Raises ValueError if train or test is empty.
    """
    columns = (curation[name] for name in ("sample", "keep", "split"))
    part = {sample: name for sample, keep, name in zip(*columns, strict=True) if keep and name}
    samples = np.array(sorted(part), dtype=np.int64)
    names = np.array([part[sample] for sample in samples.tolist()])
    return samples, Split(*(np.flatnonzero(names == name) for name in ("train", "val", "test")))
