"""The nested test of position: what a probe of the activations adds to one that knows only the position.

It stands beside the ten pre-registered contrasts and is not one of them, as their family is fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from probing import statistics
from probing.statistics import Interval
from sweeps.analysis import summary
from sweeps.analysis.scores import POSITION, Scores, collect
from sweeps.analysis.tables import RunData

LARGER, SMALLER = "position_activation", POSITION
"""probe controls: a value per patch together with a linear map of the channels, and the value per patch alone"""


@dataclass(frozen=True)
class NestedTest:
    """One task's larger model minus its smaller one on the same test images, last step, decoder mean."""

    task: str
    sites: int
    """number of sites of the decoder, or of a network without one, at which both were fitted; the mean is over these"""
    all_sites: int
    larger: float
    smaller: float
    gain: Interval
    """above 0 if the activations add to position; paired, bootstrap over images"""
    p: float
    """two-sided Wilcoxon signed-rank test over test images"""
    holm: float
    """Holm-corrected over the tasks that the run has"""


def nested(run: RunData) -> list[NestedTest]:
    """The test of every task for which both controls were fitted at a site of the decoder."""
    if not {LARGER, SMALLER} <= set(summary.controls(run)):
        return []
    larger, smaller = (collect(run, control=name) for name in (LARGER, SMALLER))
    return compare(larger, smaller)


def compare(larger: Mapping[str, Scores], smaller: Mapping[str, Scores]) -> list[NestedTest]:
    """The test of every task that both have, from scores by task."""
    pairs = [
        (larger[task], pair) for task in larger if task in smaller and (pair := _pair(larger[task], smaller[task]))
    ]
    p = [statistics.paired_test(values.mean(0), other.mean(0)).p for _, (values, other) in pairs]
    tests = []
    for (scores, (values, other)), value, holm in zip(pairs, p, statistics.holm(p), strict=True):
        gain = summary.mean_of(scores, scores.measure.sign * (values.mean(0) - other.mean(0)))
        means = [float(statistics.mean_defined(v.mean(0))) for v in (values, other)]
        whole = len(scores.site_indices(scores.lead_part))
        tests.append(NestedTest(scores.measure.task, len(values), whole, means[0], means[1], gain, value, float(holm)))
    return tests


def _pair(larger: Scores, smaller: Scores) -> tuple[np.ndarray, np.ndarray] | None:
    """Last-step scores (sites, N) of both models at the decoder sites that both have; None if not comparable."""
    same = larger.sites == smaller.sites and np.array_equal(larger.samples, smaller.samples)
    if not (same and larger.per_image and smaller.per_image and larger.steps[-1] == smaller.steps[-1]):
        return None
    values, other = (s.values[s.variant_index("trained"), s.site_indices(s.lead_part), -1] for s in (larger, smaller))
    both = np.isfinite(values).any(-1) & np.isfinite(other).any(-1)
    return (values[both], other[both]) if both.any() else None
