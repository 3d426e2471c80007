"""Figures of the experiments beside the grid: families by step, emergence, transfer, cosines, selectivity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweeps.analysis import summary
from sweeps.analysis.experiments import Emergence, SelectivityMap, Transfer
from sweeps.analysis.scores import Scores
from sweeps.report.figures.base import BLOCKS, Band, Panel, draw_bands, dress, figure, ink, style
from sweeps.report.figures.probes import TASK_TITLES, direction, y_limits

CURVE_HEADER = ("task", "score", "line", "step", "mean", "low", "high")


def vae_curves(main: Scores, vae: Scores) -> Panel:
    """Section 4.2 and table 1: the VAE's self-attention beside the UNet's decoder, by step."""
    task = main.measure.task
    bands = [_band(main, "decoder", "UNet decoder", "up.2"), _band(vae, "all", "VAE", "first", marker="o")]
    floor = float(np.mean(main.floor[main.which("decoder")]))
    return _curves(f"vae-{task}", f"{TASK_TITLES[task]} – VAE and UNet", main, bands, {"floor": floor})


def conv_curves(main: Scores, conv: Scores) -> list[Panel]:
    """Appendix A: for each block, the mean of its convolutional sites beside that of its self-attention sites."""
    return [_conv_block(main, conv, b) for b in BLOCKS if main.which(b) and conv.which(f"conv.{b}")]


def _conv_block(main: Scores, conv: Scores, block: str) -> Panel:
    task = main.measure.task
    bands = [
        _band(main, block, "attention", "first"),
        _band(conv, f"conv.{block}", "convolution", "second", marker="o"),
    ]
    return _curves(f"conv-{task}-{block.replace('.', '-')}", block, main, bands, {}, small=True)


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
    measure = main.measure
    with style(name):
        fig, ax = figure(2.9, 2.1) if small else figure(4.1, 3.1)
        if small:
            ax.set_position((0.13, 0.21, 0.6, 0.65))
        dress(ax, main.steps, "" if small else direction(main))
        ax.set_ylim(*y_limits(main))
        draw_bands(ax, main.steps, [_spread(b, steps, main.steps) for b, steps in bands], levels)
        for band, steps in bands:
            if band.marker:
                ax.plot(steps, band.mean, band.marker, ms=3.5, color=ink(band.role), zorder=4)
        ax.set_title(title)
    text = f"{direction(main)}, by denoising step, trained network. At the last step: "
    text += "; ".join(f"{b.key[0]} {b.mean[-1]:.2f}" for b, _ in bands) + "."
    rows = [
        (measure.task, measure.score, band.key[0], step, *values)
        for band, steps in bands
        for step, *values in zip(steps, band.mean, band.low, band.high, strict=True)
    ]
    return Panel(name, title, text, fig, CURVE_HEADER, rows)


def _spread(band: Band, steps: tuple[int, ...], onto: tuple[int, ...]) -> Band:
    """A band on all steps: straight between those that it has, absent outside them."""
    lines = [np.interp(onto, steps, v, left=np.nan, right=np.nan) for v in (band.mean, band.low, band.high)]
    return replace(band, mean=lines[0], low=lines[1], high=lines[2], marker="")


EMERGENCE_ROLES = ("first", "second", "random")


def emergence_curves(found: Emergence) -> Panel:
    """Probe and labellers by step, each with the step at which it has 90 % of its final score."""
    task, measure = found.measure.task, found.measure
    name = f"emergence-{task}"
    labels = ("probe", "labeller on x0", "labeller on xt")
    bands = [
        Band(label, role, a.mean, a.low, a.high, key=(a.name, "trained"))
        for label, role, a in zip(labels, EMERGENCE_ROLES, found.curves, strict=True)
    ]
    title = f"{TASK_TITLES[task]} – who sees it first"
    word = "higher" if measure.higher else "lower"
    with style(name):
        fig, ax = figure(4.1, 3.1)
        ax.set_position((0.12, 0.15, 0.62, 0.75))
        dress(ax, found.steps, f"{measure.label}, {word} is better")
        worst = np.nanmax([*np.concatenate([a.high for a in found.curves]), found.floor])
        ax.set_ylim(0, 1.0 if measure.higher else float(worst) * 1.05)
        draw_bands(ax, found.steps, bands, {"floor": found.floor})
        for band, arrival in zip(bands, found.curves, strict=True):
            _mark(ax, band, arrival.step.estimate, found.steps)
        ax.set_title(title)
    text = f"{measure.label} against the label of the finished image, {found.images} test images. Ninety per cent "
    text += "of the way from the floor to the own final score: "
    text += "; ".join(f"{a.name} {_step(a.step.estimate)}" for a in found.curves) + "."
    rows = [
        (task, measure.score, a.name, step, *values)
        for a in found.curves
        for step, *values in zip(found.steps, a.mean, a.low, a.high, strict=True)
    ]
    return Panel(name, title, text, fig, CURVE_HEADER, rows)


def _step(step: float) -> str:
    return f"at step {step:.0f}" if np.isfinite(step) else "never"


def _mark(ax: Axes, band: Band, step: float, steps: tuple[int, ...]) -> None:
    if np.isfinite(step):
        value = band.mean[steps.index(int(step))]
        ax.plot([step], [value], "o", ms=6, color=ink(band.role), mec=ink("paper"), mew=1.2, zorder=5)


def transfer_heatmap(found: Transfer) -> Panel:
    """A probe of each step (rows) applied at each step (columns)."""
    measure, task = found.measure, found.measure.task
    name = f"transfer-{task}-{found.site.name.replace('.', '-')}"
    bad = found.floor if np.isfinite(found.floor) else float(np.nanmax(found.scores))
    low, high = (0.0, 1.0) if measure.higher else (0.0, 1.5 * bad)
    shades = "viridis" if measure.higher else "viridis_r"
    title = f"{TASK_TITLES[task]} – one step’s probe at the others, {found.site.name}"
    own, near = float(np.nanmean(np.diag(found.scores))), _off(found.scores)
    text = f"Matrix of {measure.label}: rows are the step a probe was trained at, columns the step it is applied at. "
    text += f"Mean on the diagonal {own:.2f}, off it {near:.2f}; the floor is {found.floor:.2f}."
    label = f"{measure.label}, {'higher' if measure.higher else 'lower'} is better"
    fig = _square(name, title, found.steps, found.scores, (low, high), shades, label)
    rows = _cells(task, measure.score, found.site.name, found.steps, found.scores)
    header = ("task", "score", "site", "trained_at", "applied_at", "mean")
    return Panel(name, title, text, fig, header, rows)


def cosine_heatmap(found: Transfer) -> Panel:
    """Cosine between the directions of probes of different steps."""
    assert found.cosine is not None
    task = found.measure.task
    name = f"cosine-{task}-{found.site.name.replace('.', '-')}"
    title = f"{TASK_TITLES[task]} – cosine of directions, {found.site.name}"
    text = "Matrix of cosines between probe directions of two steps; 1 on the diagonal, "
    text += f"mean off it {_off(found.cosine):.2f}."
    fig = _square(name, title, found.steps, found.cosine, (-1, 1), "RdBu_r", "cosine")
    rows = _cells(task, "cosine", found.site.name, found.steps, found.cosine)
    return Panel(name, title, text, fig, ("task", "score", "site", "step", "other_step", "value"), rows)


def _off(matrix: np.ndarray) -> float:
    away = matrix[~np.eye(len(matrix), dtype=bool)]
    return float(np.nanmean(away)) if away.size else float("nan")


def _cells(task: str, score: str, site: str, steps: tuple[int, ...], matrix: np.ndarray) -> list[tuple]:
    return [(task, score, site, a, b, float(matrix[i, j])) for i, a in enumerate(steps) for j, b in enumerate(steps)]


def _square(
    name: str, title: str, steps: tuple[int, ...], matrix: np.ndarray, limits: tuple[float, float],
    shades: str, label: str,
) -> Figure:  # fmt: skip
    with style(name):
        fig = Figure(figsize=(4.1, 4.0))
        ax = fig.add_axes((0.15, 0.225, 0.76, 0.7))
        mesh = _mesh(fig, ax, matrix, limits, shades, label)
        mesh.axes.invert_yaxis()
        ticks = np.arange(len(steps)) + 0.5
        names = [str(s) for s in steps]
        ax.set_xticks(ticks, names, fontsize=8)
        ax.set_yticks(ticks, names, fontsize=8)
        ax.set_xlabel("applied at step" if label != "cosine" else "step")
        ax.set_ylabel("trained at step" if label != "cosine" else "step")
        ax.set_title(title)
    return fig


def _mesh(fig: Figure, ax: Axes, matrix: np.ndarray, limits: tuple[float, float], shades: str, label: str):
    mesh = ax.pcolormesh(
        np.ma.masked_invalid(matrix), cmap=shades, vmin=limits[0], vmax=limits[1], lw=0.6,
        edgecolors=ink("paper"),
    )  # fmt: skip
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    place = fig.add_axes((0.15, 0.085, 0.76, 0.022))
    bar = fig.colorbar(mesh, cax=place, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8, length=2)
    return mesh


def selectivity_heatmap(found: SelectivityMap) -> Panel:
    """Site by step: gain over the best rival."""
    task, measure = found.measure.task, found.measure
    name = f"selectivity-{task}"
    reach = max(float(np.nanmax(np.abs(found.gain))), 1e-3)
    title = f"{TASK_TITLES[task]} – selectivity by layer and step"
    with style(name):
        fig = Figure(figsize=(4.1, 3.9))
        ax = fig.add_axes((0.15, 0.225, 0.82, 0.7))
        _mesh(fig, ax, found.gain, (-reach, reach), "RdBu", f"{measure.label} better than the best rival")
        ax.set_xticks(np.arange(len(found.steps)) + 0.5, [str(s) for s in found.steps])
        ax.set_yticks(np.arange(len(found.sites)) + 0.5, [s.name for s in found.sites], fontsize=8)
        ax.set_ylim(len(found.sites), 0)
        ax.set_xlabel("denoising step")
        ax.set_title(title)
    place = np.unravel_index(int(np.nanargmax(found.gain)), found.gain.shape)
    text = f"Heatmap of the gain in {measure.label} over the best of {', '.join(found.baselines)}. Largest: "
    text += f"{found.gain[place]:.2f} at {found.sites[place[0]].name}, step {found.steps[place[1]]}."
    rows = [
        (task, measure.score, site.name, step, float(found.gain[i, j]))
        for i, site in enumerate(found.sites)
        for j, step in enumerate(found.steps)
    ]
    return Panel(name, title, text, fig, ("task", "score", "site", "step", "gain"), rows)
