"""Directions in activation space along which linear probes read, and the angles between them (numpy only)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def direction(weights: NDArray, channels: int) -> NDArray[np.float64]:
    """The direction (C) along which a probe's answer grows: foreground minus background, or depth; no bias."""
    rows = np.asarray(weights, dtype=np.float64)[:, :channels]
    return rows[1] - rows[0] if len(rows) == 2 else rows[0]


def cosines(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosines (S, S) between directions (S, C); a zero direction has NaN."""
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = directions / np.where(length > 0, length, np.nan)
    return unit @ unit.T
