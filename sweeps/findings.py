"""What the scores say: curves, best sites, gaps, emergence, interventions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from probing import statistics
from probing.statistics import Interval
from sweeps.analysis import MEASURES, Measure, Scores
from sweeps.report_data import RunData

SHARE = 0.95
"""part of the rise from floor to last score that counts as having emerged"""
NOTHING = Interval(np.nan, np.nan, np.nan)
CONTROL_ORDER = ("edit", "none", "random_direction", "random_probe", "shuffled_probe", "late_steps")


def curve(scores: Scores, variant: str, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the sites of a part by step, with interval bounds: three float64 (T,)."""
    values = scores.part(variant, part)
    found = [_interval(scores, step) for step in values]
    return tuple(np.array([getattr(i, end) for i in found]) for end in ("estimate", "low", "high"))  # type: ignore[return-value]


def _interval(scores: Scores, values: np.ndarray) -> Interval:
    """Mean of per-image values (N,) with its interval; without images no interval."""
    if scores.per_image:
        return statistics.mean_interval(values, scores.counts)
    return Interval(float(statistics.mean_defined(values)), np.nan, np.nan)


def final(scores: Scores, variant: str, part: str) -> Interval:
    """Last-step score, mean over the sites of a part."""
    return _interval(scores, scores.part(variant, part)[-1])


def gap(scores: Scores, part: str, other: str, variant: str = "trained") -> Interval:
    """How much better `variant` scores than `other` at the last step; positive is better."""
    ours, theirs = (scores.part(v, part)[-1] for v in (variant, other))
    return _interval(scores, scores.measure.sign * (ours - theirs))


def gap_tests(scores: Scores, other: str) -> np.ndarray:
    """Wilcoxon signed-rank p of trained against `other` at each site's last step, (S,), by Holm."""
    sites = [s.name for s in scores.sites]
    pairs = [[scores.part(v, s)[-1] for v in ("trained", other)] for s in sites]
    return statistics.holm([statistics.paired_test(*pair).p for pair in pairs])


def emergence(scores: Scores, variant: str, part: str) -> Interval:
    """Earliest step with 95 % of the way from the floor to the last step's score.

    NaN where the last step does not beat the floor.
    """
    floor = float(np.mean(scores.floor[scores.which(part)]))
    found = statistics.emergence(
        scores.part(variant, part),
        floor,
        scores.steps,
        higher_is_better=scores.measure.higher,
        share=SHARE,
        counts=scores.counts,
    )
    step = np.nan if found.step is None else float(found.step)
    if not scores.per_image or found.step is None:
        return Interval(step, np.nan, np.nan)
    return Interval(step, found.low, found.high)


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
    change: Interval
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
    change = statistics.mean_interval(per_image) if per_image.size else NOTHING
    extra = {n: float(np.nanmedian(v)) for n in _EXTRAS if (v := _floats(part, n)).size}
    return Edits(experiment, measure, control, before, after, change, extra)


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
