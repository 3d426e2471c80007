"""Figures of the interventions: scores before and after, and the effect beside its controls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from interventions.config import GAIN, MAIN
from interventions.controls import EDIT, NULLS
from sweeps.analysis.summary import Edits
from sweeps.analysis.vocabulary import DIRECTION_TITLES, EDIT_CONTROL_TITLES, SCALE_TITLES, TASK_TITLES, plain
from sweeps.analysis.words import number
from sweeps.report.figures.base import Panel, ink, reach, rules, style


def edit_panels(edits: Sequence[Edits]) -> list[Panel]:
    """Two panels per task and direction of the main edits: before and after, and the effect of each control."""
    found: list[Panel] = []
    names: Counter[str] = Counter()
    for _, group in groupby((e for e in edits if e.main), key=lambda e: e.effect.series):
        members = list(group)
        stem = f"edits-{members[0].measure.task}-{members[0].effect.series.direction.replace('_', '-')}"
        names[stem] += 1
        if names[stem] > 1:  # two doses of one direction in one output
            stem += f"-{names[stem]}"
        found += [before_after(e, stem) for e in members if e.effect.control == EDIT]
        if len(members) > 1:
            found.append(effects(members, stem))
    return found


def dose_panels(edits: Sequence[Edits]) -> list[Panel]:
    """A panel per task and direction with several gains: dose response of the edit and of every null."""
    series: dict[tuple[str, str], list[Edits]] = {}
    for edit in edits:
        if edit.effect.series.experiment in (MAIN, GAIN):
            series.setdefault((edit.measure.task, edit.effect.series.direction), []).append(edit)
    return [dose_panel(own) for own in series.values() if len({e.effect.series.gain for e in own}) > 1]


def dose_panel(edits: Sequence[Edits]) -> Panel:
    """Change of target minus original by gain, for the edit and the nulls of the same size."""
    first, task = edits[0].effect.series, edits[0].measure.task
    name = f"edits-{task}-{first.direction.replace('_', '-')}-dose-response"
    by_control: dict[str, list[Edits]] = {}
    for edit in sorted(edits, key=lambda e: e.effect.series.gain):
        if edit.effect.control == EDIT or edit.effect.control in NULLS:
            by_control.setdefault(edit.effect.control, []).append(edit)
    with style(name):
        fig = Figure(figsize=(4.1, 2.7))
        ax = fig.add_axes((0.14, 0.18, 0.83, 0.7))
        for control, own in by_control.items():
            x, moved = [e.effect.series.gain for e in own], [e.effect.moved for e in own]
            y = [m.estimate for m in moved]
            if control == EDIT:
                ax.errorbar(x, y, yerr=reach(moved), fmt="o-", ms=5, color=ink("first"), label="edit", zorder=3)
            else:
                label = "nulls of the same size" if control == next(c for c in by_control if c != EDIT) else None
                ax.plot(x, y, "o-", ms=3, lw=1, color=ink("random"), label=label)
        ax.axhline(0, color=ink("muted"), lw=0.8)
        ax.set_xlabel(f"gain, in units {SCALE_TITLES[first.scale]}")
        ax.set_ylabel(f"change of {edits[0].measure.label}, target − original")
        ax.set_title(_title(edits[0]))
        rules(ax, "y")
        ax.legend(frameon=False, fontsize=8.5, loc="best")
    rows = [
        (task, first.direction, e.effect.series.gain, control, e.effect.images, m.estimate, m.low, m.high)
        for control, own in by_control.items()
        for e in own
        for m in [e.effect.moved]
    ]
    shown = "; ".join(f"{e.effect.series.gain:g}: {number(e.effect.moved.estimate)}" for e in by_control.get(EDIT, ()))
    text = f"Change of target minus original by gain: {shown}. Means with 95 % intervals over images."
    header = ("task", "direction", "gain", "control", "images", "mean", "low", "high")
    title = f"{_title(edits[0])}: dose response"
    return Panel(name, title, text, fig, header, rows, edits[0].effect.images)


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
        ax.set_title(_title(edit))
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.legend(frameon=False, fontsize=8.5, loc="lower right", bbox_to_anchor=(1.02, 0.96), ncols=2)
    effect = edit.effect
    text = f"Histogram of {effect.trials} edits of {effect.images} images. Median {measure.label} "
    text += f"{number(effect.before.estimate)} before, {number(effect.after.estimate)} after."
    before, after = (np.histogram(v, edges)[0].tolist() for v in (edit.before, edit.after))
    lefts, rights = edges[:-1].tolist(), edges[1:].tolist()
    rows = [(measure.task, *row) for row in zip(lefts, rights, before, after, strict=True)]
    header = ("task", "from", "to", "before", "after")
    return Panel(name, f"{_title(edit)}: before and after", text, fig, header, rows, effect.images)


def effects(edits: Sequence[Edits], stem: str) -> Panel:
    """Change of target minus original by the edit and by each control."""
    measure, name = edits[0].measure, f"{stem}-controls"
    gains = [e.effect.moved for e in edits]
    names = [EDIT_CONTROL_TITLES.get(e.effect.control, plain(e.effect.control)) for e in edits]
    with style(name):
        fig = Figure(figsize=(4.1, 2.7))
        ax = fig.add_axes((0.36, 0.18, 0.6, 0.7))
        for k, (edit, gain) in enumerate(zip(edits, gains, strict=True)):
            role = "first" if edit.effect.control == EDIT else "random"
            ax.errorbar(gain.estimate, k, xerr=reach([gain]), fmt="o", ms=5, color=ink(role))
        ax.axvline(0, color=ink("muted"), lw=0.8)
        ax.set_yticks(np.arange(len(edits)), names)
        ax.set_ylim(len(edits) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        rules(ax, "x")
        ax.set_xlabel(f"change of {measure.label}, target − original")
        ax.set_title(_title(edits[0]))
    text = "Change of target minus original, means with 95 % intervals over images: "
    text += "; ".join(f"{n} {number(g.estimate)}" for n, g in zip(names, gains, strict=True))
    rows = [(measure.task, e.effect.control, g.estimate, g.low, g.high) for e, g in zip(edits, gains, strict=True)]
    return Panel(
        name,
        f"{_title(edits[0])}: edit and controls",
        text + ".",
        fig,
        ("task", "control", "mean", "low", "high"),
        rows,
        edits[0].effect.images,
    )


def _title(edit: Edits) -> str:
    return f"{TASK_TITLES[edit.measure.task]}, {DIRECTION_TITLES[edit.effect.series.direction]}"
