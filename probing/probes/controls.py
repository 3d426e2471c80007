"""What a probe is trained on instead of its labels: each control is a table of which cell's label goes where.

A control replaces the labels of training, validation and test alike, so its scores say how well the control
task itself is learnt with the same split and budget.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probing.probes.surface import SURFACE_CONTROLS

ACTIVATION_CONTROLS = ("none", *SURFACE_CONTROLS, "shuffled", "other_image")
"""linear probes on the given activations; those of the surface only name what the caller gives"""
POSITION_CONTROLS = ("position", "position_activation")
"""a value per cell alone, or beside the channels (nested models: what the activation adds to position)"""
CONTROLS = ACTIVATION_CONTROLS + POSITION_CONTROLS


@dataclass(frozen=True, eq=False)
class Split:
    """Disjoint sample numbers, positions along the sample axis of activations and labels."""

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
        """(name, sample numbers) of the parts that have samples"""
        named = (("train", self.train), ("val", self.val), ("test", self.test))
        return tuple((name, part) for name, part in named if len(part))


def label_rows(control: str, samples: int, cells: int, split: Split, seed: int) -> NDArray[np.int64]:
    """(N, T) number (sample * T + cell) of the pooled label that each cell is given under a control.

    shuffled: each image's labels permuted over its cells, one permutation per image.
    other_image: each image gets the labels of another image of its own part of the split; in a part of one
    sample it borrows from train. Raises ValueError for an unknown control or a lone training sample."""
    if control not in CONTROLS:
        raise ValueError(f"unknown probe control {control!r}: choose from {', '.join(CONTROLS)}")
    own = np.arange(samples * cells).reshape(samples, cells)
    random = np.random.default_rng([seed, zlib.crc32(control.encode())])
    if control == "shuffled":
        return random.permuted(own, axis=1)
    if control == "other_image":
        return own[_donors(samples, split, random)]
    return own


def _donors(samples: int, split: Split, random: np.random.Generator) -> NDArray[np.int64]:
    """For every sample another one, by a random cycle through each part."""
    donors = np.arange(samples)
    if len(split.train) == 1:
        raise ValueError("control other_image needs at least two training samples")
    for _, part in split.parts:
        cycle = random.permutation(part)
        donors[cycle] = np.roll(cycle, 1) if len(cycle) > 1 else random.choice(split.train)
    return donors
