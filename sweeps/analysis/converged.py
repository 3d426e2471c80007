"""What the checks on the probes say: converged references beside the trained probes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from probing import statistics
from probing.statistics import Interval
from sweeps.analysis import scores
from sweeps.analysis.measures import PRECISION
from sweeps.analysis.scores import MEASURES, Measure
from sweeps.analysis.tables import RunData


@dataclass(frozen=True)
class Pair:
    """Two ways of reading one site at one step, scored on the same test images."""

    measure: Measure
    site: str
    step: int
    ours: float
    theirs: float
    gap: Interval
    """ours minus theirs, turned so that positive is better"""


def references(run: RunData) -> list[Pair]:
    """Converged references against the trained probes of the same cells: ours is the reference."""
    table = run.table("images")
    found = scores.chosen(table, "converged", "none")
    trained = scores.chosen(table, run.experiment, "none")
    if found is None or trained is None:
        return []
    order = [s.name for s in run.sites]
    sites = sorted(set(found["site"].to_pylist()) & set(order), key=order.index)
    steps = sorted(set(found["step"].to_pylist()))
    samples = sorted(set(found["sample"].to_pylist()))
    axes = (("trained",), sites, steps, samples)
    keys = ("variant", "site", "step", "sample")
    counts = statistics.resample_counts(max(len(samples), 1), groups=_captions(run, samples) or ["none"])
    pairs: list[Pair] = []
    # Average precision needs no threshold, so it compares a cross-entropy fit with one for Dice fairly.
    for measure in (MEASURES[0], PRECISION, *MEASURES[1:]):
        ours, theirs = (scores.cube(t, keys, axes, measure.score)[0] for t in (found, trained))
        pairs += _pairs(measure, sites, steps, ours, theirs, counts)
    return pairs


def _captions(run: RunData, samples: list[int]) -> list[str]:
    return [run.captions.get(i, str(i)) for i in samples]


def _pairs(
    measure: Measure, sites: list[str], steps: list[int], ours: np.ndarray, theirs: np.ndarray, counts: np.ndarray
) -> Iterator[Pair]:
    """Pairs of scores (S, T, N) wherever both are defined."""
    for s, site in enumerate(sites):
        for t, step in enumerate(steps):
            both = np.isfinite(ours[s, t]) & np.isfinite(theirs[s, t])
            if both.any():
                a, b = (np.where(both, x[s, t], np.nan) for x in (ours, theirs))
                gap = statistics.difference_interval(measure.sign * a, measure.sign * b, counts)
                mine, other = (float(statistics.mean_defined(x)) for x in (a, b))
                yield Pair(measure, site, step, mine, other, gap)
