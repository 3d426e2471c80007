"""Figures of the interventions: scores before and after, and the effect beside its controls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sweeps.analysis.summary import Edits
from sweeps.analysis.vocabulary import EDIT_CONTROL_TITLES, TASK_TITLES
from sweeps.report.figures.base import Panel, ink, reach, rules, style


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
    with style(name):
        fig = Figure(figsize=(4.1, 2.7))
        ax = fig.add_axes((0.12, 0.18, 0.85, 0.7))
        for values, label, role in ((edit.before, "before", "random"), (edit.after, "after", "first")):
            counts, _ = np.histogram(values[np.isfinite(values)], edges)
            ax.stairs(counts, edges, fill=True, color=ink(role), alpha=0.28)
            ax.stairs(counts, edges, color=ink(role), lw=1.3, label=label)
            ax.axvline(float(np.nanmedian(values)), color=ink(role), lw=1.2, ls=(0, (4, 2)))
        ax.set_xlabel(f"{measure.label} against the requested label")
        ax.set_ylabel("edits")
        ax.set_xlim(edges[0], edges[-1])
        ax.set_title(TASK_TITLES[measure.task])
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.legend(frameon=False, fontsize=8.5, loc="lower right", bbox_to_anchor=(1.02, 0.96), ncols=2)
    effect = edit.effect
    text = f"Histogram of {effect.trials} edits of {effect.images} images. Median {measure.label} "
    text += f"{effect.before.estimate:.2f} before, {effect.after.estimate:.2f} after."
    before, after = (np.histogram(v, edges)[0].tolist() for v in (edit.before, edit.after))
    lefts, rights = edges[:-1].tolist(), edges[1:].tolist()
    rows = [(measure.task, *row) for row in zip(lefts, rights, before, after, strict=True)]
    title = f"{TASK_TITLES[measure.task]}: before and after"
    return Panel(name, title, text, fig, ("task", "from", "to", "before", "after"), rows)


def effects(edits: Sequence[Edits], stem: str) -> Panel:
    """Improvement of the median score, for the edit and each control."""
    measure, name = edits[0].measure, f"{stem}-controls"
    gains = [e.effect.gain for e in edits]
    names = [EDIT_CONTROL_TITLES.get(e.effect.control, e.effect.control) for e in edits]
    with style(name):
        fig = Figure(figsize=(4.1, 2.7))
        ax = fig.add_axes((0.36, 0.18, 0.6, 0.7))
        for k, (edit, gain) in enumerate(zip(edits, gains, strict=True)):
            role = "first" if edit.effect.control == "edit" else "random"
            ax.errorbar(gain.estimate, k, xerr=reach([gain]), fmt="o", ms=5, color=ink(role))
        ax.axvline(0, color=ink("muted"), lw=0.8)
        ax.set_yticks(np.arange(len(edits)), names)
        ax.set_ylim(len(edits) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        rules(ax, "x")
        ax.set_xlabel(f"improvement of the median {measure.label}")
        ax.set_title(f"{TASK_TITLES[measure.task]} – edit and controls")
    text = "Improvement of the median with 95 % intervals over images: "
    text += "; ".join(f"{n} {g.estimate:.2f}" for n, g in zip(names, gains, strict=True))
    rows = [(measure.task, e.effect.control, g.estimate, g.low, g.high) for e, g in zip(edits, gains, strict=True)]
    title = f"{TASK_TITLES[measure.task]}: edit and controls"
    return Panel(name, title, text + ".", fig, ("task", "control", "mean", "low", "high"), rows)
