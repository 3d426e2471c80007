"""Trained probes compared with converged references, which no optimiser's budget limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probing import statistics
from probing.statistics import Interval
from sweeps.analysis.measures import PRECISION
from sweeps.analysis.scores import MEASURES, PROBE_KEYS, Measure, captions_of, cube, finished_rows
from sweeps.analysis.tables import RunData
from sweeps.config.schema import GRID


@dataclass(frozen=True)
class ReferenceComparison:
    """A converged reference and the trained probe of one site and step, scored on the same test images."""

    measure: Measure
    site: str
    step: int
    reference: float
    trained: float
    gain: Interval
    """reference minus trained probe, signed so that positive is better"""
    images: int
    """test images on which both have a score"""


def references(run: RunData) -> list[ReferenceComparison]:
    """All comparisons, by measure, site and step."""
    columns = (*PROBE_KEYS, "sample", *(measure.score for measure in (PRECISION, *MEASURES)))
    converged, grid = (
        finished_rows(run.table("images"), name, "none", columns=columns) for name in ("converged", GRID)
    )
    if converged is None or grid is None:
        return []
    stored = set(converged["site"].to_pylist())
    sites = [s.name for s in run.sites if s.name in stored]
    steps, samples = (sorted(set(converged[column].to_pylist())) for column in ("step", "sample"))
    axes = (("trained",), sites, steps, samples)
    counts = statistics.resample_counts(max(len(samples), 1), groups=captions_of(run, samples) or ["none"])
    found = []
    # Average precision needs no threshold, so it compares a cross-entropy fit with one for Dice fairly.
    for measure in (MEASURES[0], PRECISION, *MEASURES[1:]):
        both = np.stack([cube(t, (*PROBE_KEYS, "sample"), axes, measure.score)[0] for t in (converged, grid)])
        both[:, ~np.isfinite(both).all(0)] = np.nan
        for s, t in np.argwhere(np.isfinite(both[0]).any(-1)).tolist():
            reference, trained = both[:, s, t]
            gain = statistics.difference_interval(measure.sign * reference, measure.sign * trained, counts)
            means = [float(statistics.mean_defined(values)) for values in (reference, trained)]
            found.append(
                ReferenceComparison(
                    measure, sites[s], steps[t], means[0], means[1], gain, int(np.isfinite(reference).sum())
                )
            )
    return found
