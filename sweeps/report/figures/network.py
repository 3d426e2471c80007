"""A drawing of the network: its sites in order of execution, coloured by how much can be read from them."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from sweeps.analysis import summary
from sweeps.analysis.scores import Scores
from sweeps.analysis.vocabulary import TASK_TITLES
from sweeps.analysis.words import number
from sweeps.report.figures import base
from sweeps.report.figures.base import Panel, ink, style

COLOURS = "viridis"
PER_ROW = 20
"""sites in a row of a network whose sites all have one grid"""
HEADER = ("task", "site", "block", "rows", "columns", "score", "share")


def network_drawing(scores: Scores) -> Panel:
    """Squares for the sites at the last step: the coarser a site's grid, the lower it stands; the best are outlined."""
    task, name = scores.measure.task, f"network-{scores.measure.task}"
    places, best = _places(scores), summary.best_group(scores)
    shares = np.nan_to_num(summary.shares(scores)[:, -1], nan=0.0)
    columns, rows = (places.max(0) + 1).tolist() if len(places) else (1, 1)
    with style(name):
        fig = Figure(figsize=(4.1, 0.95 + 0.3 * rows))
        height = fig.get_figheight()
        ax = fig.add_axes((0.02, 0.55 / height, 0.96, 1 - 0.85 / height))
        ax.set_xlim(-0.15, columns + 0.15)
        ax.set_ylim(rows + 0.1, -0.35)
        ax.axis("off")
        ax.plot(*(places + 0.5).T, color=ink("rule"), lw=1.2, zorder=1)
        for i, (x, y) in enumerate(places):
            colour = matplotlib.colormaps[COLOURS](float(np.clip(shares[i], 0, 1)))
            edge: dict[str, Any] = {"ec": ink("ink"), "lw": 1.8} if i in best else {"ec": ink("paper"), "lw": 0.8}
            shape = "round,pad=0,rounding_size=0.12"
            box = FancyBboxPatch((x + 0.08, y + 0.12), 0.84, 0.76, boxstyle=shape, fc=colour, zorder=2, **edge)
            box.set_gid(f"site.{i}")
            ax.add_patch(box)
        for block, members in scores.blocks.items():
            at = places[members]
            if len(scores.blocks) <= base.BLOCKS_NAMED:
                ax.text(at[:, 0].mean() + 0.5, at[:, 1].min() - 0.02, block, ha="center", va="bottom", fontsize=8)
        ax.set_title(f"{TASK_TITLES[task]} – sites of the network")
        bar = fig.colorbar(
            matplotlib.cm.ScalarMappable(cmap=COLOURS), cax=fig.add_axes((0.3, 0.38 / height, 0.4, 0.08 / height)),
            orientation="horizontal", ticks=(0, 1),
        )  # fmt: skip
        bar.outline.set_visible(False)
        bar.ax.set_xticklabels(("floor", "grid oracle"), fontsize=8)
        bar.ax.tick_params(length=0)
    named = [scores.sites[i].name for i in best]
    text = f"The network’s {len(scores.sites)} sites in order of execution, coloured by their score at step "
    text += f"{scores.steps[-1]} between floor and grid oracle."
    if named:
        text += f" Outlined: the best site, {named[0]}"
        text += f", and those not clearly worse, {', '.join(named[1:])}." if named[1:] else "."
    last = scores.means[scores.variant_index("trained"), :, -1]
    numbers = [(task, s.name, s.block, *s.grid, float(last[i]), float(shares[i])) for i, s in enumerate(scores.sites)]
    text += (
        " Shares: " + ", ".join(f"{s.name} {number(100 * shares[i], 0)} %" for i, s in enumerate(scores.sites)) + "."
    )
    return Panel(name, f"{TASK_TITLES[task]}: the network’s sites", text, fig, HEADER, numbers, scores.images)


def _places(scores: Scores) -> np.ndarray:
    """int (S, 2): column and row of each site."""
    sizes = sorted({s.grid for s in scores.sites}, reverse=True)
    order = np.arange(len(scores.sites))
    if len(sizes) == 1:
        return np.stack([order % PER_ROW, order // PER_ROW], axis=1)
    return np.stack([order, [sizes.index(s.grid) for s in scores.sites]], axis=1)
