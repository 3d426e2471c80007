"""Figures of ablations of the real edit, and of second objects (Figures 11 and 12)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from interventions.config import GUIDANCE
from interventions.summary import DepthSlope
from sweeps.analysis.interventions import Ablation, Row, ablations, second_objects
from sweeps.analysis.scores import MEASURES
from sweeps.report.figures.base import SITE_INKS, Panel, ink, style
from sweeps.report.figures.interventions import CONTROL_TITLES
from sweeps.report.figures.probes import TASK_TITLES

TITLES = {
    "steps": ("number of edited steps", "edited steps, from the first on"),
    "sides": ("group of edited sites", "edited sites"),
    "dose": ("dose", "iterations of the inner optimisation"),
    "guidance": ("guidance", "guidance scale of the edited and of the unedited image"),
}
_LABELS = {measure.task: measure.label for measure in MEASURES}


def panels(table: pa.Table | None) -> list[Panel]:
    """A panel per ablation, and one of second objects where there are any."""
    rows = table.to_pylist() if table is not None else []
    found = [ablation_panel(ablation) for ablation in ablations(rows)]
    objects = second_objects(rows)
    return [*found, second_object_panel(objects)] if objects else found


def ablation_panel(ablation: Ablation) -> Panel:
    """Median score after the edit by setting, with the median of the unedited images; these differ by guidance."""
    task, points, label = ablation.task, ablation.points, _LABELS[ablation.task]
    what, axis = TITLES[ablation.experiment]
    name, x = f"edits-{task}-{ablation.experiment}", np.arange(len(points))
    after, mark = [p.after for p in points], "o" if ablation.experiment == "sides" else "o-"
    with style(name):
        fig = Figure(figsize=(4.1, 2.7))
        ax = fig.add_axes((0.14, 0.18, 0.83, 0.7))
        reach = np.array([[a.estimate - a.low, a.high - a.estimate] for a in after]).T
        ax.errorbar(x, [a.estimate for a in after], yerr=np.maximum(np.nan_to_num(reach), 0), fmt=mark, ms=5,
                    color=ink("first"), label="edited")  # fmt: skip
        before = [p.before.estimate for p in points]
        unedited: dict[str, Any] = {"color": ink("random"), "lw": 1.2, "ls": (0, (4, 2)), "label": "not edited"}
        if ablation.experiment == GUIDANCE:
            ax.plot(x, before, marker="s", ms=3.5, **unedited)
        else:
            ax.axhline(before[0], **unedited)
        ax.set_xticks(x, [p.label for p in points])
        ax.set_xlabel(axis)
        ax.set_ylabel(f"median {label}")
        ax.set_title(f"{TASK_TITLES[task]} – {what}")
        ax.margins(x=0.08, y=0.2)
        ax.grid(axis="y", lw=0.6)
        ax.set_axisbelow(True)
        ax.legend(frameon=False, fontsize=8.5, ncols=2, loc="best")
    text = f"Median {label} to the wanted label by {what}, {points[0].images} images, "
    if ablation.experiment == GUIDANCE:
        told = "; ".join(f"{p.label}: {p.before.estimate:.2f} and {p.after.estimate:.2f}" for p in points)
        text += f"without and with edit at the same scale: {told}."
    else:
        told = "; ".join(f"{p.label}: {p.after.estimate:.2f}" for p in points)
        text += f"{before[0]:.2f} without edit: {told}."
    rows = [(task, p.label, p.images, p.before.estimate, p.after.estimate, p.after.low, p.after.high) for p in points]
    header = ("task", ablation.experiment, "images", "before", "after", "low", "high")
    return Panel(name, f"{TASK_TITLES[task]}: {what}", text, fig, header, rows)


def second_object_panel(found: dict[str, tuple[DepthSlope, list[Row]]]) -> Panel:
    """Measured against requested depth of an object put where there was none (appendix E)."""
    name = "edits-second-object"
    with style(name):
        fig = Figure(figsize=(4.1, 2.7))
        ax = fig.add_axes((0.14, 0.18, 0.83, 0.7))
        for role, (way, (_, rows)) in zip(SITE_INKS, found.items(), strict=False):
            ax.plot(*_changes(rows), "o", ms=3.5, alpha=0.7, color=ink(role), label=CONTROL_TITLES.get(way, way))
        reach = np.array(ax.get_xlim())
        ax.plot(reach, reach, color=ink("muted"), lw=0.8, ls=(0, (4, 2)))
        ax.axhline(0, color=ink("muted"), lw=0.8)
        ax.set_xlabel("change of depth asked for")
        ax.set_ylabel("change that came")
        ax.set_title("Second object – depth")
        ax.legend(frameon=False, fontsize=8.5, loc="best")
    slopes = "; ".join(f"{CONTROL_TITLES.get(w, w)} {s.slope.estimate:.2f}" for w, (s, _) in found.items())
    text = f"Slope of the depth that came on the depth asked for, where the new object should be: {slopes}."
    numbers = [
        (row["control"], row["sample"], row["trial"], *values)
        for _, mine in found.values()
        for row, *values in zip(mine, *_changes(mine), strict=True)
    ]
    return Panel(name, "Second object: depth asked for and depth that came", text, fig,
                 ("way", "sample", "trial", "asked", "came"), numbers)  # fmt: skip


def _changes(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Depth asked for and depth measured, both minus the depth that was there before."""
    both = [(r["depth_wanted"] - r["depth_before"], r["depth_after"] - r["depth_before"]) for r in rows]
    return [asked for asked, _ in both], [came for _, came in both]
