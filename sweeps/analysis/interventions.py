"""What edits did: verdicts by direction and dose, ablations (appendix D), second objects (appendix E)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from interventions.config import DIRECTIONS, GAIN, GUIDANCE, MAIN, PATCHING, SECOND_OBJECT
from interventions.controls import EDIT
from interventions.summary import Comparison, DepthSlope, Series, depth_slope, series_of, summarise
from probing.statistics import Interval, holm, least_p
from sweeps.analysis.baselines import SIGNIFICANCE, clearly_better
from sweeps.analysis.summary import Edits
from sweeps.analysis.tables import SIDES

ABLATIONS = ("steps", "sides", "dose", GUIDANCE, GAIN)
"""experiments that vary the edit: number of steps, group of sites, iterations, guidance scale, gain"""
LABELS = ("mirror", "constant", "others")
"""labels that an edited image must match less than its target: a collapsed image matches them as well"""
GROUPS = (*SIDES.values(), "all")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """Whether one kind of edit moves the scene: a direction at a dose, for a task."""

    edit: Edits
    p: float
    """of the lead over the null that is hardest to beat, by Holm's method over directions and doses of the task; NaN
    without nulls"""
    not_beaten: tuple[str, ...]
    """nulls and labels over which the edit is not clearly better"""
    compared: int = 1
    """directions and doses of the task over which p is corrected"""

    @property
    def least_p(self) -> float:
        """The smallest p that the images at hand can give."""
        return least_p(min((c.test.pairs for c in self.nulls), default=0), self.compared)

    @property
    def testable(self) -> bool:
        """Whether there are enough images for a p of at most SIGNIFICANCE."""
        return bool(self.nulls) and self.least_p <= SIGNIFICANCE

    @property
    def nulls(self) -> tuple[Comparison, ...]:
        """Comparisons with the nulls that ran beside the edit."""
        return tuple(c for c in self.edit.effect.comparisons if c.null)

    @property
    def lead(self) -> Comparison | None:
        """The null that is hardest to beat; None without nulls."""
        return min(self.nulls, key=lambda c: c.gain.estimate, default=None)

    @property
    def acts(self) -> bool:
        """Whether the scene moves to the target, farther than under every null of the same size."""
        effect = self.edit.effect
        better = effect.improved.low > 0 and effect.moved.low > 0 and not self.not_beaten
        return bool(better and self.nulls and self.p <= SIGNIFICANCE)


def verdicts(edits: Iterable[Edits], task: str) -> list[Verdict]:
    """Verdicts of a task's main edits and of its further doses, in the order of the edits.

    An edit has to beat every null, so its p is the largest of theirs (an intersection-union test).
    """
    own = [
        e
        for e in edits
        if e.measure.task == task and e.effect.control == EDIT and e.effect.series.experiment in (MAIN, GAIN)
    ]
    raw = []
    for edit in own:
        p = [c.test.p if c.gain.estimate > 0 else 1.0 for c in edit.effect.comparisons if c.null]
        raw.append(max(p) if p and not np.isnan(p).any() else np.nan)
    found = []
    for edit, p in zip(own, holm(raw).tolist(), strict=True):
        nulls = [c for c in edit.effect.comparisons if c.null and not clearly_better(c.gain, c.test.p)]
        labels = [c for c in edit.effect.comparisons if c.other in LABELS and not c.gain.low > 0]
        found.append(Verdict(edit, p, tuple(c.other for c in (*nulls, *labels)), int(np.isfinite(raw).sum())))
    return found


def images_needed(comparisons: int) -> int:
    """The number of images from which on a p of at most SIGNIFICANCE is possible after correction."""
    return next(n for n in range(2, 1000) if least_p(n, comparisons) <= SIGNIFICANCE)


def patching_share(edits: Iterable[Edits], edit: Edits) -> float:
    """An edit's change of target minus original as a share of that of activation patching in the same steps.

    NaN if patching did not run, or moves nothing.
    """
    for e in edits:
        same = e.measure.task == edit.measure.task and e.effect.series.steps == edit.effect.series.steps
        if same and e.effect.series.experiment == PATCHING and e.effect.moved.estimate > 0:
            return edit.effect.moved.estimate / e.effect.moved.estimate
    return float("nan")


@dataclass(frozen=True)
class Point:
    """One setting of an ablation."""

    label: str
    place: float
    """position on the axis: number of steps or iterations, guidance scale, or the group's index in GROUPS"""
    before: Interval
    """median score against the target label without an edit"""
    after: Interval
    """median score with the edit"""
    images: int


@dataclass(frozen=True)
class Ablation:
    """One task's edits under different settings, on the same images."""

    task: str
    experiment: str
    direction: str
    points: tuple[Point, ...]


def finished(rows: Iterable[Row]) -> list[Row]:
    """Rows with status `done`."""
    return [row for row in rows if row["status"] == "done"]


def ablations(rows: Iterable[Row]) -> list[Ablation]:
    """Ablations in results/interventions; the main edit on the same images is one of their points."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in finished(rows):
        if row["control"] == EDIT:
            key = (row["task"], row["experiment"], series_of(row).direction)
            groups.setdefault(key, []).append(row)
    found = []
    for task in sorted({key[0] for key in groups}, reverse=True):
        for name in ABLATIONS:
            for direction in DIRECTIONS:
                if not (varied := groups.get((task, name, direction))):
                    continue
                samples = {row["sample"] for row in varied}
                main = [row for row in groups.get((task, MAIN, direction), ()) if row["sample"] in samples]
                effects = summarise([*varied, *({**row, "experiment": name} for row in main)])
                points = [Point(*setting(name, e.series), e.before, e.after, e.images) for e in effects]
                ordered = tuple(sorted(points, key=lambda p: (p.place, p.label)))
                found.append(Ablation(task, name, direction, ordered))
    return found


def setting(experiment: str, series: Series) -> tuple[str, float]:
    """The setting that an ablation varies in a series: in words, and as a number to order it by."""
    if experiment == "sides":
        name = side(series.sites)
        return name, float(GROUPS.index(name) if name in GROUPS else len(GROUPS))
    if experiment == GUIDANCE:
        return f"{series.guidance:g}", series.guidance
    if experiment == GAIN:
        return f"{series.gain:g}", series.gain
    count = series.iterations if experiment == "dose" else len(series.steps.split(","))
    return str(count), float(count)


def side(sites: str) -> str:
    """The group of sites such as `up.1.0,up.1.1`; the names themselves if they do not form a group."""
    prefixes = {name.partition(".")[0] for name in sites.split(",")}
    if prefixes == set(SIDES):
        return "all"
    return SIDES.get(next(iter(prefixes)), sites) if len(prefixes) == 1 else sites


def second_objects(rows: Iterable[Row]) -> dict[tuple[str, str], tuple[DepthSlope, list[Row]]]:
    """By direction and control: slope of measured on requested depth, and the rows behind it (appendix E).

    The edits come first.
    """
    by_way: dict[tuple[str, str], list[Row]] = {}
    for row in finished(rows):
        if row["experiment"] == SECOND_OBJECT and row["depth_wanted"] is not None:
            by_way.setdefault((series_of(row).direction, row["control"]), []).append(row)
    order = sorted(by_way, key=lambda way: (way[1] != EDIT, DIRECTIONS.index(way[0]), way[1]))
    return {way: (depth_slope(by_way[way]), by_way[way]) for way in order}
