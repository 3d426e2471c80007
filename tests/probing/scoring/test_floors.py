"""Floors and grid oracles against hand-computed numbers and direct computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probing.dataset.split import Split
from probing.probes.config import ProbeConfig
from probing.probes.fit import fit_site
from probing.probes.results import FitSpec
from probing.scoring import metrics
from probing.scoring.floors import count_floor, mask_floor
from probing.scoring.targets import pool_depth, pool_saliency
from support import probe_reference

SPLIT = Split([0, 1], [], [2, 3])


def masks_and_depth():
    random = np.random.default_rng(0)
    masks = (random.random((4, 4, 6)) < 0.4).astype(np.uint8)
    masks[:, :2] = 1
    return masks, random.standard_normal((4, 4, 6)).astype(np.float32)


def test_all_foreground_scores_twice_the_base_rate_over_one_plus_it():
    counts = np.array([[4, 0, 0, 0], [4, 4, 4, 4]])
    np.testing.assert_allclose(count_floor(counts, counts, 4).all_foreground, [2 * 0.25 / 1.25, 1.0])


def test_mask_floor_is_the_thresholded_mean_mask():
    masks, _ = masks_and_depth()
    floor = mask_floor(pool_saliency(masks, (2, 3)), SPLIT)
    np.testing.assert_allclose(floor.mean_mask, masks[:2].reshape(2, 2, 2, 3, 2).mean(axis=(0, 2, 4)).ravel())
    enlarged = np.kron(floor.mean_mask.reshape(2, 3), np.ones((2, 2)))
    for place, sample in enumerate(SPLIT.test):
        truth = masks[sample] == 1
        assert floor.dice[place] == pytest.approx(probe_reference.dice(enlarged > floor.threshold, truth))
        assert floor.all_foreground[place] == pytest.approx(probe_reference.dice(np.ones_like(truth), truth))
    assert floor.best_dice == max(floor.dice.mean(), floor.all_foreground.mean())


def test_mask_floor_never_knows_the_test_masks():
    masks, _ = masks_and_depth()
    before = mask_floor(pool_saliency(masks, (2, 3)), SPLIT)
    masks[2:] = 1 - masks[2:]
    after = mask_floor(pool_saliency(masks, (2, 3)), SPLIT)
    np.testing.assert_array_equal(before.mean_mask, after.mean_mask)
    assert before.threshold == after.threshold


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 30), st.integers(2, 9), st.integers(0, 999))
def test_the_threshold_is_that_of_the_metrics(samples, patches, pixels, seed):
    counts = np.random.default_rng(seed).integers(0, pixels + 1, (samples, patches))
    floor = count_floor(counts, counts, pixels)
    scores = torch.from_numpy(floor.mean_mask).expand(samples, -1)
    expected = metrics.best_threshold(scores, torch.from_numpy(counts), pixels)
    chosen = [metrics.dice(scores > t, torch.from_numpy(counts), pixels).mean() for t in (floor.threshold, expected)]
    assert float(chosen[0]) == pytest.approx(float(chosen[1]), abs=1e-12)


def test_rows_contain_the_same_floors_and_oracles():
    masks, depth = masks_and_depth()
    targets = {"saliency": pool_saliency(masks, (2, 3)), "depth": pool_depth(depth, (2, 3))}
    acts = np.random.default_rng(1).standard_normal((1, 4, 6, 3)).astype(np.float16)
    specs = [FitSpec(1, "saliency"), FitSpec(1, "depth")]
    saliency, deep = fit_site(acts, [1], (2, 3), targets, SPLIT, specs, ProbeConfig(epochs=1))
    assert saliency.row["floor_dice"] == pytest.approx(mask_floor(targets["saliency"], SPLIT).best_dice)
    patches = depth.reshape(4, 2, 2, 3, 2).transpose(0, 1, 3, 2, 4)
    mean_map = patches[SPLIT.train].mean(axis=(0, 3, 4))
    floor = np.square(patches[SPLIT.test] - mean_map[..., None, None]).mean(axis=(1, 2, 3, 4))
    assert deep.row["floor_rmse"] == pytest.approx(np.sqrt(floor).mean())
    oracle = np.sqrt(patches[SPLIT.test].var(axis=(3, 4)).mean(axis=(1, 2)))
    assert [r["oracle_rmse"] for r in deep.images] == pytest.approx(oracle.tolist())
    error = np.mean([r["rmse"] ** 2 for r in deep.images])
    assert deep.row["skill"] == pytest.approx(1 - error / floor.mean())
