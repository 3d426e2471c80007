"""What ablations of the real edit and second objects say: medians with intervals, slopes (appendices D, E)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interventions.config import GUIDANCE, MAIN, SECOND_OBJECT
from interventions.controls import EDIT
from interventions.summary import DepthSlope, Effect, Series, depth_slope, summarise
from probing.statistics import Interval

ABLATIONS = ("steps", "sides", "dose", GUIDANCE)
"""experiments that vary the real edit: number of steps, group of sites, iterations, guidance scale"""
GROUPS = ("encoder", "bottleneck", "decoder", "all")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """One setting of an ablation."""

    label: str
    place: float
    """number of steps or of iterations, guidance scale, or the group's place in GROUPS"""
    before: Interval
    """median score against the wanted label without an edit"""
    after: Interval
    """median score with it"""
    images: int


@dataclass(frozen=True)
class Ablation:
    """One task's edits under different settings, on the same images."""

    task: str
    experiment: str
    points: tuple[Point, ...]


def finished(rows: Iterable[Row]) -> list[Row]:
    """Rows that ended well."""
    return [row for row in rows if row["status"] == "done"]


def ablations(rows: Iterable[Row]) -> list[Ablation]:
    """Ablations of results/interventions; the main edit on the same images is one of their points."""
    real = [row for row in finished(rows) if row["control"] == EDIT]
    found = []
    for task in sorted({row["task"] for row in real}, reverse=True):
        for name in ABLATIONS:
            mine = [row for row in real if (row["task"], row["experiment"]) == (task, name)]
            if mine:
                found.append(Ablation(task, name, _points(name, [*mine, *_main(real, task, mine)])))
    return found


def _main(real: Sequence[Row], task: str, beside: Sequence[Row]) -> list[Row]:
    samples, name = {row["sample"] for row in beside}, beside[0]["experiment"]
    main = (row for row in real if (row["task"], row["experiment"]) == (task, MAIN) and row["sample"] in samples)
    return [{**row, "experiment": name} for row in main]


def _points(experiment: str, rows: Sequence[Row]) -> tuple[Point, ...]:
    found = [_point(experiment, effect) for effect in summarise(rows)]
    return tuple(sorted(found, key=lambda point: (point.place, point.label)))


def _point(experiment: str, effect: Effect) -> Point:
    label, place = setting(experiment, effect.series)
    return Point(label, place, effect.before, effect.after, effect.images)


def setting(experiment: str, series: Series) -> tuple[str, float]:
    """What an ablation varies in a series: in words, and as a number to order it by."""
    if experiment == "sides":
        name = side(series.sites)
        return name, float(GROUPS.index(name) if name in GROUPS else len(GROUPS))
    if experiment == GUIDANCE:
        return f"{series.guidance:g}", series.guidance
    count = series.iterations if experiment == "dose" else len(series.steps.split(","))
    return str(count), float(count)


def side(sites: str) -> str:
    """The group that site names such as `up.1.0,up.1.1` belong to."""
    groups = {"down": "encoder", "mid": "bottleneck", "up": "decoder"}
    found = {name.partition(".")[0] for name in sites.split(",")}
    if found == set(groups):
        return "all"
    return groups.get(next(iter(found)), sites) if len(found) == 1 else sites


def second_objects(rows: Iterable[Row]) -> dict[str, tuple[DepthSlope, list[Row]]]:
    """Way of editing -> slope of measured on requested depth, and the rows behind it (appendix E)."""
    mine = [row for row in finished(rows) if row["experiment"] == SECOND_OBJECT]
    mine = [row for row in mine if row["depth_wanted"] is not None]
    ways = sorted({row["control"] for row in mine}, key=lambda way: (way != EDIT, way))
    parts = {way: [row for row in mine if row["control"] == way] for way in ways}
    return {way: (depth_slope(part), part) for way, part in parts.items()}
