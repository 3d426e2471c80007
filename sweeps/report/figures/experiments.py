"""Figures of the experiments beside the grid: families by step, emergence, transfer, cosines, selectivity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from sweeps.analysis import summary
from sweeps.analysis.experiments import Emergence, SelectivityMap, Transfer
from sweeps.analysis.scores import Scores
from sweeps.analysis.vocabulary import TASK_TITLES, baseline_noun
from sweeps.analysis.words import number, step_words
from sweeps.report.figures import base
from sweeps.report.figures.base import Band, Panel, ink, style
from sweeps.report.figures.probes import y_limits

CURVE_HEADER = ("task", "score", "line", "step", "mean", "low", "high")
EMERGENCE_CURVES = {"probe": "first", "labeller on x0": "second", "labeller on xt": "random"}
"""label and colour role of each arrival, in order"""


def vae_curves(main: Scores, vae: Scores) -> Panel:
    """Section 4.2 and table 1: the VAE's self-attention beside the UNet's decoder, by step."""
    task = main.measure.task
    network = "UNet decoder" if main.lead_part == "decoder" else "all sites"
    bands = [_band(main, main.lead_part, network, "up.2"), _band(vae, "all", "VAE", "first", marker="o")]
    floor = float(np.mean(main.floor[main.site_indices(main.lead_part)]))
    return _curves(f"vae-{task}", f"{TASK_TITLES[task]} – VAE and network", main, bands, {"floor": floor})


def conv_curves(main: Scores, conv: Scores) -> list[Panel]:
    """Appendix A: for each block, the mean of its convolutional sites beside that of its self-attention sites."""
    panels = []
    for block in main.blocks:
        if conv.site_indices(f"conv.{block}"):
            attention = _band(main, block, "attention", "first")
            convolution = _band(conv, f"conv.{block}", "convolution", "second", marker="o")
            name = f"conv-{main.measure.task}-{base.slug(block)}"
            panels.append(_curves(name, block, main, [attention, convolution], {}, small=True))
    return panels


def _band(scores: Scores, part: str, label: str, role: str, marker: str = "") -> tuple[Band, tuple[int, ...]]:
    bands = summary.curve(scores, "trained", part)
    return Band(label, role, *bands, marker=marker, key=(part, "trained")), scores.steps


def _curves(
    name: str,
    title: str,
    main: Scores,
    bands: list[tuple[Band, tuple[int, ...]]],
    levels: dict[str, float],
    small: bool = False,
) -> Panel:
    """Bands, each with its own steps, on the steps of `main`."""
    measure = main.measure
    with style(name):
        fig, ax = base.figure(2.9, 2.1) if small else base.figure(4.1, 3.1)
        if small:
            ax.set_position((0.13, 0.21, 0.6, 0.65))
        base.dress(ax, main.steps, "" if small else base.direction(measure))
        ax.set_ylim(*y_limits(main))
        base.draw_bands(ax, main.steps, [_on_steps(b, steps, main.steps) for b, steps in bands], levels)
        for band, steps in bands:
            if band.marker:
                ax.plot(steps, band.mean, band.marker, ms=3.5, color=ink(band.role), zorder=4)
        ax.set_title(title)
    text = f"{base.direction(measure)}, by denoising step, trained network. At the last step: "
    text += "; ".join(f"{b.label} {number(b.mean[-1])}" for b, _ in bands) + "."
    rows = [
        (measure.task, measure.score, band.key[0], step, *values)
        for band, steps in bands
        for step, *values in zip(steps, band.mean, band.low, band.high, strict=True)
    ]
    return Panel(name, title, text, fig, CURVE_HEADER, rows, main.images)


def _on_steps(band: Band, steps: tuple[int, ...], target: tuple[int, ...]) -> Band:
    """A band on the steps `target`: interpolated between its own steps, NaN outside them."""
    lines = [np.interp(target, steps, v, left=np.nan, right=np.nan) for v in (band.mean, band.low, band.high)]
    return replace(band, mean=lines[0], low=lines[1], high=lines[2], marker="")


def emergence_curves(found: Emergence) -> Panel:
    """Probe and labellers by step, each marked at the step at which it has 95 % of its final score."""
    task, measure = found.measure.task, found.measure
    name = f"emergence-{task}"
    bands = [
        Band(label, role, a.mean, a.low, a.high, key=(a.name, "trained"))
        for (label, role), a in zip(EMERGENCE_CURVES.items(), found.curves, strict=True)
    ]
    title = f"{TASK_TITLES[task]} – who sees it first"
    with style(name):
        fig, ax = base.figure(4.1, 3.1)
        ax.set_position((0.12, 0.15, 0.62, 0.75))
        base.dress(ax, found.steps, base.direction(measure))
        ends = [found.floor, *np.concatenate([v for a in found.curves for v in (a.low, a.high)])]
        low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
        ax.set_ylim(max(0.0, low - 0.05 * (high - low)), min(1.0, high) if measure.higher else high * 1.02)
        base.draw_bands(ax, found.steps, bands, {"floor": found.floor})
        for band, arrival in zip(bands, found.curves, strict=True):
            step = arrival.step.estimate
            if arrival.rise.found:
                value = band.mean[found.steps.index(int(step))]
                ax.plot([step], [value], "o", ms=6, color=ink(band.role), mec=ink("paper"), mew=1.2, zorder=5)
        ax.set_title(title)
    text = f"{measure.label} against the label of the finished image, {found.images} test images. Each curve has 95 % "
    text += "of the way from the floor to its own final score: "
    reached = [step_words(a.step.estimate, found.steps) if a.rise.found else a.rise.reason for a in found.curves]
    text += "; ".join(f"{a.name}: {words}" for a, words in zip(found.curves, reached, strict=True)) + "."
    rows = [
        (task, measure.score, a.name, step, *values)
        for a in found.curves
        for step, *values in zip(found.steps, a.mean, a.low, a.high, strict=True)
    ]
    return Panel(name, title, text, fig, CURVE_HEADER, rows, found.images)


def transfer_heatmap(found: Transfer) -> Panel:
    """A probe of each step (rows) applied at each step (columns)."""
    measure, task = found.measure, found.measure.task
    name = f"transfer-{task}-{base.slug(found.site.name)}"
    bad = found.floor if np.isfinite(found.floor) else float(np.nanmax(found.scores))
    limits = (0.0, 1.0) if measure.higher else (0.0, 1.5 * bad)
    colours = "viridis" if measure.higher else "viridis_r"
    title = f"{TASK_TITLES[task]} – one step’s probe at the others, {found.site.name}"
    own, others = float(np.nanmean(np.diag(found.scores))), _off_diagonal(found.scores)
    text = f"Matrix of {measure.label}: rows are the step a probe was trained at, columns the step it is applied at. "
    text += f"Mean on the diagonal {number(own)}, off it {number(others)}; the floor is {number(found.floor)}."
    axes = ("applied at step", "trained at step")
    fig = _step_matrix(name, title, found.steps, found.scores, limits, colours, base.direction(measure), axes)
    rows = _matrix_rows(task, measure.score, found, found.scores)
    return Panel(
        name, title, text, fig, ("task", "score", "site", "trained_at", "applied_at", "mean"), rows, found.images
    )


def cosine_heatmap(found: Transfer) -> Panel:
    """Cosine between the directions of probes of different steps."""
    assert found.cosine is not None
    task = found.measure.task
    name = f"cosine-{task}-{base.slug(found.site.name)}"
    title = f"{TASK_TITLES[task]} – cosine of directions, {found.site.name}"
    text = "Matrix of cosines between the probe directions of two steps; 1 on the diagonal, "
    text += f"mean off it {number(_off_diagonal(found.cosine))}."
    fig = _step_matrix(name, title, found.steps, found.cosine, (-1, 1), "RdBu_r", "cosine", ("step", "step"))
    rows = _matrix_rows(task, "cosine", found, found.cosine)
    return Panel(name, title, text, fig, ("task", "score", "site", "step", "other_step", "value"), rows)


def _off_diagonal(matrix: np.ndarray) -> float:
    """Mean without the diagonal; NaN for a single step."""
    others = matrix[~np.eye(len(matrix), dtype=bool)]
    return float(np.nanmean(others)) if others.size else float("nan")


def _matrix_rows(task: str, score: str, found: Transfer, matrix: np.ndarray) -> list[tuple[object, ...]]:
    steps = list(enumerate(found.steps))
    return [(task, score, found.site.name, a, b, float(matrix[i, j])) for i, a in steps for j, b in steps]


def _step_matrix(
    name: str,
    title: str,
    steps: tuple[int, ...],
    matrix: np.ndarray,
    limits: tuple[float, float],
    colours: str,
    label: str,
    axes: tuple[str, str],
) -> Figure:
    """A matrix (steps, steps); `axes` names columns and rows."""
    with style(name):
        fig = Figure(figsize=(4.1, 4.0))
        ax = fig.add_axes((0.15, 0.225, 0.76, 0.7))
        base.heat(fig, ax, matrix, limits, colours, label)
        ticks, names = np.arange(len(steps)) + 0.5, [str(s) for s in steps]
        ax.set_xticks(ticks, names, fontsize=8)
        ax.set_yticks(ticks, names, fontsize=8)
        ax.set_xlabel(axes[0])
        ax.set_ylabel(axes[1])
        ax.set_title(title)
    return fig


def selectivity_heatmap(found: SelectivityMap) -> Panel:
    """Site by step: gain over the best baseline."""
    task, measure = found.measure.task, found.measure
    name = f"selectivity-{task}"
    reach = max(float(np.nanmax(np.abs(found.gain))), 1e-3)
    title = f"{TASK_TITLES[task]} – selectivity by layer and step"
    with style(name):
        height, left = base.matrix_height(len(found.sites)), max(0.15, 0.017 * max(len(s.name) for s in found.sites))
        fig = Figure(figsize=(4.1, height))
        ax = fig.add_axes((left, 0.88 / height, 0.97 - left, 1 - 1.16 / height))
        base.heat(fig, ax, found.gain, (-reach, reach), "RdBu", f"gain in {measure.label} over the best baseline")
        base.site_step_axes(ax, found.sites, found.steps)
        ax.set_title(title)
    place = np.unravel_index(int(np.nanargmax(found.gain)), found.gain.shape)
    baselines = ", ".join(map(baseline_noun, found.baselines))
    text = f"Heatmap of the gain in {measure.label} over the best of {baselines}. Largest: "
    text += f"{number(found.gain[place])} at {found.sites[place[0]].name}, step {found.steps[place[1]]}."
    rows = [
        (task, measure.score, site.name, step, float(found.gain[i, j]))
        for i, site in enumerate(found.sites)
        for j, step in enumerate(found.steps)
    ]
    return Panel(name, title, text, fig, ("task", "score", "site", "step", "gain"), rows, found.images)
