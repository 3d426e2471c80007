"""Ablations of the edit and second objects: medians with intervals, and slopes (appendices D and E)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from interventions.config import GUIDANCE, MAIN, SECOND_OBJECT
from interventions.controls import EDIT
from interventions.summary import DepthSlope, Series, depth_slope, summarise
from probing.statistics import Interval
from sweeps.analysis.tables import SIDES

ABLATIONS = ("steps", "sides", "dose", GUIDANCE)
"""experiments that vary the edit: number of steps, group of sites, iterations, guidance scale"""
GROUPS = (*SIDES.values(), "all")
Row = Mapping[str, Any]


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
    points: tuple[Point, ...]


def finished(rows: Iterable[Row]) -> list[Row]:
    """Rows with status `done`."""
    return [row for row in rows if row["status"] == "done"]


def ablations(rows: Iterable[Row]) -> list[Ablation]:
    """Ablations in results/interventions; the main edit on the same images is one of their points."""
    edits = [row for row in finished(rows) if row["control"] == EDIT]
    found = []
    for task in sorted({row["task"] for row in edits}, reverse=True):
        for name in ABLATIONS:
            varied = [row for row in edits if (row["task"], row["experiment"]) == (task, name)]
            samples = {row["sample"] for row in varied}
            main = [row for row in edits if (row["task"], row["experiment"]) == (task, MAIN)]
            main = [{**row, "experiment": name} for row in main if row["sample"] in samples]
            if varied:
                effects = summarise([*varied, *main])
                points = [Point(*setting(name, e.series), e.before, e.after, e.images) for e in effects]
                found.append(Ablation(task, name, tuple(sorted(points, key=lambda p: (p.place, p.label)))))
    return found


def setting(experiment: str, series: Series) -> tuple[str, float]:
    """The setting that an ablation varies in a series: in words, and as a number to order it by."""
    if experiment == "sides":
        name = side(series.sites)
        return name, float(GROUPS.index(name) if name in GROUPS else len(GROUPS))
    if experiment == GUIDANCE:
        return f"{series.guidance:g}", series.guidance
    count = series.iterations if experiment == "dose" else len(series.steps.split(","))
    return str(count), float(count)


def side(sites: str) -> str:
    """The group of sites such as `up.1.0,up.1.1`; the names themselves if they do not form a group."""
    prefixes = {name.partition(".")[0] for name in sites.split(",")}
    if prefixes == set(SIDES):
        return "all"
    return SIDES.get(next(iter(prefixes)), sites) if len(prefixes) == 1 else sites


def second_objects(rows: Iterable[Row]) -> dict[str, tuple[DepthSlope, list[Row]]]:
    """By control: slope of measured on requested depth, and the rows behind it (appendix E); the edit first."""
    objects = [r for r in finished(rows) if r["experiment"] == SECOND_OBJECT and r["depth_wanted"] is not None]
    controls = sorted({row["control"] for row in objects}, key=lambda control: (control != EDIT, control))
    by_control = {control: [row for row in objects if row["control"] == control] for control in controls}
    return {control: (depth_slope(part), part) for control, part in by_control.items()}
