"""Depth scores of object, background and residuals against full-size arithmetic and numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from probing.probes.config import ProbeConfig
from probing.probes.fit import fit_site
from probing.probes.results import FitSpec
from probing.scoring import metrics
from probing.scoring.targets import pool_depth, pool_saliency
from support.probe_problem import FAST, problem, split_of

GRID, PATCH = (2, 3), (4, 2)


def test_region_error_by_hand():
    depth = np.array([[[1.0, 3.0, 0.0, 2.0]]], np.float32)
    mask = np.array([[[True, False, True, True]]])
    pooled = pool_depth(depth, (1, 2), masks=mask)
    np.testing.assert_array_equal(pooled.object_sums[:, 0], [[1, 2], [1, 2], [1, 4]])
    error = metrics.squared_error_inside(torch.tensor([2.0, 1.0]), *torch.from_numpy(pooled.object_sums[:, 0]))
    assert float(error) == pytest.approx((1 + 1 + 1) / 3)
    none = torch.zeros(2, dtype=torch.float64)
    assert torch.isnan(metrics.squared_error_inside(torch.tensor([2.0, 1.0]), none, none, none))


@pytest.fixture(scope="module")
def fitted():
    acts, masks, depth, _ = problem()
    split = split_of(9)
    targets = {"saliency": pool_saliency(masks, GRID), "depth": pool_depth(depth, GRID, masks=masks > 0)}
    specs = [FitSpec(1, "depth", c) for c in ("none", "shuffled")]
    results = fit_site(acts, [1, 2], GRID, targets, split, specs, ProbeConfig(**FAST))
    return acts, masks, depth, split, dict(zip(specs, results, strict=True))


def full(values: np.ndarray) -> np.ndarray:
    return values.reshape(GRID).repeat(PATCH[0], 0).repeat(PATCH[1], 1)


def test_scores_equal_those_of_full_size_maps(fitted):
    acts, masks, depth, split, results = fitted
    result = next(iter(results.values()))
    blocks = depth[split.train].reshape(len(split.train), GRID[0], PATCH[0], GRID[1], PATCH[1]).astype(np.float64)
    mean = full(blocks.mean((0, 2, 4)))
    for row, sample in zip(result.images, split.test, strict=True):
        found = full(acts[0, sample].astype(np.float64) @ result.weights[0, :5])
        inside, error = masks[sample] > 0, np.square(found - depth[sample])
        for name, region in (("rmse_object", inside), ("rmse_background", ~inside)):
            assert row[name] == pytest.approx(np.sqrt(error[region].mean()), abs=1e-5)
        # the mean map in the precision of residual_ranks: float32 residuals could otherwise tie differently
        expected = stats.spearmanr((found - mean).ravel(), (depth[sample] - mean).ravel()).statistic
        assert row["spearman_residual"] == pytest.approx(expected, abs=1e-5)
    values = [r["spearman_residual"] for r in result.images]
    assert result.row["spearman_residual"] == pytest.approx(np.mean(values))


def test_moved_labels_have_no_residuals_and_are_counted(fitted):
    *_, split, results = fitted
    row = results[FitSpec(1, "depth", "shuffled")].row
    assert row["spearman_residual"] is None
    assert row["dropped"] == len(split.test)
    assert results[FitSpec(1, "depth", "none")].row["dropped"] == 0


def test_masks_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="do not fit depth labels"):
        pool_depth(np.zeros((1, 2, 2), np.float32), (1, 1), masks=np.zeros((1, 2, 3), bool))
