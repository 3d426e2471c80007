"""A small probing problem that several test files share."""

from __future__ import annotations

import numpy as np

from probing.dataset.split import Split
from probing.probes.fit import fit_site
from probing.probes.results import FitSpec
from probing.scoring.targets import pool_depth, pool_saliency

FAST = {"epochs": 3, "lr": 1e-2}
DOUBLE = {**FAST, "dtype": "float64"}


def problem(steps=2, samples=9, grid=(2, 3), patch=(4, 2), channels=5, seed=0):
    """Random activations float16, masks in 0/1 and depth with steps and ramps, larger than delta in places."""
    random = np.random.default_rng(seed)
    size = (grid[0] * patch[0], grid[1] * patch[1])
    acts = random.standard_normal((steps, samples, grid[0] * grid[1], channels)).astype(np.float16)
    masks = (random.random((samples, *size)) < random.random((samples, 1, 1))).astype(np.uint8)
    depth = random.standard_normal((samples, *size)) * 0.7 + random.standard_normal((samples, 1, 1)) * 1.5
    depth[:, :, : size[1] // 2] += 2.0
    images = random.integers(0, 256, (samples, *size, 3), dtype=np.uint8)
    return acts, masks, depth.astype(np.float32), images


def split_of(samples, val=2, test=3):
    order = np.random.default_rng(1).permutation(samples)
    return Split(order[val + test :], order[:val], order[val : val + test])


def pooled(masks, depth, grid):
    return {"saliency": pool_saliency(masks, grid), "depth": pool_depth(depth, grid)}


def fit(data, grid, split, specs, config, images=None):
    acts, masks, depth, _ = data
    steps = list(range(1, len(acts) + 1))
    return fit_site(acts, steps, grid, pooled(masks, depth, grid), split, specs, config, images=images)


def grid_specs(steps, tasks=("saliency", "depth"), controls=("none",), seeds=(0,)):
    return [FitSpec(s, t, c, e) for s in range(1, steps + 1) for t in tasks for c in controls for e in seeds]
