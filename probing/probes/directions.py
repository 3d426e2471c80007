"""Directions of linear probes in activation space, and the angles between them (numpy only)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def direction(weights: NDArray, channels: int) -> NDArray[np.float64]:
    """The direction (C) along which a probe's output grows: foreground minus background, or depth; without bias.

    weights: (O, C [+ 1]) of one probe."""
    rows = np.asarray(weights, dtype=np.float64)[:, :channels]
    return rows[1] - rows[0] if len(rows) == 2 else rows[0]


def cosines(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosines (S, S) between directions (S, C); NaN for a zero direction."""
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = directions / np.where(length > 0, length, np.nan)
    return unit @ unit.T
