"""What all interventions say together: medians, intervals over images, tests against every control.

Trials of one image are not independent, so the bootstrap resamples images with all their trials, and tests
compare one median per image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interventions.controls import EDIT, VARIATIONS
from probing import statistics
from probing.statistics import Interval, PairedTest

Array = NDArray[np.float64]
EDITS = (EDIT, *VARIATIONS)
"""rows that ought to move the scene; all others are controls"""
SIGN = {"saliency": 1.0, "depth": -1.0}
"""Dice is better when higher, RMSE when lower"""
MEDIANS = (
    "mirror_after", "original_after", "constant_after", "pearson_after", "area_before", "area_target",
    "area_after", "readout_before", "readout_after", "readout_spearman", "outside_change", "edit_norm",
    "others_before", "others_after", "floor", "shift_share", "slope", "outside_label", "departure_before",
    "departure_after", "content_kept", "readout_least",
    "own_scale_before", "own_scale_after", "aligned_before", "aligned_after",
)  # fmt: skip
"""columns that are reported as medians where they have values"""


REACHED = {"saliency": ("readout_after", 0.95), "depth": ("readout_spearman", 0.9)}
"""column and bar of a reading that has reached its target: Dice over cells, or rank correlation"""


@dataclass(frozen=True, order=True)
class Series:
    """What rows must share to be summed up together."""

    experiment: str
    task: str
    sites: str
    steps: str
    iterations: int
    lr: float
    guidance: float


@dataclass(frozen=True)
class Against:
    """A real edit against one comparison, as an improvement: positive where the edit is better."""

    other: str
    """a control, or `mirror`, `original`, `constant`, `others`"""
    gain: Interval
    """median over trials of edit's score minus the other's, with an interval over images"""
    test: PairedTest
    """Wilcoxon signed-rank on per-image medians"""


@dataclass(frozen=True)
class Effect:
    """One control of one series; the real edit has `control` edit, or the name of its variation."""

    series: Series
    control: str
    images: int
    trials: int
    before: Interval
    """median score against the wanted label without an edit"""
    after: Interval
    """median score with it"""
    gain: Interval
    """median after minus median before, turned so that positive is better"""
    relative: float
    """gain as a share of the median before"""
    slope: Interval
    """median over trials of the slope of the change that came on the change asked for; NaN if unknown"""
    caused: float
    """slope over trials of (after - before) on (wanted - before), in the score's units; NaN if undefined"""
    medians: dict[str, float]
    """medians of the other columns"""
    reached: float
    """share of trials whose edited activations the true probe reads as asked (REACHED); NaN if nothing was read"""
    against: tuple[Against, ...] = ()
    """of real edits: every control, and the labels that a collapse would match"""

    @property
    def holds(self) -> bool:
        """Whether the edit beats its start and every comparison with an interval above 0."""
        return self.gain.low > 0 and all(other.gain.low > 0 for other in self.against)


def medians(values: Array, image: NDArray[np.int64], counts: Array) -> Array:
    """Median of values (n) in every resample: image (n) numbers their images, counts (resamples, images).

    Undefined values are left out; a resample without any gives NaN.
    """
    good = ~np.isnan(values)
    values, image = values[good], image[good]
    if not len(values):
        return np.full(len(counts), np.nan)
    order = np.argsort(values, kind="stable")
    running = counts[:, image[order]].cumsum(axis=1)
    total = running[:, -1]
    ends = [np.floor((total - 1) / 2), np.ceil((total - 1) / 2)]
    places = [(running > end[:, None]).argmax(axis=1) for end in ends]
    middle = (values[order][places[0]] + values[order][places[1]]) / 2
    return np.where(total > 0, middle, np.nan)


def median_interval(values: Array, image: NDArray[np.int64], counts: Array) -> Interval:
    """Median over trials with an interval over images."""
    if np.isnan(values).all():
        return Interval(np.nan, np.nan, np.nan)
    return statistics.interval(float(np.nanmedian(values)), medians(values, image, counts))


def per_image(values: Array, image: NDArray[np.int64], images: int) -> Array:
    """Median over the trials of every image; NaN where there is none."""
    found = np.full(images, np.nan)
    for number in range(images):
        mine = values[image == number]
        mine = mine[~np.isnan(mine)]
        if len(mine):
            found[number] = np.median(mine)
    return found


class _Rows:
    """Columns of some rows as arrays."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], samples: Sequence[int]) -> None:
        self.rows = sorted(rows, key=lambda row: (row["sample"], row["trial"]))
        place = {sample: i for i, sample in enumerate(samples)}
        self.image = np.array([place[row["sample"]] for row in self.rows], dtype=np.int64)
        self.keys = [(row["sample"], row["trial"]) for row in self.rows]

    def __getitem__(self, name: str) -> Array:
        return np.array([np.nan if (v := row.get(name)) is None else v for row in self.rows], dtype=np.float64)

    def aligned(self, other: _Rows, name: str) -> Array:
        """Another control's column, trial by trial; NaN where it lacks one."""
        known = dict(zip(other.keys, other[name], strict=True))
        return np.array([known.get(key, np.nan) for key in self.keys], dtype=np.float64)


def summarise(rows: Iterable[Mapping[str, Any]], resamples: int = statistics.RESAMPLES) -> list[Effect]:
    """Effects of finished rows of `results/interventions` (with or without the further columns), in order:
    by series, the real edit first. All controls of a series see the same resamples."""
    found: dict[Series, dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        if row.get("status", "done") == "done":
            series = Series(*(row[name] for name in Series.__dataclass_fields__))
            found.setdefault(series, {}).setdefault(row["control"], []).append(row)
    return [effect for series in sorted(found) for effect in _series(series, found[series], resamples)]


def _series(series: Series, controls: dict[str, list], resamples: int) -> list[Effect]:
    samples = sorted({row["sample"] for rows in controls.values() for row in rows})
    counts = statistics.resample_counts(len(samples), resamples)
    tables = {name: _Rows(rows, samples) for name, rows in controls.items()}
    order = sorted(tables, key=lambda name: (name != EDIT, name))
    return [_effect(series, name, tables, counts) for name in order]


def _effect(series: Series, name: str, tables: dict[str, _Rows], counts: Array) -> Effect:
    rows, sign = tables[name], SIGN[series.task]
    before, after = rows["score_before"], rows["score_after"]
    draws = [medians(values, rows.image, counts) for values in (before, after)]
    middle = [float(np.nanmedian(values)) for values in (before, after)]
    change = sign * (middle[1] - middle[0])
    return Effect(
        series=series,
        control=name,
        images=len(np.unique(rows.image)),
        trials=len(rows.keys),
        before=statistics.interval(middle[0], draws[0]),
        after=statistics.interval(middle[1], draws[1]),
        gain=statistics.interval(change, sign * (draws[1] - draws[0])),
        relative=change / middle[0] if middle[0] else np.nan,
        slope=median_interval(rows["slope"], rows.image, counts),
        caused=_caused(before, after, 1.0 if series.task == "saliency" else 0.0),
        medians={n: float(np.nanmedian(v)) for n in MEDIANS if not np.isnan(v := rows[n]).all()},
        reached=_reached(series.task, rows),
        against=_comparisons(name, tables, sign, counts) if name in EDITS else (),
    )


def _reached(task: str, rows: _Rows) -> float:
    column, bar = REACHED[task]
    values = rows[column]
    values = values[~np.isnan(values)]
    return float((values >= bar).mean()) if len(values) else np.nan


def _caused(before: Array, after: Array, perfect: float) -> float:
    """Least-squares slope of (after - before) on (perfect - before) over trials."""
    asked, came = perfect - before, after - before
    good = ~np.isnan(asked + came)
    asked, came = asked[good] - asked[good].mean() if good.any() else asked[good], came[good]
    square = float(asked @ asked)
    return float(asked @ came) / square if square > 1e-12 else np.nan


def _comparisons(name: str, tables: dict[str, _Rows], sign: float, counts: Array) -> tuple[Against, ...]:
    """An edit against every control, and against the labels that its own images should match less."""
    edit = tables[name]
    ours = edit["score_after"]
    controls = sorted(other for other in tables if other not in EDITS)
    theirs = {other: edit.aligned(tables[other], "score_after") for other in controls}
    theirs |= {other: edit[f"{other}_after"] for other in ("mirror", "original", "constant", "others")}
    return tuple(
        _against(other, sign * ours, sign * scores, edit.image, counts)
        for other, scores in theirs.items()
        if not np.isnan(scores).all()
    )


def _against(name: str, ours: Array, other: Array, image: NDArray[np.int64], counts: Array) -> Against:
    """Trials without a partner count in neither the interval nor the test."""
    ours = np.where(np.isnan(other), np.nan, ours)
    mine, theirs = (per_image(values, image, counts.shape[1]) for values in (ours, other))
    return Against(name, median_interval(ours - other, image, counts), statistics.paired_test(mine, theirs))


@dataclass(frozen=True)
class DepthSlope:
    """Measured on requested depth of objects put where there were none (appendix E)."""

    slope: Interval
    """1: exactly as far as asked; 0: not at all. Both depths minus the depth that was there before"""
    correlation: float
    """Pearson's, over edits"""
    edits: int


def depth_slope(rows: Iterable[Mapping[str, Any]], resamples: int = statistics.RESAMPLES) -> DepthSlope:
    """How closely new objects' depth follows the request, over rows with the columns of score.MORE."""
    rows = [row for row in rows if row["task"] == "depth" and row.get("depth_wanted") is not None]
    if not rows:
        return DepthSlope(Interval(np.nan, np.nan, np.nan), np.nan, 0)
    samples = sorted({row["sample"] for row in rows})
    table = _Rows(rows, samples)
    before = table["depth_before"]
    asked, came = table["depth_wanted"] - before, table["depth_after"] - before
    weights = statistics.resample_counts(len(samples), resamples)[:, table.image]
    draws = _weighted_slopes(asked, came, weights)
    everything = float(_weighted_slopes(asked, came, np.ones((1, len(rows))))[0])
    known = len(rows) > 1 and np.ptp(asked) > 0 and np.ptp(came) > 0
    correlation = float(np.corrcoef(asked, came)[0, 1]) if known else np.nan
    return DepthSlope(statistics.interval(everything, draws), correlation, len(rows))


def _weighted_slopes(x: Array, y: Array, weights: Array) -> Array:
    """Least-squares slopes (resamples) of y on x, with an intercept."""
    total = weights.sum(axis=1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    joint = weights @ (x * y) / total - mean_x * mean_y
    square = weights @ (x * x) / total - mean_x**2
    return np.divide(joint, square, out=np.full(len(total), np.nan), where=square > 1e-12)
