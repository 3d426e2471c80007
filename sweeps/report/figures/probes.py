"""Figures of the probe grid: curves by step, heatmaps, sites between floor and oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from probing.statistics import Interval
from sweeps.analysis import summary
from sweeps.analysis.scores import Scores
from sweeps.analysis.vocabulary import TASK_TITLES, variant_title
from sweeps.analysis.words import number
from sweeps.report.figures import base
from sweeps.report.figures.base import Band, Panel, block_inks, ink, style
from sweeps.report.tables import grid_size

CURVE_HEADER = ("task", "score", "line", "variant", "step", "mean", "low", "high")


def y_limits(scores: Scores) -> tuple[float, float]:
    """From the worst mean or floor to the best mean or grid oracle, with a margin; Dice within 0 to 1."""
    known = np.concatenate([scores.means.ravel(), scores.floor, scores.oracle_means])
    known = known[np.isfinite(known)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.05
    return max(0.0, low - margin), min(1.0, high + margin) if scores.measure.higher else high + margin


def block_curves(scores: Scores) -> Panel:
    """Figure 2 of the paper: block means by step, beside the other networks; means of kinds where there are several."""
    task = scores.measure.task
    kinds = list(dict.fromkeys(site.kind for site in scores.sites))
    parts, noun = (kinds, "kind of sites") if len(kinds) > 1 else (list(scores.blocks), "block")
    bands = [_band(scores, "trained", part, part, role) for part, role in block_inks(parts).items()]
    for variant in summary.other_variants(scores):
        label = variant_title(variant).partition(",")[0]
        bands.append(_band(scores, variant, "all", label, "random", dashed=True))
    with style(f"curves-{task}"):
        fig, ax = base.figure(4.1, 3.1)
        _draw_curves(ax, scores, bands, scores.lead_part)
        ax.set_title(f"{TASK_TITLES[task]} – {'block means' if noun == 'block' else 'means by kind'}")
    part = scores.lead_part
    name = "Decoder mean" if part == "decoder" else "Mean over all sites"
    mean, _, _ = summary.curve(scores, "trained", part)
    text = (
        f"{base.direction(scores.measure)}, by denoising step, one line per {noun} with 95 % intervals. {name} of the "
    )
    text += (
        f"trained network: {number(mean[0])} at step {scores.steps[0]}, {number(mean[-1])} at step {scores.steps[-1]}."
    )
    for variant in summary.other_variants(scores):
        other, _, _ = summary.curve(scores, variant, part)
        text += f" {variant_title(variant).capitalize()}: {number(other[-1])}."
    title = f"{TASK_TITLES[task]}: {scores.measure.label} by step"
    return Panel(f"curves-{task}", title, text, fig, CURVE_HEADER, _band_rows(scores, bands), scores.images)


def site_curves(scores: Scores) -> list[Panel]:
    """One small panel per block with a curve for each of its sites."""
    return [_block_panel(scores, block) for block in scores.blocks]


def _block_panel(scores: Scores, block: str) -> Panel:
    task = scores.measure.task
    sites = [scores.sites[i] for i in scores.site_indices(block)]
    bands = []
    for variant in (*summary.randomised(scores)[:1], "trained"):
        for k, site in enumerate(sites):
            control = variant != "trained"
            role = "random" if control else base.SITE_INKS[k % 3]
            label = "" if control else site.name
            bands.append(_band(scores, variant, site.name, label, role, control, base.MARKERS[k % 3]))
    name = f"sites-{task}-{base.slug(block)}"
    with style(name):
        fig, ax = base.figure(2.9, 2.2)
        ax.set_position((0.13, 0.2, 0.65, 0.66))
        _draw_curves(ax, scores, bands, block)
        ax.set_ylabel("")
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.set_title(f"{block}  ({grid_size(sites[0].grid)} patches)")
    text = f"{base.direction(scores.measure)}, for each site of {block}, trained in colour, randomised in grey."
    title = f"{TASK_TITLES[task]}, sites of {block}"
    return Panel(name, title, text, fig, CURVE_HEADER, _band_rows(scores, bands), scores.images)


def _draw_curves(ax: Axes, scores: Scores, bands: Sequence[Band], part: str) -> None:
    """Draw bands with the mean floor and grid oracle of a part; of all sites if the part has none."""
    base.dress(ax, scores.steps, base.direction(scores.measure))
    ax.set_ylim(*y_limits(scores))
    sites = scores.site_indices(part) or scores.site_indices("all")
    floor, oracle = (float(np.mean(values[sites])) for values in (scores.floor, scores.oracle_means))
    base.draw_bands(ax, scores.steps, bands, {"floor": floor, "grid oracle": oracle})


def _band(
    scores: Scores, variant: str, part: str, label: str, role: str, dashed: bool = False, marker: str = ""
) -> Band:
    mean, low, high = summary.curve(scores, variant, part)
    return Band(label, role, mean, low, high, dashed, marker, key=(part, variant))


def _band_rows(scores: Scores, bands: Sequence[Band]) -> list[tuple[object, ...]]:
    measure = scores.measure
    return [
        (measure.task, measure.score, *band.key, step, *values)
        for band in bands
        for step, *values in zip(scores.steps, band.mean, band.low, band.high, strict=True)
    ]


def heatmap(scores: Scores, variant: str) -> Panel:
    """Mean score of every site and step; one colour scale for all variants of a task."""
    measure, task = scores.measure, scores.measure.task
    name = f"heatmap-{task}-{variant.replace('_', '-')}"
    values = scores.means[scores.variant_index(variant)]
    weak = summary.not_above(scores, variant)
    clear = np.isfinite(values) & ~weak & scores.per_image
    with style(name):
        height = base.matrix_height(len(scores.sites))
        fig = Figure(figsize=(4.1, height))
        ax = fig.add_axes((_left(scores), 0.88 / height, 0.97 - _left(scores), 1 - 1.16 / height))
        colours = "viridis" if measure.higher else "viridis_r"
        bar = base.heat(fig, ax, values, y_limits(scores), colours, base.direction(measure))
        base.outline(ax, clear)
        base.site_step_axes(ax, scores.sites, scores.steps)
        ax.set_title(f"{TASK_TITLES[task]} – {variant_title(variant)}")
        _mark_floor(bar, float(np.nanmean(scores.floor)))
    best = summary.best_site(scores, "all", variant)
    text = f"Heatmap of {measure.label}, {len(scores.sites)} sites by {len(scores.steps)} denoising steps, "
    text += f"{variant_title(variant)}."
    if best is not None:
        how = "on validation" if scores.validated else "by training loss"
        text += f" Best site {how} at the last step: {scores.sites[best].name}, "
        text += f"test {measure.label} {number(values[best, -1])}."
    if scores.per_image:
        text += f" {clear.sum()} of {clear.size} entries, outlined, beat the floor"
        text += " and every other network." if variant == "trained" else "."
    numbers = [
        (task, measure.score, variant, site.name, step, values[s, t], int(weak[s, t]))
        for s, site in enumerate(scores.sites)
        for t, step in enumerate(scores.steps)
    ]
    header = ("task", "score", "variant", "site", "step", "mean", "not_above")
    title = f"{TASK_TITLES[task]}, {variant_title(variant)}: every site and step"
    return Panel(name, title, text, fig, header, numbers, scores.images)


def _left(scores: Scores) -> float:
    """Share of a figure's width that the names of the sites need."""
    return max(0.15, 0.017 * max(len(s.name) for s in scores.sites) + 0.02)


def _mark_floor(bar: Axes, floor: float) -> None:
    """Mark the mean floor above a colour bar."""
    if np.isfinite(floor):
        bar.plot([floor], [1.5], marker="v", ms=4, color=ink("ink"), clip_on=False)
        offset: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "annotation_clip": False}
        bar.annotate("floor", (floor, 1.5), fontsize=7.5, va="center", **offset)


def dumbbells(scores: Scores) -> Panel:
    """Last-step score of each site, trained and other networks, between floor and grid oracle."""
    measure, task = scores.measure, scores.measure.task
    name = f"sites-{task}-last"
    variants = ("trained", *summary.other_variants(scores))
    found = {v: [summary.final(scores, v, s.name) for s in scores.sites] for v in variants}
    with style(name):
        height = base.matrix_height(len(scores.sites))
        fig = Figure(figsize=(4.1, height))
        ax = fig.add_axes((_left(scores), 0.85 / height, 0.97 - _left(scores), 1 - 1.13 / height))
        base.site_step_axes(ax, scores.sites)
        _dumbbell_marks(ax, scores, found)
        ax.set_xlim(*y_limits(scores))
        ax.set_xlabel(base.direction(measure))
        base.rules(ax, "x")
        ax.set_title(f"{TASK_TITLES[task]} – step {scores.steps[-1]}")
        look: dict[str, Any] = {"frameon": False, "fontsize": 8, "handletextpad": 0.3, "columnspacing": 1.2}
        fig.legend(loc="lower center", bbox_to_anchor=(0.5, 0.1 / height), ncols=4, **look)
    rows = [
        (task, measure.score, v, site.name, e.estimate, e.low, e.high, scores.oracle_means[i], scores.floor[i])
        for v in variants
        for i, (site, e) in enumerate(zip(scores.sites, found[v], strict=True))
    ]
    header = ("task", "score", "variant", "site", "mean", "low", "high", "oracle", "floor")
    text = f"{base.direction(measure)}, at the last step. For each site: {', '.join(map(variant_title, variants))}, "
    text += "the grid oracle and the floor; the table below has the numbers."
    title = f"{TASK_TITLES[task]}: every site at the last step"
    return Panel(name, title, text, fig, header, rows, scores.images)


def _dumbbell_marks(ax: Axes, scores: Scores, found: Mapping[str, Sequence[Interval]]) -> None:
    """Marks of oracle, floor and every variant at each site."""
    y = np.arange(len(scores.sites)) + 0.5
    ax.plot(scores.oracle_means, y, "|", ms=9, mew=1.6, color=ink("ink"), label="grid oracle")
    ax.plot(scores.floor, y, "|", ms=9, mew=1.2, color=ink("random"), label="floor")
    for k, (variant, estimates) in enumerate(found.items()):
        trained = variant == "trained"
        colour = ink("first" if trained else "second")
        ax.errorbar(
            [e.estimate for e in estimates],
            y,
            xerr=base.reach(estimates),
            fmt="o" if trained else "sD^"[(k - 1) % 3],
            ms=5,
            color=colour,
            mfc=colour if trained else ink("paper"),
            elinewidth=1.2,
            label=variant_title(variant),
        )
