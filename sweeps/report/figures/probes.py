"""Figures of the probe grid: curves by step, heatmaps, sites between floor and oracle."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from probing.diffusion.variants import is_plain, kind, own_seed
from sweeps.analysis import summary
from sweeps.analysis.scores import Scores
from sweeps.report.figures.base import BLOCKS, MARKERS, SITE_INKS, Band, Panel, draw_bands, dress, figure, ink, style

TASK_TITLES = {"saliency": "Salient object", "depth": "Depth"}
VARIANT_TITLES = {
    "trained": "trained",
    "random": "randomised",
    "random_forced": "randomised, trained inputs",
    "reinit": "freshly initialised",
    "same_prompt_other_seed": "other image, same prompt",
}


def variant_title(variant: str) -> str:
    """A variant in words."""
    words = VARIANT_TITLES.get(kind(variant), kind(variant))
    return words if is_plain(variant) else f"{words}, seed {own_seed(variant, 0)}"


def direction(scores: Scores) -> str:
    """``Dice, higher is better``."""
    word = "higher" if scores.measure.higher else "lower"
    return f"{scores.measure.label}, {word} is better"


def y_limits(scores: Scores) -> tuple[float, float]:
    """Dice from 0 to 1; an error from 0 to a little over the largest mean or floor."""
    if scores.measure.higher:
        return 0.0, 1.0
    return 0.0, float(np.nanmax([np.nanmax(scores.means), *scores.floor])) * 1.08


def block_curves(scores: Scores) -> Panel:
    """Figure 2 of the paper: block means by step, beside the randomised network."""
    task = scores.measure.task
    bands = [_band(scores, "trained", block, block, block) for block in BLOCKS if scores.which(block)]
    for variant in summary.contrasts(scores):
        label = variant_title(variant).partition(",")[0]
        bands.append(_band(scores, variant, "all", label, "random", dashed=True))
    with style(f"curves-{task}"):
        fig, ax = figure(4.1, 3.1)
        _axes(ax, scores)
        draw_bands(ax, scores.steps, bands, _levels(scores, "decoder"))
        ax.set_title(f"{TASK_TITLES[task]} – block means")
    text = f"{direction(scores)}, by denoising step, one line per block with 95 % intervals. " + _sentence(scores)
    return Panel(
        f"curves-{task}",
        f"{TASK_TITLES[task]}: {scores.measure.label} by step",
        text,
        fig,
        ("task", "score", "line", "variant", "step", "mean", "low", "high"),
        _band_rows(scores, bands),
    )


def site_curves(scores: Scores) -> list[Panel]:
    """One small panel per block with a curve for each of its sites."""
    return [_block_panel(scores, block) for block in BLOCKS if scores.which(block)]


def _block_panel(scores: Scores, block: str) -> Panel:
    task = scores.measure.task
    sites = [scores.sites[i] for i in scores.which(block)]
    bands = []
    for variant in (*summary.randomised(scores)[:1], "trained"):
        for k, site in enumerate(sites):
            control = variant != "trained"
            role = "random" if control else SITE_INKS[k % 3]
            label = "" if control else site.name
            bands.append(_band(scores, variant, site.name, label, role, control, MARKERS[k % 3]))
    name = f"sites-{task}-{block.replace('.', '-')}"
    rows, columns = sites[0].grid
    with style(name):
        fig, ax = figure(2.9, 2.2)
        ax.set_position((0.13, 0.2, 0.65, 0.66))
        _axes(ax, scores)
        ax.set_ylabel("")
        ax.yaxis.set_major_locator(MaxNLocator(4))
        draw_bands(ax, scores.steps, bands, _levels(scores, block))
        ax.set_title(f"{block}  ({rows} × {columns} cells)")
    text = f"{direction(scores)}, for each site of {block}, trained in colour, randomised in grey."
    return Panel(
        name,
        f"{TASK_TITLES[task]}, sites of {block}",
        text,
        fig,
        ("task", "score", "line", "variant", "step", "mean", "low", "high"),
        _band_rows(scores, bands),
    )


def _band(
    scores: Scores, variant: str, part: str, label: str, role: str, dashed: bool = False, marker: str = ""
) -> Band:
    mean, low, high = summary.curve(scores, variant, part)
    return Band(label, role, mean, low, high, dashed, marker, key=(part, variant))


def _band_rows(scores: Scores, bands: Sequence[Band]) -> list[tuple]:
    measure = scores.measure
    return [
        (measure.task, measure.score, *band.key, step, *values)
        for band in bands
        for step, *values in zip(scores.steps, band.mean, band.low, band.high, strict=True)
    ]


def _axes(ax: Axes, scores: Scores) -> None:
    dress(ax, scores.steps, direction(scores))
    ax.set_ylim(*y_limits(scores))


def _levels(scores: Scores, part: str) -> dict[str, float]:
    sites = scores.which(part) or scores.which("all")
    return {"floor": float(np.mean(scores.floor[sites])), "grid oracle": float(np.mean(scores.oracle_means[sites]))}


def _sentence(scores: Scores) -> str:
    part = "decoder" if scores.which("decoder") else "all"
    first, last = scores.steps[0], scores.steps[-1]
    mean, _, _ = summary.curve(scores, "trained", part)
    where = "Decoder-side mean" if part == "decoder" else "Mean over all sites"
    text = f"{where} of the trained network: {mean[0]:.2f} at step {first}, "
    text += f"{mean[-1]:.2f} at step {last}."
    for variant in summary.contrasts(scores):
        other, _, _ = summary.curve(scores, variant, part)
        text += f" {variant_title(variant).capitalize()}: {other[-1]:.2f}."
    return text


def heatmap(scores: Scores, variant: str) -> Panel:
    """Mean score of every site and step; one colour scale for all variants of a task."""
    task = scores.measure.task
    name = f"heatmap-{task}-{variant.replace('_', '-')}"
    values = scores.means[scores.at(variant)]
    with style(name):
        fig = Figure(figsize=(4.1, 3.9))
        ax = fig.add_axes((0.15, 0.225, 0.82, 0.7))
        mesh = _mesh(ax, scores, values)
        weak = summary.not_above(scores, variant)
        _dots(ax, weak)
        _site_axis(ax, scores)
        ax.set_title(f"{TASK_TITLES[task]} – {variant_title(variant)}")
        _colour_bar(fig, mesh, scores)
    best = summary.best_site(scores, "all", variant)
    text = f"Heatmap of {scores.measure.label}, {len(scores.sites)} sites by "
    text += f"{len(scores.steps)} denoising steps, {variant_title(variant)}."
    if best is not None:
        how = "on validation" if scores.validated else "by training loss"
        text += f" Best site {how} at the last step: {scores.sites[best].name}, "
        text += f"test {scores.measure.label} {values[best, -1]:.2f}."
    text += f" {weak.sum()} of {weak.size} cells, with a dot, are not shown to beat the floor"
    text += " and every other network." if variant == "trained" else "."
    rows = [
        (task, scores.measure.score, variant, site.name, step, values[s, t], int(weak[s, t]))
        for s, site in enumerate(scores.sites)
        for t, step in enumerate(scores.steps)
    ]
    header = ("task", "score", "variant", "site", "step", "mean", "not_above")
    return Panel(name, f"{TASK_TITLES[task]}, {variant_title(variant)}: every site and step", text, fig, header, rows)


def _mesh(ax: Axes, scores: Scores, values: np.ndarray) -> matplotlib.collections.QuadMesh:
    low, high = y_limits(scores)
    maps = matplotlib.colormaps
    shades = maps["viridis"] if scores.measure.higher else maps["viridis_r"]
    mesh = ax.pcolormesh(
        np.ma.masked_invalid(values), cmap=shades, vmin=low, vmax=high, lw=0.6, edgecolors=ink("paper")
    )
    ax.set_xticks(np.arange(len(scores.steps)) + 0.5, [str(s) for s in scores.steps])
    ax.set_xlabel("denoising step")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return mesh


def _dots(ax: Axes, weak: np.ndarray) -> None:
    """A small dot, seen on bright and dark cells alike, where a cell is not shown to beat the floor."""
    rows, columns = np.nonzero(weak)
    ax.plot(columns + 0.5, rows + 0.5, "o", ms=2.6, mew=0.5, color=ink("paper"), mec=ink("ink"), ls="none")


def _site_axis(ax: Axes, scores: Scores) -> None:
    ax.set_yticks(np.arange(len(scores.sites)) + 0.5, [s.name for s in scores.sites], fontsize=8)
    ax.set_ylim(len(scores.sites), 0)
    sides = [s.side for s in scores.sites]
    for i in range(1, len(sides)):
        if sides[i] != sides[i - 1]:
            ax.axhline(i, color=ink("ink"), lw=0.9)


def _colour_bar(fig: Figure, mesh: matplotlib.collections.QuadMesh, scores: Scores) -> None:
    place = fig.add_axes((0.15, 0.085, 0.82, 0.022))
    bar = fig.colorbar(mesh, cax=place, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.set_label(direction(scores), fontsize=8)
    bar.ax.tick_params(labelsize=8, length=2)
    floor = float(np.nanmean(scores.floor))
    if np.isfinite(floor):
        place.plot([floor], [1.5], marker="v", ms=4, color=ink("ink"), clip_on=False)
        place.annotate(
            "floor",
            (floor, 1.5),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=7.5,
            va="center",
            annotation_clip=False,
        )


def dumbbells(scores: Scores) -> Panel:
    """Last-step score of each site, trained and randomised, between floor and grid oracle."""
    task = scores.measure.task
    name = f"sites-{task}-last"
    variants = ("trained", *summary.contrasts(scores))
    found = {v: [summary.final(scores, v, s.name) for s in scores.sites] for v in variants}
    y = np.arange(len(scores.sites)) + 0.5
    with style(name):
        fig = Figure(figsize=(4.1, 3.8))
        ax = fig.add_axes((0.155, 0.155, 0.82, 0.77))
        _site_axis(ax, scores)
        _dumbbell_marks(ax, scores, found, y)
        ax.set_xlim(*y_limits(scores))
        ax.set_xlabel(direction(scores))
        ax.grid(axis="x", lw=0.6)
        ax.set_axisbelow(True)
        ax.set_title(f"{TASK_TITLES[task]} – step {scores.steps[-1]}")
    rows = [
        (task, scores.measure.score, v, site.name, e.estimate, e.low, e.high, scores.oracle_means[i], scores.floor[i])
        for v in variants
        for i, (site, e) in enumerate(zip(scores.sites, found[v], strict=True))
    ]
    header = ("task", "score", "variant", "site", "mean", "low", "high", "oracle", "floor")
    named = ", ".join(map(variant_title, variants))
    text = f"{direction(scores)}, at the last step. For each site: {named}, the grid oracle and the floor; "
    text += "the table below has the numbers."
    return Panel(name, f"{TASK_TITLES[task]}: every site at the last step", text, fig, header, rows)


def _dumbbell_marks(ax: Axes, scores: Scores, found: dict, y: np.ndarray) -> None:
    floor = scores.floor
    ax.plot(scores.oracle_means, y, "|", ms=9, mew=1.6, color=ink("ink"), label="grid oracle")
    ax.plot(floor, y, "|", ms=9, mew=1.2, color=ink("random"), label="floor")
    looks = {"trained": ("o", "first", True)}
    for k, variant in enumerate(v for v in found if v != "trained"):
        looks[variant] = ("sD^"[k % 3], "second", False)
    for variant, estimates in found.items():
        marker, role, filled = looks[variant]
        values = np.array([e.estimate for e in estimates])
        reach = np.array([[e.estimate - e.low, e.high - e.estimate] for e in estimates]).T
        ax.errorbar(
            values,
            y,
            xerr=np.nan_to_num(np.maximum(reach, 0)),
            fmt=marker,
            ms=5,
            color=ink(role),
            mfc=ink(role) if filled else ink("paper"),
            elinewidth=1.2,
            label=variant_title(variant),
        )
    ax.legend(
        loc="upper center",
        bbox_to_anchor=(0.43, -0.145),
        ncols=4,
        frameon=False,
        fontsize=8,
        handletextpad=0.3,
        columnspacing=1.2,
    )
