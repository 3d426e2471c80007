"""The nested test of position: what a probe of the activations adds to one that knows the place alone.

It stands beside the ten contrasts that were named beforehand, not among them: their family is fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from probing import statistics
from probing.statistics import Interval
from sweeps.analysis import scores, summary
from sweeps.analysis.scores import Scores
from sweeps.analysis.tables import RunData

LARGER, SMALLER = "position_activation", "position"
"""controls: a value per cell of the grid beside the linear map on the channels, and the value alone"""


@dataclass(frozen=True)
class Nested:
    """One task's larger minus its smaller model on the same test images, last step, decoder mean."""

    task: str
    sites: int
    """how many of the decoder's sites both were fitted at, the mean is over these"""
    of: int
    """sites of the decoder"""
    larger: float
    smaller: float
    gain: Interval
    """above 0 where the activations add to position; paired, bootstrap over images"""
    p: float
    """two-sided Wilcoxon signed ranks over test images"""
    holm: float
    """corrected over the tasks that the run holds"""


def nested(run: RunData) -> list[Nested]:
    """The test of every task for which both controls were fitted at a site of the decoder."""
    if not {LARGER, SMALLER} <= set(summary.controls(run)):
        return []
    larger, smaller = (scores.collect(run, control=name) for name in (LARGER, SMALLER))
    return compare(larger, smaller)


def compare(larger: Mapping[str, Scores], smaller: Mapping[str, Scores]) -> list[Nested]:
    """The test of every task that both have, from scores by task."""
    found = [_one(larger[task], smaller[task]) for task in larger if task in smaller]
    held = [one for one in found if one is not None]
    if not held:
        return []
    corrected = statistics.holm([one.p for one in held])
    return [replace(one, holm=float(adjusted)) for one, adjusted in zip(held, corrected, strict=True)]


def _one(larger: Scores, smaller: Scores) -> Nested | None:
    alike = larger.sites == smaller.sites and np.array_equal(larger.samples, smaller.samples)
    if not (alike and larger.per_image and smaller.per_image and larger.steps[-1] == smaller.steps[-1]):
        return None
    ours, theirs = (s.values[s.at("trained"), :, -1] for s in (larger, smaller))
    decoder = larger.which("decoder")
    both = [i for i in decoder if np.isfinite(ours[i]).any() and np.isfinite(theirs[i]).any()]
    if not both:
        return None
    ours, theirs = ours[both].mean(0), theirs[both].mean(0)
    gain = summary.mean_of(larger, larger.measure.sign * (ours - theirs))
    ours_mean, theirs_mean = (float(statistics.mean_defined(v)) for v in (ours, theirs))
    p = statistics.paired_test(ours, theirs).p
    return Nested(larger.measure.task, len(both), len(decoder), ours_mean, theirs_mean, gain, p, float("nan"))
