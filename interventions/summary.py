"""Effects over all interventions: medians, bootstrap intervals, and tests against every control (no torch).

Trials of one image are not independent, so the bootstrap resamples images with all their trials, and tests
compare one mean per image.

Agreement with the target alone is no causal score: an edit that adds junk where the target is raises it, too. The
primary score is therefore *target minus original*: agreement with the target label minus agreement with the label of
the unedited image. An object that follows gains in the first and loses in the second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interventions.controls import EDIT, NULLS, VARIATIONS
from probing import statistics
from probing.statistics import Interval, PairedTest

Array = NDArray[np.float64]
ResultRow = Mapping[str, Any]
"""columns of `results/interventions`"""
EDITS = (EDIT, *VARIATIONS)
"""rows that should move the scene; all others are controls"""
SIGN = {"saliency": 1.0, "depth": -1.0}
"""Dice is better when higher, RMSE when lower"""
PERFECT = {"saliency": 1.0, "depth": 0.0}
"""score of a label against itself"""
MEDIANS = (
    "mirror_after", "original_after", "constant_after", "pearson_after", "area_before", "area_target",
    "area_after", "readout_before", "readout_after", "readout_spearman", "outside_change", "edit_norm",
    "others_before", "others_after", "floor", "shift_share", "slope", "outside_label", "departure_before",
    "departure_after", "content_kept", "readout_least",
    "own_scale_before", "own_scale_after", "aligned_before", "aligned_after",
)  # fmt: skip
"""columns that are reported as medians if they have values"""
REACHED = {"saliency": ("readout_after", 0.95), "depth": ("readout_spearman", 0.9)}
"""column and threshold of a reading that has reached its target: Dice over patches, or rank correlation"""


@dataclass(frozen=True, order=True)
class Series:
    """Settings shared by rows that are summarised together."""

    experiment: str
    task: str
    sites: str
    steps: str
    iterations: int
    lr: float
    guidance: float
    direction: str = "weights"
    scale: str = "reading"
    gain: float = 1.0


@dataclass(frozen=True)
class Comparison:
    """A real edit compared with one alternative; positive numbers mean that the edit is better.

    With controls, the target-minus-original scores are compared; with labels, agreement with the target label and with
    the other label.
    """

    other: str
    """a control, or `mirror`, `original`, `constant`, `others`: labels that the edited images should match less"""
    gain: Interval
    """mean over images of the edit's score minus the other's, with an interval over images"""
    test: PairedTest
    """Wilcoxon signed-rank on per-image means"""

    @property
    def null(self) -> bool:
        """Whether the other is an edit of the same size that should not reach the target."""
        return self.other in NULLS


@dataclass(frozen=True)
class Effect:
    """One control of one series; for the real edit `control` is edit, or the name of its variation."""

    series: Series
    control: str
    images: int
    trials: int
    before: Interval
    """median score against the target label without an edit"""
    after: Interval
    """median score with the edit"""
    gain: Interval
    """median after minus median before, with the sign that makes positive better"""
    relative: float
    """gain as a share of the median before"""
    slope: Interval
    """median over trials of the slope of the measured on the intended change; NaN if unknown"""
    moved: Interval
    """mean over images of the change of target minus original by the edit; 0 for no edit"""
    improved: Interval
    """mean over images of the improvement of the score against the target label"""
    shift: Interval
    """mean over images of the share of the intended shift of the object's centre; NaN if unknown"""
    kept: Interval
    """mean over images of the share of edited images that still match their caption; NaN if unknown"""
    caused: float
    """slope over trials of (after - before) on (perfect - before), in the score's units; NaN if undefined"""
    medians: dict[str, float]
    """medians of the other columns"""
    reached: float
    """share of trials whose edited activations give the intended reading (REACHED); NaN if nothing was read"""
    comparisons: tuple[Comparison, ...] = ()
    """for real edits: with every control, and with the labels that a collapsed image would match"""


def medians(values: Array, image: NDArray[np.int64], counts: Array) -> Array:
    """Median of values (n) in every resample: image (n) is the index of their image, counts (resamples, images).

    NaN values are left out; a resample without any value gives NaN.
    """
    valid = ~np.isnan(values)
    values, image = values[valid], image[valid]
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
    """Median over trials (n) with an interval over images."""
    if np.isnan(values).all():
        return Interval(np.nan, np.nan, np.nan)
    return statistics.interval(float(np.nanmedian(values)), medians(values, image, counts))


class _Columns:
    """Columns of some rows as float arrays."""

    def __init__(self, rows: Sequence[ResultRow], samples: Sequence[int]) -> None:
        self.rows = sorted(rows, key=lambda row: (row["sample"], row["trial"]))
        index = {sample: i for i, sample in enumerate(samples)}
        self.image = np.array([index[row["sample"]] for row in self.rows], dtype=np.int64)
        self.keys = [(row["sample"], row["trial"]) for row in self.rows]

    def __getitem__(self, name: str) -> Array:
        return np.array([np.nan if (v := row.get(name)) is None else v for row in self.rows], dtype=np.float64)

    def partners(self, other: _Columns, values: Array) -> Array:
        """Another control's values in the order of these trials; NaN for trials that it lacks."""
        by_key = dict(zip(other.keys, values, strict=True))
        return np.array([by_key.get(key, np.nan) for key in self.keys], dtype=np.float64)


def series_of(row: ResultRow) -> Series:
    """The series that a row belongs to; rows of earlier versions lack its last columns."""
    values = {f.name: row.get(f.name) for f in fields(Series)}
    return Series(**{name: value for name, value in values.items() if value is not None})


def summarise(rows: Iterable[ResultRow], resamples: int = statistics.RESAMPLES) -> list[Effect]:
    """Effects of finished rows of `results/interventions`, by series, the real edit first.

    Columns of later versions may be missing. All controls of a series use the same resamples.
    """
    grouped: dict[Series, dict[str, list[ResultRow]]] = {}
    for row in rows:
        if row.get("status", "done") == "done":
            series = series_of(row)
            grouped.setdefault(series, {}).setdefault(str(row["control"]), []).append(row)
    effects = []
    for series, controls in sorted(grouped.items(), key=lambda item: item[0]):
        samples = sorted({row["sample"] for selected in controls.values() for row in selected})
        counts = statistics.resample_counts(len(samples), resamples)
        tables = {name: _Columns(selected, samples) for name, selected in controls.items()}
        order = sorted(tables, key=lambda name: (name != EDIT, name))
        effects += [_effect(series, name, tables, counts) for name in order]
    return effects


def _effect(series: Series, name: str, tables: dict[str, _Columns], counts: Array) -> Effect:
    table, sign = tables[name], SIGN[series.task]
    before, after = table["score_before"], table["score_after"]
    draws = [medians(values, table.image, counts) for values in (before, after)]
    middle = [float(np.nanmedian(values)) for values in (before, after)]
    change = sign * (middle[1] - middle[0])
    column, threshold = REACHED[series.task]
    readings = table[column]
    readings = readings[~np.isnan(readings)]
    return Effect(
        series=series,
        control=name,
        images=len(np.unique(table.image)),
        trials=len(table.keys),
        before=statistics.interval(middle[0], draws[0]),
        after=statistics.interval(middle[1], draws[1]),
        gain=statistics.interval(change, sign * (draws[1] - draws[0])),
        relative=change / middle[0] if middle[0] else np.nan,
        slope=median_interval(table["slope"], table.image, counts),
        moved=image_means(_target_minus_original(table, sign) - sign * (before - PERFECT[series.task]), table, counts),
        improved=image_means(sign * (after - before), table, counts),
        shift=image_means(table["shift_share"], table, counts),
        kept=image_means(table["content_kept"], table, counts),
        caused=_caused(before, after, PERFECT[series.task]),
        medians={n: float(np.nanmedian(v)) for n in MEDIANS if not np.isnan(v := table[n]).all()},
        reached=float((readings >= threshold).mean()) if len(readings) else np.nan,
        comparisons=_comparisons(name, tables, sign, counts) if name in EDITS else (),
    )


def _caused(before: Array, after: Array, perfect: float) -> float:
    """Least-squares slope of (after - before) on (perfect - before) over trials."""
    intended, measured = perfect - before, after - before
    valid = ~np.isnan(intended + measured)
    if not valid.any():
        return np.nan
    intended, measured = intended[valid] - intended[valid].mean(), measured[valid]
    square = float(intended @ intended)
    return float(intended @ measured) / square if square > 1e-12 else np.nan


def _target_minus_original(table: _Columns, sign: float) -> Array:
    """Agreement with the target label minus agreement with the unedited image's own label, by trial."""
    return sign * (table["score_after"] - table["original_after"])


def per_image(values: Array, table: _Columns, images: int) -> Array:
    """Mean over the trials of every image, shape (images); NaN if it has none."""
    known = ~np.isnan(values)
    count = np.bincount(table.image[known], minlength=images)
    total = np.bincount(table.image[known], values[known], minlength=images)
    return np.divide(total, count, out=np.full(images, np.nan), where=count > 0)


def image_means(values: Array, table: _Columns, counts: Array) -> Interval:
    """Mean over images of per-image means of trials (n), with an interval over images."""
    return statistics.mean_interval(per_image(values, table, counts.shape[1]), counts)


def _comparisons(name: str, tables: dict[str, _Columns], sign: float, counts: Array) -> tuple[Comparison, ...]:
    """Compare an edit with every control, and with the labels that its own images should match less."""
    edit, images = tables[name], counts.shape[1]
    pairs: dict[str, tuple[Array, Array]] = {}
    for other in sorted(other for other in tables if other not in EDITS):
        theirs = _target_minus_original(tables[other], sign)
        pairs[other] = _target_minus_original(edit, sign), edit.partners(tables[other], theirs)
    for other in ("mirror", "original", "constant", "others"):
        pairs[other] = sign * edit["score_after"], sign * edit[f"{other}_after"]
    found = []
    for other, (ours, theirs) in pairs.items():
        # trials without a partner count in neither the interval nor the test
        lead = per_image(ours - theirs, edit, images)
        if not np.isnan(lead).all():
            test = statistics.paired_test(lead, np.zeros(images))
            found.append(Comparison(other, statistics.mean_interval(lead, counts), test))
    return tuple(found)


@dataclass(frozen=True)
class DepthSlope:
    """Measured on intended depth of objects pasted where there were none (appendix E)."""

    slope: Interval
    """1: exactly as far as intended; 0: not at all. Both depths are minus the depth before the edit"""
    correlation: float
    """Pearson's, over edits"""
    edits: int


def depth_slope(rows: Iterable[ResultRow], resamples: int = statistics.RESAMPLES) -> DepthSlope:
    """How closely the depth of new objects follows the intended depth, over rows with `depth_wanted` (appendix E)."""
    rows = [row for row in rows if row["task"] == "depth" and row.get("depth_wanted") is not None]
    if not rows:
        return DepthSlope(Interval(np.nan, np.nan, np.nan), np.nan, 0)
    samples = sorted({row["sample"] for row in rows})
    table = _Columns(rows, samples)
    before = table["depth_before"]
    intended, measured = table["depth_wanted"] - before, table["depth_after"] - before
    weights = statistics.resample_counts(len(samples), resamples)[:, table.image]
    draws = _weighted_slopes(intended, measured, weights)
    estimate = float(_weighted_slopes(intended, measured, np.ones((1, len(rows))))[0])
    defined = len(rows) > 1 and np.ptp(intended) > 0 and np.ptp(measured) > 0
    correlation = float(np.corrcoef(intended, measured)[0, 1]) if defined else np.nan
    return DepthSlope(statistics.interval(estimate, draws), correlation, len(rows))


def _weighted_slopes(x: Array, y: Array, weights: Array) -> Array:
    """Least-squares slopes (resamples) of y on x, with an intercept."""
    total = weights.sum(axis=1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    joint = weights @ (x * y) / total - mean_x * mean_y
    square = weights @ (x * x) / total - mean_x**2
    return np.divide(joint, square, out=np.full(len(total), np.nan), where=square > 1e-12)
