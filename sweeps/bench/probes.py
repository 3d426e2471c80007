"""Measures fit_site against the paper's loop on the same activations: `scenesweep bench probes`.

Expected on two cores: tens of times at the sizes of scenes, more than ten at the paper's 64 x 64 x 320.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from probing.dataset.split import Split
from probing.probes.config import ProbeConfig
from probing.probes.fit import FitSpec, fit_site
from probing.probes.optimiser import initial_seed, sample_orders
from probing.scoring.targets import DepthTargets, Grid, Targets, pool_depth, pool_saliency
from sweeps.bench.paired import row
from sweeps.bench.paper_loop import paper_probe

TASKS = ("saliency", "depth")


@dataclass(frozen=True)
class Size:
    """One kind of site and its data."""

    grid: Grid
    """cells"""
    channels: int
    """of the activations"""
    image: int
    """pixels a side"""
    samples: tuple[int, int, int]
    """train, val, test"""
    steps: int
    """fitted in one call"""
    sites: int
    """of this kind in the network: its weight in the total"""


SCENES_SAMPLES = (96, 0, 96)
SCENES = (
    Size((16, 16), 96, 128, SCENES_SAMPLES, 15, 5),
    Size((8, 8), 160, 128, SCENES_SAMPLES, 15, 5),
    Size((4, 4), 192, 128, SCENES_SAMPLES, 15, 5),
    Size((2, 2), 192, 128, SCENES_SAMPLES, 15, 1),
)
PAPER = Size((64, 64), 320, 512, (246, 0, 371), 1, 1)


@dataclass(frozen=True, eq=False)
class Problem:
    """Made-up activations and labels of a size."""

    size: Size
    acts: NDArray[np.float16]
    masks: NDArray[np.uint8]
    depth: NDArray[np.float32]
    split: Split
    targets: dict[str, Targets]


def make_problem(size: Size, seed: int = 0) -> Problem:
    """Smooth standardised depth with one near object per image; activations that know a little of both."""
    random = np.random.default_rng(seed)
    count = sum(size.samples)
    rows, columns = np.linspace(-1, 1, size.image)[:, None], np.linspace(-1, 1, size.image)[None]
    depth = np.empty((count, size.image, size.image), np.float32)
    masks = np.empty(depth.shape, np.uint8)
    for sample in range(count):
        x, y, radius = random.uniform(-0.6, 0.6), random.uniform(-0.6, 0.6), random.uniform(0.2, 0.5)
        masks[sample] = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        slope = random.normal(size=3) * (0.7, 0.3, 0.3)
        depth[sample] = slope[0] * rows + slope[1] * columns + slope[2] + masks[sample] * random.uniform(0.5, 2)
    split = Split(*np.split(np.arange(count), np.cumsum(size.samples)[:2]))
    pooled = pool_depth(depth, size.grid)
    targets: dict[str, Targets] = {"saliency": pool_saliency(masks, size.grid), "depth": pooled}
    return Problem(size, _activations(size, pooled, random), masks, depth, split, targets)


def _activations(size: Size, targets: DepthTargets, random: np.random.Generator) -> NDArray[np.float16]:
    known = targets.mean.astype(np.float32)[..., None]
    acts = np.empty((size.steps, len(known), known.shape[1], size.channels), np.float16)
    for step in range(size.steps):
        direction = random.standard_normal(size.channels, dtype=np.float32) * 0.2
        for sample in range(len(known)):
            noise = random.standard_normal((known.shape[1], size.channels), dtype=np.float32)
            acts[step, sample] = noise + known[sample] * direction
    return acts


def time_ours(problem: Problem, config: ProbeConfig) -> float:
    """Seconds that fit_site takes for one step with both tasks, images and scores included."""
    steps = range(1, problem.size.steps + 1)
    cells = [FitSpec(step, task) for step in steps for task in TASKS]
    started = time.perf_counter()
    results = fit_site(problem.acts, steps, problem.size.grid, problem.targets, problem.split, cells, config)
    seconds = time.perf_counter() - started
    assert all(result.ok for result in results)
    return seconds / problem.size.steps


def time_paper(problem: Problem, config: ProbeConfig) -> float:
    """Seconds that the paper's loop takes for one step with both tasks, one after the other."""
    acts = torch.from_numpy(problem.acts[0]).float()
    labels = {"saliency": torch.from_numpy(problem.masks).long(), "depth": torch.from_numpy(problem.depth)}
    train, test = torch.from_numpy(problem.split.train), torch.from_numpy(problem.split.test)
    orders = sample_orders(config.seed, len(train), config.epochs)
    started = time.perf_counter()
    for task in TASKS:
        start = initial_seed(0, 1, task)
        paper_probe(acts, labels[task], problem.size.grid, task, train, test, orders, start, config.lr, config.batch)
    return time.perf_counter() - started


Pairs = list[tuple[float, float]]
"""(seconds of the paper's loop, of ours) for one step with both tasks"""


def measure(size: Size, config: ProbeConfig, pairs: int) -> Pairs:
    """Both ways on one problem, measured in turn."""
    problem = make_problem(size)
    return [(time_paper(problem, config), time_ours(problem, config)) for _ in range(pairs)]


Measure = Callable[[Size, ProbeConfig, int], Pairs]


def bench_probes(
    scenes: Sequence[Size] = SCENES,
    paper: Size | None = PAPER,
    pairs: int = 5,
    config: ProbeConfig | None = None,
    measured: Measure = measure,
) -> list[dict[str, object]]:
    """How many times faster a (variant, site, step) with both tasks is: rows as `storage.paired` makes them.

    cell_speedup_scenes weighs the kinds of sites by their number in the network (its parts follow);
    cell_speedup_paper is one site of the paper's size with 371 test samples, one pair of about five minutes and
    8 GB; paper=None leaves it out. Label pooling, done once per grid for all sites and steps, is not counted."""
    config = config or ProbeConfig()
    found = {size: measured(size, config, pairs) for size in scenes}
    rows = [_row("cell_speedup_scenes", _weighed(found))]
    for size, timed in found.items():
        rows.append(_row(f"cell_speedup_scenes_{size.grid[0]}x{size.grid[1]}", timed))
    if paper is not None:
        rows.append(_row("cell_speedup_paper", measured(paper, config, 1)))
    return rows


def _weighed(found: dict[Size, Pairs]) -> Pairs:
    """Pair by pair, the seconds of all kinds of sites times their number."""
    return [
        tuple(sum(pair[way] * size.sites for size, pair in zip(found, together, strict=True)) for way in (0, 1))
        for together in zip(*found.values(), strict=True)
    ]


def _row(what: str, timed: Pairs) -> dict[str, object]:
    return row(what, "paper_loop", "fit_site", timed)
