"""Figures of ablations of the real edit, and of second objects (Figures 11 and 12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from interventions.config import GAIN, GUIDANCE
from interventions.summary import DepthSlope
from sweeps.analysis.interventions import Ablation, Row, ablations, second_objects
from sweeps.analysis.scores import MEASURES
from sweeps.analysis.vocabulary import DIRECTION_TITLES, EDIT_CONTROL_TITLES, EXPERIMENT_TITLES, TASK_TITLES, plain
from sweeps.analysis.words import number
from sweeps.report.figures.base import SITE_INKS, Panel, ink, reach, rules, style

AXES = {
    "steps": "edited steps, from the first on",
    "sides": "edited sites",
    "dose": "iterations of the inner optimisation",
    "guidance": "guidance scale of the edited and of the unedited image",
}
"""x axis of each ablation"""
LABELS = {measure.task: measure.label for measure in MEASURES}


def panels(table: pa.Table | None) -> list[Panel]:
    """A panel per ablation, and one of second objects if there are any."""
    rows = table.to_pylist() if table is not None else []
    # the gain has a panel of its own, with the nulls at every dose
    found = [ablation_panel(ablation) for ablation in ablations(rows) if ablation.experiment != GAIN]
    objects = second_objects(rows)
    return [*found, second_object_panel(objects)] if objects else found


def ablation_panel(ablation: Ablation) -> Panel:
    """Median score after the edit by setting, with the median of the unedited images; these differ by guidance."""
    task, points, label = ablation.task, ablation.points, LABELS[ablation.task]
    direction = ablation.direction.replace("_", "-")
    name, what = f"edits-{task}-{direction}-{ablation.experiment}", EXPERIMENT_TITLES[ablation.experiment]
    x = np.arange(len(points))
    before, after = [p.before.estimate for p in points], [p.after.estimate for p in points]
    by_guidance = ablation.experiment == GUIDANCE
    with style(name):
        fig = Figure(figsize=(4.1, 2.7))
        ax = fig.add_axes((0.14, 0.18, 0.83, 0.7))
        # Groups of sites have no order, so no line joins them.
        look: dict[str, Any] = {"fmt": "o" if ablation.experiment == "sides" else "o-", "ms": 5, "color": ink("first")}
        ax.errorbar(x, after, yerr=reach([p.after for p in points]), label="edited", **look)
        unedited: dict[str, Any] = {"color": ink("random"), "lw": 1.2, "ls": (0, (4, 2)), "label": "not edited"}
        if by_guidance:
            ax.plot(x, before, marker="s", ms=3.5, **unedited)
        else:
            ax.axhline(before[0], **unedited)
        ax.set_xticks(x, [p.label for p in points])
        ax.set_xlabel(AXES[ablation.experiment])
        ax.set_ylabel(f"median {label}")
        ax.set_title(f"{TASK_TITLES[task]}, {DIRECTION_TITLES[ablation.direction]}")
        ax.margins(x=0.08, y=0.2)
        rules(ax, "y")
        ax.legend(frameon=False, fontsize=8.5, ncols=2, loc="best")
    text = f"Median {label} against the target label by {what}, {points[0].images} images, "
    if by_guidance:
        values = "; ".join(
            f"{p.label}: {number(b)} and {number(a)}" for p, b, a in zip(points, before, after, strict=True)
        )
        text += f"without and with the edit at the same scale: {values}."
    else:
        values = "; ".join(f"{p.label}: {number(a)}" for p, a in zip(points, after, strict=True))
        text += f"{number(before[0])} without the edit: {values}."
    rows = [
        (task, ablation.direction, p.label, p.images, p.before.estimate, p.after.estimate, p.after.low, p.after.high)
        for p in points
    ]
    header = ("task", "direction", ablation.experiment, "images", "before", "after", "low", "high")
    return Panel(name, f"{TASK_TITLES[task]}: {what}", text, fig, header, rows, points[0].images)


def second_object_panel(found: Mapping[tuple[str, str], tuple[DepthSlope, list[Row]]]) -> Panel:
    """Achieved and requested depth of an object at a place that had none (appendix E)."""
    name = "edits-second-object"
    titles = {way: f"{DIRECTION_TITLES[way[0]]}, {EDIT_CONTROL_TITLES.get(way[1], plain(way[1]))}" for way in found}
    with style(name):
        fig = Figure(figsize=(4.1, 2.7))
        ax = fig.add_axes((0.14, 0.18, 0.83, 0.7))
        for role, (way, (_, rows)) in zip(SITE_INKS, found.items(), strict=False):
            ax.plot(*_changes(rows), "o", ms=3.5, alpha=0.7, color=ink(role), label=titles[way])
        ends = np.array(ax.get_xlim())
        ax.plot(ends, ends, color=ink("muted"), lw=0.8, ls=(0, (4, 2)))
        ax.axhline(0, color=ink("muted"), lw=0.8)
        ax.set_xlabel("requested change of depth")
        ax.set_ylabel("achieved change")
        ax.set_title("Second object – depth")
        ax.legend(frameon=False, fontsize=8.5, loc="best")
    slopes = "; ".join(f"{titles[way]} {number(slope.slope.estimate)}" for way, (slope, _) in found.items())
    text = f"Slope of the achieved on the requested depth at the place of the new object: {slopes}."
    numbers = [
        (direction, control, row["sample"], row["trial"], *values)
        for (direction, control), (_, rows) in found.items()
        for row, *values in zip(rows, *_changes(rows), strict=True)
    ]
    header = ("direction", "control", "sample", "trial", "asked", "came")
    return Panel(
        name,
        "Second object: requested and achieved depth",
        text,
        fig,
        header,
        numbers,
        len({row[2] for row in numbers}),
    )


def _changes(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Requested and measured depth, both minus the depth before the edit."""
    requested = [row["depth_wanted"] - row["depth_before"] for row in rows]
    return requested, [row["depth_after"] - row["depth_before"] for row in rows]
