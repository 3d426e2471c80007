"""Transfer of probes between steps against scores over full-size pixels."""

from __future__ import annotations

import numpy as np
import pytest

from probing.probes.transfer import transfer
from probing.scoring.targets import pool_depth, pool_saliency

STEPS, SAMPLES, GRID, CHANNELS, SIZE = 3, 5, (4, 4), 6, 16


@pytest.fixture
def acts() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(STEPS, SAMPLES, 16, CHANNELS)).astype(np.float16)


def enlarge(values: np.ndarray) -> np.ndarray:
    """(n, 16) to (n, 16, 16) pixels by nearest neighbour."""
    return values.reshape(-1, 4, 4).repeat(4, 1).repeat(4, 2)


def test_depth_matrix_equals_rmse_over_pixels(acts: np.ndarray) -> None:
    random = np.random.default_rng(1)
    depth = random.normal(size=(8, SIZE, SIZE)).astype(np.float32)
    weights = [random.normal(size=(1, CHANNELS)).astype(np.float32) for _ in range(STEPS)]
    chosen = np.array([1, 2, 4, 5, 7])
    found = transfer(weights, list(acts), pool_depth(depth, GRID), chosen)
    for i, w in enumerate(weights):
        for j in range(STEPS):
            error = enlarge(acts[j].astype(np.float64) @ w[0]) - depth[chosen]
            assert found["rmse"][i, j] == pytest.approx(np.sqrt((error**2).mean((1, 2))).mean(), rel=1e-4)


def test_saliency_matrix_equals_dice_over_pixels(acts: np.ndarray) -> None:
    random = np.random.default_rng(2)
    masks = (random.random((SAMPLES, SIZE, SIZE)) > 0.6).astype(np.uint8)
    weights = [random.normal(size=(2, CHANNELS)).astype(np.float32) for _ in range(STEPS)]
    found = transfer(weights, list(acts), pool_saliency(masks, GRID, 0), np.arange(SAMPLES))
    for i, w in enumerate(weights):
        for j in range(STEPS):
            logits = acts[j].astype(np.float64) @ w.T
            mask = enlarge(logits[..., 1] > logits[..., 0])
            both = (mask & (masks > 0)).sum((1, 2))
            dice = 2 * both / (mask.sum((1, 2)) + masks.sum((1, 2)))
            assert found["dice"][i, j] == pytest.approx(dice.mean(), rel=1e-6)
