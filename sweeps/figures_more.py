"""Figures of the interventions: before and after, and the effect beside its controls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweeps.figures import Panel, ink, style
from sweeps.figures_probes import TASK_TITLES
from sweeps.findings import Edits

CONTROL_TITLES = {
    "edit": "edit",
    "none": "no edit",
    "random_direction": "random direction",
    "random_probe": "probe of randomised net",
    "shuffled_probe": "probe of shuffled labels",
    "late_steps": "late steps only",
}


def edit_panels(edits: Sequence[Edits]) -> list[Panel]:
    """Two panels per task: the distributions of the real edit, and every control's mean effect."""
    found = []
    for (experiment, task), group in groupby(edits, key=lambda e: (e.experiment, e.measure.task)):
        members = list(group)
        stem = f"{experiment}-{task}".replace("_", "-")
        found += [before_after(e, stem) for e in members if e.control == "edit"]
        if len(members) > 1:
            found.append(effects(members, stem))
    return found


def before_after(edit: Edits, stem: str) -> Panel:
    """Figures 6 of the paper: scores against the requested label before and after the edit."""
    measure, name = edit.measure, f"{stem}-before-after"
    both = np.concatenate([edit.before, edit.after])
    both = both[np.isfinite(both)]
    edges = np.linspace(0, 1 if measure.higher else float(both.max()) * 1.02, 26)
    with style(name):
        fig = Figure(figsize=(4.1, 2.7))
        ax = fig.add_axes((0.12, 0.18, 0.85, 0.7))
        for values, label, role in (
            (edit.before, "before", "random"),
            (edit.after, "after", "first"),
        ):
            _distribution(ax, values, edges, label, role)
        ax.set_xlabel(f"{measure.label} against the requested label")
        ax.set_ylabel("edits")
        ax.set_xlim(edges[0], edges[-1])
        ax.set_title(f"{TASK_TITLES[measure.task]} – before and after the edit")
        ax.legend(
            frameon=False, fontsize=8.5, loc="upper left" if measure.higher else "upper right"
        )
    medians = [float(np.nanmedian(v)) for v in (edit.before, edit.after)]
    text = f"Histogram of {edit.after.size} edits. Median {measure.label} {medians[0]:.2f} before, "
    text += f"{medians[1]:.2f} after."
    rows = [
        (measure.task, float(edges[i]), float(edges[i + 1]), *counts)
        for i, counts in enumerate(
            zip(
                *(np.histogram(v, edges)[0].tolist() for v in (edit.before, edit.after)),
                strict=True,
            )
        )
    ]
    title = f"{TASK_TITLES[measure.task]}: before and after"
    return Panel(name, title, text, fig, ("task", "from", "to", "before", "after"), rows)


def _distribution(ax: Axes, values: np.ndarray, edges: np.ndarray, label: str, role: str) -> None:
    counts, _ = np.histogram(values[np.isfinite(values)], edges)
    ax.stairs(counts, edges, fill=True, color=ink(role), alpha=0.28)
    ax.stairs(counts, edges, color=ink(role), lw=1.3, label=label)
    ax.axvline(float(np.nanmedian(values)), color=ink(role), lw=1.2, ls=(0, (4, 2)))


def effects(edits: Sequence[Edits], stem: str) -> Panel:
    """Mean improvement of each control with its interval."""
    measure, name = edits[0].measure, f"{stem}-controls"
    y = np.arange(len(edits))
    change = [e.change for e in edits]
    with style(name):
        fig = Figure(figsize=(4.1, 2.7))
        ax = fig.add_axes((0.36, 0.18, 0.6, 0.7))
        for k, (edit, c) in enumerate(zip(edits, change, strict=True)):
            role = "first" if edit.control == "edit" else "random"
            reach = np.nan_to_num([[c.estimate - c.low], [c.high - c.estimate]])
            ax.errorbar(c.estimate, k, xerr=np.maximum(reach, 0), fmt="o", ms=5, color=ink(role))
        ax.axvline(0, color=ink("muted"), lw=0.8)
        ax.set_yticks(y, [CONTROL_TITLES.get(e.control, e.control) for e in edits])
        ax.set_ylim(len(edits) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x", lw=0.6)
        ax.set_axisbelow(True)
        ax.set_xlabel(f"mean improvement in {measure.label}")
        ax.set_title(f"{TASK_TITLES[measure.task]} – edit and controls")
    names = [CONTROL_TITLES.get(e.control, e.control) for e in edits]
    text = "Mean improvement with 95 % intervals over images: "
    text += "; ".join(f"{n} {c.estimate:.2f}" for n, c in zip(names, change, strict=True))
    rows = [
        (measure.task, e.control, c.estimate, c.low, c.high)
        for e, c in zip(edits, change, strict=True)
    ]
    title = f"{TASK_TITLES[measure.task]}: edit and controls"
    return Panel(name, title, text + ".", fig, ("task", "control", "mean", "low", "high"), rows)
