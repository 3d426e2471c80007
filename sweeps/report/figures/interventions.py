"""Figures of the interventions: before and after, and the effect beside its controls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sweeps.analysis.summary import Edits
from sweeps.report.figures.base import Panel, ink, style
from sweeps.report.figures.probes import TASK_TITLES

CONTROL_TITLES = {
    "edit": "edit",
    "none": "no edit",
    "random_direction": "random direction",
    "random_probe": "probe of randomised net",
    "shuffled_probe": "probe of shuffled labels",
    "late_steps": "late steps only",
    "rank_one": "along the probe",
    "natural": "along the covariance",
}


def edit_panels(edits: Sequence[Edits]) -> list[Panel]:
    """Two panels per task of the main series: before and after, and the effect of each control."""
    found: list[Panel] = []
    main = [e for e in edits if e.main]
    for _, group in groupby(main, key=lambda e: e.effect.series):
        members = list(group)
        stem = f"edits-{members[0].measure.task}"
        if any(p.name.startswith(stem) for p in found):
            stem += f"-{len(found)}"
        found += [before_after(e, stem) for e in members if e.effect.control == "edit"]
        if len(members) > 1:
            found.append(effects(members, stem))
    return found


def before_after(edit: Edits, stem: str) -> Panel:
    """Figure 6 of the paper: scores against the requested label before and after the edit."""
    measure, name = edit.measure, f"{stem}-before-after"
    both = np.concatenate([edit.before, edit.after])
    top = 1.0 if measure.higher else float(np.nanmax(both)) * 1.02
    edges = np.linspace(0, top, 26)
    shown = ((edit.before, "before", "random"), (edit.after, "after", "first"))
    with style(name):
        fig = Figure(figsize=(4.1, 2.7))
        ax = fig.add_axes((0.12, 0.18, 0.85, 0.7))
        for values, label, role in shown:
            _distribution(ax, values, edges, label, role)
        ax.set_xlabel(f"{measure.label} against the requested label")
        ax.set_ylabel("edits")
        ax.set_xlim(edges[0], edges[-1])
        ax.set_title(TASK_TITLES[measure.task])
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.legend(frameon=False, fontsize=8.5, loc="lower right", bbox_to_anchor=(1.02, 0.96), ncols=2)
    effect = edit.effect
    text = f"Histogram of {effect.trials} edits of {effect.images} images. Median {measure.label} "
    text += f"{effect.before.estimate:.2f} before, {effect.after.estimate:.2f} after."
    counts = [np.histogram(v, edges)[0].tolist() for v in (edit.before, edit.after)]
    rows = [
        (measure.task, float(edges[i]), float(edges[i + 1]), *pair) for i, pair in enumerate(zip(*counts, strict=True))
    ]
    title = f"{TASK_TITLES[measure.task]}: before and after"
    return Panel(name, title, text, fig, ("task", "from", "to", "before", "after"), rows)


def _distribution(ax: Axes, values: np.ndarray, edges: np.ndarray, label: str, role: str) -> None:
    counts, _ = np.histogram(values[np.isfinite(values)], edges)
    ax.stairs(counts, edges, fill=True, color=ink(role), alpha=0.28)
    ax.stairs(counts, edges, color=ink(role), lw=1.3, label=label)
    ax.axvline(float(np.nanmedian(values)), color=ink(role), lw=1.2, ls=(0, (4, 2)))


def effects(edits: Sequence[Edits], stem: str) -> Panel:
    """Improvement of the median score, for the edit and each control."""
    measure, name = edits[0].measure, f"{stem}-controls"
    y = np.arange(len(edits))
    change = [e.effect.gain for e in edits]
    names = [CONTROL_TITLES.get(e.effect.control, e.effect.control) for e in edits]
    with style(name):
        fig = Figure(figsize=(4.1, 2.7))
        ax = fig.add_axes((0.36, 0.18, 0.6, 0.7))
        for k, (edit, c) in enumerate(zip(edits, change, strict=True)):
            role = "first" if edit.effect.control == "edit" else "random"
            reach = np.nan_to_num([[c.estimate - c.low], [c.high - c.estimate]])
            ax.errorbar(c.estimate, k, xerr=np.maximum(reach, 0), fmt="o", ms=5, color=ink(role))
        ax.axvline(0, color=ink("muted"), lw=0.8)
        ax.set_yticks(y, names)
        ax.set_ylim(len(edits) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x", lw=0.6)
        ax.set_axisbelow(True)
        ax.set_xlabel(f"improvement of the median {measure.label}")
        ax.set_title(f"{TASK_TITLES[measure.task]} – edit and controls")
    text = "Improvement of the median with 95 % intervals over images: "
    text += "; ".join(f"{n} {c.estimate:.2f}" for n, c in zip(names, change, strict=True))
    rows = [(measure.task, e.effect.control, c.estimate, c.low, c.high) for e, c in zip(edits, change, strict=True)]
    title = f"{TASK_TITLES[measure.task]}: edit and controls"
    return Panel(name, title, text + ".", fig, ("task", "control", "mean", "low", "high"), rows)
