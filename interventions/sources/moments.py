"""Moments of a site's activations over training patches, and the edit directions that follow from them (no torch)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean, covariance and class means of the activations of a site at a step."""

    mean: Array
    """(C) over all patches"""
    covariance: Array
    """(C, C) over all patches, divided by their number"""
    positive: Array
    """(C) mean over patches of the object; for depth over those nearer than their image's mean"""
    negative: Array
    """(C) mean over all other patches"""
    contrast: float
    """mean label of the positive patches minus that of the others: share of object, or standardised depth"""

    def pattern(self, probe: NDArray) -> Array:
        """Covariance times probe (C) with unit length: how activations vary with the probe's output (Haufe et al. 2014,
        equation 6). Zero if the probe is zero."""
        return _unit(self.covariance @ probe)

    def mean_difference(self) -> Array:
        """Unit vector (C) from the mean of the negative to the mean of the positive patches; zero if they are equal."""
        return _unit(self.positive - self.negative)

    def gap(self, direction: NDArray) -> float:
        """Distance of the two class means along a unit vector (C)."""
        return float(abs((self.positive - self.negative) @ direction))


def _unit(vector: Array) -> Array:
    norm = np.linalg.norm(vector)
    return vector / norm if norm > 0 else np.zeros_like(vector)


def measure(parts: Iterable[tuple[NDArray, NDArray, NDArray[np.bool_]]]) -> Moments:
    """Moments of activations (m, C) with label (m) and class (m) of each vector, part by part, in double precision.

    Raises ValueError if one of the classes is empty or a value is not finite.
    """
    zero = np.zeros(())
    count, total, outer = 0, zero, zero
    counts, sums, labels = [0, 0], [zero, zero], [0.0, 0.0]
    shift: Array | None = None
    for acts, label, positive in parts:
        values = acts.astype(np.float64)
        # around the first part's mean, so that squares do not cancel
        shift = values.mean(axis=0) if shift is None else shift
        values -= shift
        count, total, outer = count + len(values), total + values.sum(axis=0), outer + values.T @ values
        for i, chosen in enumerate((~positive, positive)):
            counts[i], sums[i] = counts[i] + int(chosen.sum()), sums[i] + values[chosen].sum(axis=0)
            labels[i] += float(label[chosen].sum(dtype=np.float64))
    if shift is None or not all(counts):
        raise ValueError("edits along activations need training patches with and without the object")
    mean = total / count
    covariance = outer / count - np.outer(mean, mean)
    if not np.isfinite(covariance).all():
        raise ValueError("the training activations are not finite")
    negative, positive_mean = (s / n for s, n in zip(sums, counts, strict=True))
    contrast = labels[1] / counts[1] - labels[0] / counts[0]
    return Moments(mean + shift, covariance, positive_mean + shift, negative + shift, contrast)
