"""Matplotlib panels of the report, as SVG that follows the reader's theme, and their shared drawing."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from probing.statistics import Interval
from sweeps.analysis.scores import Measure
from sweeps.analysis.tables import Site
from sweeps.analysis.vocabulary import STEP_AXIS

INKS = {
    # role: (light, dark). Encoder blue and decoder orange differ under every kind of colour blindness.
    "ink": ("#1e2530", "#e8e6e1"),
    "muted": ("#616a76", "#a0a8b2"),
    "rule": ("#d8dbd5", "#343b43"),
    "paper": ("#fcfcf9", "#15181c"),
    "down.0": ("#74a9cf", "#c6dbef"),
    "down.1": ("#2b8cbe", "#7fb8dd"),
    "down.2": ("#045a8d", "#3f8fc4"),
    "mid": ("#55595f", "#c4c4c0"),
    "up.1": ("#e3a254", "#fbd7a8"),
    "up.2": ("#cf6a17", "#f2a65a"),
    "up.3": ("#8c3304", "#e5731c"),
    "first": ("#0072b1", "#5fb4e5"),
    "second": ("#d45f02", "#f0954a"),
    "third": ("#018a68", "#3cc7a0"),
    "random": ("#8b919a", "#8b929b"),
}
BLOCK_INKS = ("down.0", "down.1", "down.2", "mid", "up.1", "up.2", "up.3")
"""roles of blocks in order of execution, from the first of the encoder to the last of the decoder"""
BLOCKS_NAMED = 8
"""blocks that are named in a drawing at most"""
SITE_INKS = ("first", "second", "third")
MARKERS = ("o", "s", "^")
SETTINGS = matplotlib.rc_params_from_file(Path(__file__).with_name("report.mplstyle"), use_default_template=False)


def block_inks(blocks: Sequence[str]) -> dict[str, str]:
    """The colour role of each block in order of execution; a UNet's blocks lie on either side of the middle."""
    # those of other kinds than attention, such as `up.2 mlp`, share its colour
    own = {b: b.partition(" ")[0] for b in blocks}
    down, up = ([b for b in dict.fromkeys(own.values()) if b.startswith(side)] for side in ("down.", "up."))
    if not down and not up:
        return dict(zip(blocks, (BLOCK_INKS[i % len(BLOCK_INKS)] for i in range(len(blocks))), strict=True))
    places = {b: min(i, 2) for i, b in enumerate(down)} | {b: max(6 - i, 4) for i, b in enumerate(reversed(up))}
    return {b: BLOCK_INKS[places.get(own[b], 3)] for b in blocks}


def slug(text: str) -> str:
    """A part's name for ids and file names."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def ink(role: str) -> str:
    """The light colour of a role; the page replaces it by a variable of the reader's theme."""
    return INKS[role][0]


@dataclass(frozen=True)
class Band:
    """A curve over the steps with its interval."""

    label: str
    role: str
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    dashed: bool = False
    marker: str = ""
    key: tuple[str, str] = ("", "")
    """part and variant, for the numbers"""


@dataclass(frozen=True)
class Panel:
    """One figure, alternative text and its numbers."""

    name: str
    """file stem and id prefix"""
    title: str
    text: str
    """alternative text"""
    figure: Figure
    header: tuple[str, ...] = ()
    rows: Sequence[tuple[object, ...]] = ()
    images: int | None = None
    """number of images that the figure's scores are of, written into its corner"""

    def __post_init__(self) -> None:
        if self.images is not None:
            colour = ink("muted")
            words = f"n = {self.images} images"
            self.figure.text(0.995, 0.995, words, ha="right", va="top", fontsize=7.5, color=colour)

    @cached_property
    def svg(self) -> str:
        """Transparent SVG without date or creator, so equal numbers give equal bytes."""
        out = io.StringIO()
        metadata = {"Date": None, "Creator": None}
        with style(self.name):
            self.figure.savefig(out, format="svg", transparent=True, metadata=metadata)
        return out.getvalue()

    def png(self, dpi: int = 110) -> np.ndarray:
        """uint8 (H, W, 3) on the light page."""
        self.figure.set_dpi(dpi)
        self.figure.patch.set_facecolor(ink("paper"))
        canvas = FigureCanvasAgg(self.figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def csv(self) -> str:
        """The numbers as CSV, six significant digits."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.header)
        for row in self.rows:
            writer.writerow([f"{v:.6g}" if isinstance(v, float | np.floating) else v for v in row])
        return out.getvalue()

    def inline(self) -> Markup:
        """The SVG for embedding: unique ids, colours as CSS variables, no fixed size."""
        svg = self.svg[self.svg.index("<svg") :]
        svg = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{self.name}-", svg)
        svg = re.sub(r"font-family: [^;\"]+", "font-family: inherit", svg)
        svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
        named = f'role="img" aria-labelledby="{self.name}-t {self.name}-d"'
        svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', named, svg, count=1)
        svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
        svg = re.sub(r'base64,[^"]+', lambda data: "".join(data[0].split()), svg)
        svg = re.sub(r"\n\s*", " ", svg)
        described = Markup('><title id="{0}-t">{1}</title><desc id="{0}-d">{2}</desc>')
        svg = svg.replace(">", described.format(self.name, self.title, self.text), 1)
        for role, (light, _) in INKS.items():
            svg = svg.replace(light, f"var(--{role.replace('.', '-')})")
        return Markup(svg)


@contextmanager
def style(name: str) -> Iterator[None]:
    """Matplotlib settings of the report for one figure; element ids depend only on `name`."""
    colours: dict[Any, Any] = dict.fromkeys(
        ("axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink("muted")
    )
    colours |= {"text.color": ink("ink"), "grid.color": ink("rule")}
    with matplotlib.rc_context({**SETTINGS, **colours, "svg.hashsalt": name}):
        yield


def figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes; sizes in inches."""
    fig = Figure(figsize=(width, height))
    return fig, fig.add_axes((0.12, 0.15, 0.69, 0.75))


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Move positions apart to at least `gap`, keeping their order, inside `low` to `high`.

    If they do not all fit, they are spaced evenly over the range.
    """
    order = np.argsort(positions, kind="stable")
    moved = np.clip(np.asarray(positions, float)[order], low, high)
    gap = min(gap, (high - low) / max(len(moved) - 1, 1))
    for _ in range(100):
        push = np.maximum(gap - np.diff(moved), 0) / 2
        if not (push > 1e-9).any():
            break
        moved[:-1] -= push
        moved[1:] += push
        moved = np.clip(moved, low, high)
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    for i in range(len(moved) - 1, -1, -1):
        moved[i] = min(moved[i], high - (len(moved) - 1 - i) * gap)
    out = np.empty_like(moved)
    out[order] = moved
    return out


def draw_bands(ax: Axes, steps: Sequence[int], bands: Sequence[Band], levels: dict[str, float]) -> None:
    """Draw curves with shaded intervals, and dashed `levels` by name; labels stand at the right end."""
    for band in bands:
        colour = ink(band.role)
        ax.fill_between(steps, band.low, band.high, color=colour, alpha=0.16, lw=0, zorder=2)
        ax.plot(
            steps,
            band.mean,
            color=colour,
            ls=(0, (3, 2)) if band.dashed else "-",
            lw=1.1 if band.dashed else 1.6,
            marker=band.marker or None,
            ms=3,
            zorder=3,
        )
    ends = [(b.label, b.role, float(b.mean[-1])) for b in bands if b.label]
    for (name, y), dash in zip(levels.items(), ((6, 3), (1, 2)), strict=False):
        if np.isfinite(y):
            ax.axhline(y, color=ink("muted"), lw=0.9, ls=(0, dash), zorder=1)
            ends.append((name, "muted", y))
    ends = [end for end in ends if np.isfinite(end[2])]
    low, high = ax.get_ylim()
    height = ax.bbox.height / ax.figure.dpi * 72
    places = spread([y for _, _, y in ends], 10 * (high - low) / height, low, high)
    offset: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "annotation_clip": False}
    for (label, role, _), y in zip(ends, places, strict=True):
        ax.annotate(label, (steps[-1], y), color=ink(role), va="center", fontsize=8.5, **offset)


def dress(ax: Axes, steps: Sequence[int], ylabel: str) -> None:
    """Set up an axis of denoising steps with light horizontal rules."""
    every = 5 * max(1, round((steps[-1] - steps[0]) / 30))
    ticks = sorted({steps[0], steps[-1], *(s for s in steps if s % every == 0)})
    ax.set_xticks(ticks)
    ax.set_xlim(steps[0] - 0.3, steps[-1] + 0.3)
    ax.set_xlabel(STEP_AXIS)
    ax.set_ylabel(ylabel)
    rules(ax, "y")


def rules(ax: Axes, axis: Literal["x", "y"]) -> None:
    """Draw light grid lines below the data."""
    ax.grid(axis=axis, lw=0.6, zorder=0)
    ax.set_axisbelow(True)


def direction(measure: Measure) -> str:
    """``Dice, higher is better``."""
    return f"{measure.label}, {'higher' if measure.higher else 'lower'} is better"


def reach(estimates: Sequence[Interval]) -> np.ndarray:
    """(2, n) distances from estimates to their bounds for `errorbar`; 0 if there is no interval."""
    distances = [[e.estimate - e.low, e.high - e.estimate] for e in estimates]
    return np.maximum(np.nan_to_num(np.array(distances).reshape(-1, 2).T), 0)


def heat(fig: Figure, ax: Axes, values: np.ndarray, limits: tuple[float, float], colours: str, label: str) -> Axes:
    """Draw a matrix (rows, columns) as colours with a colour bar below; returns the axes of the colour bar."""
    # One pixel for each cell: a path for each of them would be most of the page.
    mesh = ax.imshow(
        np.ma.masked_invalid(values), cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="none",
        aspect="auto", extent=(0, values.shape[1], values.shape[0], 0),
    )  # fmt: skip
    mesh.set_gid("cells")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    place, inch = ax.get_position(), 1 / fig.get_figheight()
    cax = fig.add_axes((place.x0, 0.33 * inch, place.width, 0.085 * inch))
    bar = fig.colorbar(mesh, cax=cax, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8, length=2)
    return bar.ax


def border_runs(chosen: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Horizontal lines of the border of the chosen cells (rows, columns): row, first column, and column of the end."""
    edges = np.diff(np.pad(chosen.astype(np.int8), 1), axis=0) != 0
    for row, line in enumerate(edges[:, 1:-1]):
        ends = np.flatnonzero(np.diff(np.pad(line.astype(np.int8), 1)))
        yield from ((row, start, stop) for start, stop in zip(ends[::2].tolist(), ends[1::2].tolist(), strict=True))


def outline(ax: Axes, chosen: np.ndarray) -> None:
    """Draw the border of the chosen cells (rows, columns) of a matrix: a dark line on a light one."""
    lines = [((x, y), (end, y)) for y, x, end in border_runs(chosen)]
    lines += [((x, y), (x, end)) for x, y, end in border_runs(chosen.T)]
    for width, role in ((2.6, "paper"), (1.1, "ink")):
        ax.add_collection(LineCollection(lines, colors=ink(role), linewidths=width, capstyle="projecting", zorder=4))


def matrix_height(rows: int) -> float:
    """Height in inches of a figure with one line of text for each of `rows` rows of a matrix."""
    return max(3.9, 1.0 + 0.17 * rows)


def site_step_axes(ax: Axes, sites: Sequence[Site], steps: Sequence[int] = ()) -> None:
    """Name sites on the y axis, with lines between the sides of the network, and steps on the x axis."""
    ax.set_yticks(np.arange(len(sites)) + 0.5, [s.name for s in sites], fontsize=8.5)
    ax.set_ylim(len(sites), 0)
    for i in range(1, len(sites)):
        if sites[i].side != sites[i - 1].side:
            ax.axhline(i, color=ink("ink"), lw=0.9)
    if steps:
        every = -(-len(steps) // 20)  # a label needs room
        ax.set_xticks(np.arange(0, len(steps), every) + 0.5, [str(s) for s in steps[::every]])
        ax.set_xlabel(STEP_AXIS)
