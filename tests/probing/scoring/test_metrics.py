"""Scores per patch against hand-computed numbers and against full-size pixels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from probing.scoring import metrics
from probing.scoring.targets import pool_depth, pool_saliency
from support import probe_reference

GRID, SIZE = (2, 3), (4, 6)
PIXELS = 4
few = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 2.0])
predictions = arrays.arrays(np.float64, 6, elements=few)
masks = arrays.arrays(np.uint8, (1, *SIZE), elements=st.integers(0, 1))
depths = arrays.arrays(np.float32, (1, *SIZE), elements=st.sampled_from([-2.0, -1.0, 0.5, 0.5, 3.0]))


def full(prediction):
    return np.kron(prediction.reshape(GRID), np.ones((2, 2)))


def test_dice_by_hand():
    counts, chosen = torch.tensor([4, 1, 0]), torch.tensor([True, True, False])
    assert float(metrics.dice(chosen, counts, 4)) == pytest.approx(2 * 5 / (8 + 5))
    assert float(metrics.dice_background(chosen, counts, 4)) == pytest.approx(2 * 4 / (4 + 7))


def test_dice_of_empty_masks():
    none, some = torch.zeros(3, dtype=torch.bool), torch.tensor([True, False, False])
    assert float(metrics.dice(none, torch.zeros(3), 4)) == 1.0
    assert float(metrics.dice(some, torch.zeros(3), 4)) == pytest.approx(0.0, abs=1e-8)
    assert float(metrics.dice(none, torch.tensor([4, 0, 0]), 4)) == pytest.approx(0.0, abs=1e-8)


def test_average_precision_by_hand():
    score, counts = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([2, 0, 2])
    assert float(metrics.average_precision(score, counts, 2)) == pytest.approx(0.5 * 1 + 0.5 * 4 / 6)
    tied = torch.tensor([1.0, 1.0, 1.0])
    assert float(metrics.average_precision(tied, counts, 2)) == pytest.approx(4 / 6)


def test_average_precision_without_foreground_is_undefined():
    assert torch.isnan(metrics.average_precision(torch.tensor([1.0, 2.0]), torch.zeros(2), 4))


@settings(max_examples=60, deadline=None)
@given(predictions, masks)
def test_mask_scores_equal_full_size_scores(prediction, mask):
    counts = torch.from_numpy(pool_saliency(mask, GRID).counts[0])
    score = torch.from_numpy(prediction)
    np.testing.assert_allclose(
        float(metrics.average_precision(score, counts, PIXELS)),
        probe_reference.average_precision(full(prediction), mask[0]),
        atol=1e-12,
    )
    for threshold in (0.0, 0.25, -3.0, 5.0):
        expected = probe_reference.dice(full(prediction) > threshold, mask[0] == 1)
        at = metrics.dice_at_thresholds(score, counts, PIXELS, torch.tensor([threshold], dtype=torch.float64))
        assert float(metrics.dice(score > threshold, counts, PIXELS)) == pytest.approx(expected)
        assert float(at) == pytest.approx(expected)
    background = probe_reference.dice(full(prediction) <= 0, mask[0] == 0)
    assert float(metrics.dice_background(score > 0, counts, PIXELS)) == pytest.approx(background)


@settings(max_examples=60, deadline=None)
@given(predictions, depths)
def test_depth_scores_equal_full_size_scores(prediction, depth):
    pooled = pool_depth(depth, GRID)
    mean, variance = torch.from_numpy(pooled.mean[0]), torch.from_numpy(pooled.variance[0])
    sums, squares = torch.from_numpy(pooled.rank_sums[0]), torch.tensor(pooled.rank_squares[0])
    score = torch.from_numpy(prediction)
    slow = probe_reference.score_maps("depth", full(prediction)[None, None], depth)
    found = {
        "rmse": metrics.squared_error(score, mean, variance).sqrt(),
        "rmse_aligned": metrics.rmse_aligned(score, mean, variance),
        "pearson": metrics.pearson(score, mean, variance),
        "spearman": metrics.spearman(score, PIXELS, sums, squares),
    }
    for name, value in found.items():
        np.testing.assert_allclose(float(value), slow[name][0], atol=1e-7, err_msg=name)


def test_alignment_undoes_any_scale_and_shift():
    depth = np.random.default_rng(0).standard_normal((1, 2, 3)).astype(np.float32)
    pooled = pool_depth(depth, (2, 3))
    score = torch.from_numpy(-3.0 * pooled.mean[0] + 7.0)
    aligned = metrics.rmse_aligned(score, torch.from_numpy(pooled.mean[0]), torch.zeros(6, dtype=torch.float64))
    assert float(aligned) == pytest.approx(0.0, abs=1e-7)


def test_correlations_of_constant_maps_are_undefined():
    mean, zero = torch.arange(6.0, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for prediction, label in ((zero, mean), (mean, zero), (zero + 0.1, mean)):
        assert torch.isnan(metrics.pearson(prediction, label, zero))
    ranks = torch.full((6,), 4 * 12.5, dtype=torch.float64)
    assert torch.isnan(metrics.spearman(mean, 4, ranks, torch.tensor(0.0)))


@settings(max_examples=30, deadline=None)
@given(masks)
def test_oracle_dice_is_the_best_of_all_masks_of_whole_patches(mask):
    counts = torch.from_numpy(pool_saliency(mask, GRID).counts[0])
    every = torch.tensor(list(itertools.product([False, True], repeat=6)))
    best = metrics.dice(every, counts, PIXELS).max()
    assert float(metrics.oracle_dice(counts, PIXELS)) == pytest.approx(float(best))


def test_best_threshold_finds_a_clear_cut_and_keeps_argmax_on_ties():
    score = torch.tensor([[-3.0, -2.0, -1.0], [-3.5, -2.2, -0.5]])
    counts = torch.tensor([[0, 4, 4], [0, 4, 4]])
    threshold = float(metrics.best_threshold(score, counts, 4))
    assert -3.0 <= threshold < -2.2
    assert float(metrics.best_threshold(score, torch.zeros_like(counts), 4)) == 0.0


def test_scores_broadcast_over_probes():
    random = torch.Generator().manual_seed(0)
    score = torch.randn(2, 3, 5, 6, generator=random)
    counts = torch.randint(0, 5, (3, 5, 6), generator=random)
    whole = metrics.average_precision(score, counts, PIXELS)
    assert whole.shape == (2, 3, 5)
    assert float(whole[1, 2, 4]) == pytest.approx(
        float(metrics.average_precision(score[1, 2, 4], counts[2, 4], PIXELS))
    )
    assert metrics.best_threshold(score, counts, PIXELS).shape == (2, 3)
