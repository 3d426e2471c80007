"""What the scores say: curves, best sites, gaps, emergence, interventions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from probing import statistics
from sweeps.analysis import DRAWS, MEASURES, SHARE, Estimate, Measure, Scores
from sweeps.report_data import RunData

CONTROL_ORDER = ("edit", "none", "random_direction", "random_probe", "shuffled_probe", "late_steps")


def estimate(value: float, draws: np.ndarray) -> Estimate:
    """A value with the 95 % interval of its bootstrap draws; NaN where there are none."""
    draws = draws[np.isfinite(draws)]
    if not np.isfinite(value) or not draws.size:
        return Estimate(float(value), np.nan, np.nan)
    low, high = np.percentile(draws, (2.5, 97.5))
    return Estimate(float(value), float(low), float(high))


def curve(scores: Scores, variant: str, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the sites of a part by step, with interval bounds: three float64 (T,)."""
    mean, draws = _part(scores, variant, part)
    if not scores.per_image:
        return mean, mean, mean
    low, high = np.percentile(draws, (2.5, 97.5), axis=0)
    return mean, low, high


def _part(scores: Scores, variant: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    v, sites = scores.at(variant), scores.which(part)
    return scores.means[v, sites].mean(0), scores.resampled[:, v, sites].mean(1)


def final(scores: Scores, variant: str, part: str) -> Estimate:
    """Last-step score, mean over the sites of a part."""
    return estimate(*last_step(scores, variant, part))


def last_step(scores: Scores, variant: str, part: str) -> tuple[float, np.ndarray]:
    """Last-step score of a part and its bootstrap draws (draws,)."""
    mean, draws = _part(scores, variant, part)
    return float(mean[-1]), draws[:, -1]


def gap(scores: Scores, part: str, other: str, variant: str = "trained") -> Estimate:
    """How much better `variant` scores than `other` at the last step; positive is better."""
    (a, draws_a), (b, draws_b) = (last_step(scores, v, part) for v in (variant, other))
    sign = scores.measure.sign
    return estimate(sign * (a - b), sign * (draws_a - draws_b))


def emergence(scores: Scores, variant: str, part: str) -> Estimate:
    """Earliest step with 95 % of the way from the floor to the last step's score."""
    mean, draws = _part(scores, variant, part)
    floor = float(np.mean(scores.floor[scores.which(part)]))
    steps = np.asarray(scores.steps, float)
    found = statistics.emergence(mean, floor, steps, share=SHARE)
    again = statistics.emergence(draws, floor, steps, share=SHARE)
    return estimate(float(found), again)


def best_site(scores: Scores, part: str = "all", variant: str = "trained") -> int | None:
    """Index of the site with the best *validation* score at the last step."""
    sites = scores.which(part)
    val = scores.measure.sign * scores.val[scores.at(variant), sites, -1]
    if not np.isfinite(val).any():
        return None
    return sites[int(np.nanargmax(val))]


def contrasts(scores: Scores) -> tuple[str, ...]:
    """Variants that the trained network is compared with."""
    return tuple(v for v in scores.variants if v != "trained" and _present(scores, v))


def _present(scores: Scores, variant: str) -> bool:
    return bool(np.isfinite(scores.means[scores.at(variant)]).any())


@dataclass(frozen=True)
class Edits:
    """Scored interventions of one task and control."""

    experiment: str
    measure: Measure
    control: str
    before: np.ndarray
    after: np.ndarray
    change: Estimate
    """mean improvement, interval over images; positive is better"""
    extra: dict[str, float]
    """medians of the other columns"""


_EXTRAS = (
    "mirror_after",
    "original_after",
    "constant_after",
    "area_before",
    "area_target",
    "area_after",
    "readout_before",
    "readout_after",
    "outside_change",
)


def interventions(run: RunData) -> list[Edits]:
    """Finished interventions by experiment, task and control, the real edit first."""
    table = run.table("interventions")
    if table is None:
        return []
    table = table.filter(pc.equal(table["status"], "done"))
    return sorted(
        _edits(table),
        key=lambda e: (e.measure.task != "saliency", e.experiment, _control_key(e.control)),
    )


def _control_key(control: str) -> tuple[int, str]:
    known = control in CONTROL_ORDER
    return (CONTROL_ORDER.index(control) if known else len(CONTROL_ORDER), control)


def _edits(table: pa.Table) -> Iterator[Edits]:
    measures = {m.task: m for m in MEASURES}
    keys = ("experiment", "task", "control")
    for row in table.select(keys).group_by(list(keys)).aggregate([]).to_pylist():
        if row["task"] not in measures:
            continue
        part = table
        for key in keys:
            part = part.filter(pc.equal(part[key], row[key]))
        yield _edit(part, row["experiment"], measures[row["task"]], row["control"])


def _edit(part: pa.Table, experiment: str, measure: Measure, control: str) -> Edits:
    before, after = (_floats(part, f"score_{when}") for when in ("before", "after"))
    better = measure.sign * (after - before)
    per_image = by_sample(part["sample"].to_numpy(), better)
    draws = statistics.bootstrap_means(per_image, draws=DRAWS)
    extra = {n: float(np.nanmedian(v)) for n in _EXTRAS if (v := _floats(part, n)).size}
    mean = float(np.nanmean(per_image)) if np.isfinite(per_image).any() else np.nan
    return Edits(experiment, measure, control, before, after, estimate(mean, draws), extra)


def by_sample(samples: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean of the finite `values` of each sample: one number per image, so trials are not counted
    as independent."""
    good = np.isfinite(values)
    _, place = np.unique(samples[good], return_inverse=True)
    return np.bincount(place, weights=values[good]) / np.bincount(place)


def _floats(table: pa.Table, name: str) -> np.ndarray:
    """The column's values as float64, or an empty array where none is finite."""
    if name not in table.column_names:
        return np.empty(0)
    values = table[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values if np.isfinite(values).any() else np.empty(0)


def controls(run: RunData) -> Sequence[str]:
    """Probe controls that have rows in the main grid."""
    probes = run.table("probes")
    if probes is None:
        return ()
    main = probes.filter(pc.equal(probes["experiment"], run.experiment))
    return sorted(c for c in pc.unique(main["control"]).to_pylist() if c not in (None, "none"))


def experiments(run: RunData) -> Sequence[str]:
    """Experiments besides the main grid that have probe rows."""
    probes = run.table("probes")
    if probes is None:
        return ()
    names = pc.unique(probes["experiment"]).to_pylist()
    return sorted(name for name in names if name not in (None, run.experiment))
