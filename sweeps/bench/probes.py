"""`fit_site` against the paper's loop on the same activations.

Expected on two cores: tens of times at the sizes of scenes, more than ten at the paper's 64 x 64 x 320.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from probing.dataset.split import Split
from probing.probes.config import ProbeConfig
from probing.probes.fit import fit_site
from probing.probes.optimiser import initial_seed, sample_orders
from probing.probes.results import FitSpec
from probing.scoring.targets import Grid, Targets, pool_depth, pool_saliency
from sweeps.bench.paired import Pairs, Row, row, timed_pairs
from sweeps.bench.paper_loop import paper_probe
from sweeps.config.load import load
from sweeps.runtime.run import model_info

TASKS = ("saliency", "depth")


@dataclass(frozen=True)
class Size:
    """One kind of site and its data."""

    grid: Grid
    """patches (height, width)"""
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


PAPER = Size((64, 64), 320, 512, (246, 0, 371), 1, 1)
"""the largest sites of Stable Diffusion v1.4 with the paper's split (section 3)"""


def scenes_sizes() -> tuple[Size, ...]:
    """The kinds of sites of the scenes model with the train and test samples of its preset, largest grid first."""
    config = load("scenes", [])
    info = model_info(config)
    samples = (int(config.curation.train), 0, int(config.curation.test))  # the paper's loop has no validation
    kinds = Counter(((site.height, site.width), site.channels) for site in info.sites)
    ordered = sorted(kinds.items(), reverse=True)
    return tuple(Size(grid, channels, info.image[0], samples, config.total_steps, n) for (grid, channels), n in ordered)


@dataclass(frozen=True, eq=False)
class Problem:
    """Synthetic activations and labels of a size; N samples."""

    size: Size
    acts: NDArray[np.float16]
    """(steps, N, T, C)"""
    masks: NDArray[np.uint8]
    """(N, H, W)"""
    depth: NDArray[np.float32]
    """(N, H, W)"""
    split: Split
    targets: dict[str, Targets]


def make_problem(size: Size) -> Problem:
    """Smooth standardised depth with one near object per image; activations that are noise plus some depth."""
    random = np.random.default_rng(0)
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
    patches = pooled.mean.astype(np.float32)[..., None]
    acts = np.empty((size.steps, count, patches.shape[1], size.channels), np.float16)
    for step in range(size.steps):
        direction = random.standard_normal(size.channels, dtype=np.float32) * 0.2
        for sample in range(count):
            noise = random.standard_normal((patches.shape[1], size.channels), dtype=np.float32)
            acts[step, sample] = noise + patches[sample] * direction
    return Problem(size, acts, masks, depth, split, targets)


def measure(size: Size, config: ProbeConfig, pairs: int) -> Pairs:
    """(seconds of the paper's loop, of `fit_site`) for one step with both tasks, measured in turn on one problem.

    Images and scores are included, pooling the labels is not: it is done once per grid for all sites and steps.
    """
    problem = make_problem(size)
    steps, split = range(1, size.steps + 1), problem.split
    acts = torch.from_numpy(problem.acts[0]).float()
    labels = {"saliency": torch.from_numpy(problem.masks).long(), "depth": torch.from_numpy(problem.depth)}
    train, test = torch.from_numpy(split.train), torch.from_numpy(split.test)
    orders = sample_orders(config.seed, len(train), config.epochs)

    def paper() -> None:
        for task in TASKS:
            start = initial_seed(0, 1, task)
            paper_probe(acts, labels[task], size.grid, task, train, test, orders, start, config.lr, config.batch)

    def ours() -> None:
        specs = [FitSpec(step, task) for step in steps for task in TASKS]
        assert all(r.ok for r in fit_site(problem.acts, steps, size.grid, problem.targets, split, specs, config))

    return [(slow, fast / size.steps) for slow, fast in timed_pairs(paper, ours, pairs, warm_up=False)]


def bench_probes(
    scenes: Sequence[Size] | None = None,
    paper: Size | None = PAPER,
    pairs: int = 5,
    config: ProbeConfig | None = None,
    measured: Callable[[Size, ProbeConfig, int], Pairs] = measure,
) -> list[Row]:
    """How many times faster `fit_site` is for a (variant, site, step) with both tasks.

    cell_speedup_scenes weighs the kinds of sites by their number in the network (its parts follow);
    cell_speedup_paper is one site of the paper's size with 371 test samples, one pair of about five minutes and
    8 GB; paper=None leaves it out.
    """
    config = config or ProbeConfig()
    found = {size: measured(size, config, pairs) for size in scenes or scenes_sizes()}
    # pair by pair, the seconds of all kinds of sites times their number
    totals = [
        tuple(sum(pair[way] * size.sites for size, pair in zip(found, together, strict=True)) for way in (0, 1))
        for together in zip(*found.values(), strict=True)
    ]
    timed = {"cell_speedup_scenes": totals}
    timed |= {f"cell_speedup_scenes_{size.grid[0]}x{size.grid[1]}": pairs for size, pairs in found.items()}
    if paper is not None:
        timed["cell_speedup_paper"] = measured(paper, config, 1)
    return [row(what, "paper_loop", "fit_site", pairs) for what, pairs in timed.items()]
