"""Floors and grid oracles against hand-computed numbers and direct computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probing.dataset.split import Split
from probing.probes.fit import FitSpec, ProbeConfig, fit_site
from probing.scoring.floors import all_foreground, depth_floor, mask_floor
from probing.scoring.targets import pool_depth, pool_saliency
from support import probe_reference as reference

SPLIT = Split([0, 1], [], [2, 3])


def masks_and_depth():
    random = np.random.default_rng(0)
    masks = (random.random((4, 4, 6)) < 0.4).astype(np.uint8)
    masks[:, :2] = 1
    return masks, random.standard_normal((4, 4, 6)).astype(np.float32)


def test_all_foreground_scores_twice_the_base_rate_over_one_plus_it():
    counts = torch.tensor([[4, 0, 0, 0], [4, 4, 4, 4]])
    np.testing.assert_allclose(all_foreground(counts, 4), [2 * 0.25 / 1.25, 1.0])


def test_depth_floor_is_the_error_of_the_training_mean_map():
    _, depth = masks_and_depth()
    floor = depth_floor(pool_depth(depth, (2, 3)), SPLIT)
    mean_map = depth[:2].reshape(2, 2, 2, 3, 2).mean(axis=(0, 2, 4))
    enlarged = np.kron(mean_map, np.ones((2, 2)))
    for place, sample in enumerate(SPLIT.test):
        cells = np.kron(depth[sample].reshape(2, 2, 3, 2).mean(axis=(1, 3)), np.ones((2, 2)))
        assert floor.rmse[place] == pytest.approx(np.sqrt(np.mean((enlarged - depth[sample]) ** 2)))
        assert floor.oracle_rmse[place] == pytest.approx(np.sqrt(np.mean((cells - depth[sample]) ** 2)))
    assert (floor.oracle_rmse <= floor.rmse).all()


def test_mask_floor_is_the_thresholded_mean_mask():
    masks, _ = masks_and_depth()
    floor = mask_floor(pool_saliency(masks, (2, 3)), SPLIT)
    np.testing.assert_allclose(floor.mean_mask, masks[:2].reshape(2, 2, 2, 3, 2).mean(axis=(0, 2, 4)).ravel())
    enlarged = np.kron(floor.mean_mask.reshape(2, 3), np.ones((2, 2)))
    for place, sample in enumerate(SPLIT.test):
        truth = masks[sample] == 1
        assert floor.dice[place] == pytest.approx(reference.dice(enlarged > floor.threshold, truth))
        assert floor.ap[place] == pytest.approx(reference.average_precision(enlarged, masks[sample]))
        assert floor.all_foreground[place] == pytest.approx(reference.dice(np.ones_like(truth), truth))
        assert floor.oracle_dice[place] >= floor.dice[place] - 1e-12
    assert floor.best_dice == max(floor.dice.mean(), floor.all_foreground.mean())


def test_mask_floor_never_knows_the_test_masks():
    masks, _ = masks_and_depth()
    before = mask_floor(pool_saliency(masks, (2, 3)), SPLIT)
    masks[2:] = 1 - masks[2:]
    after = mask_floor(pool_saliency(masks, (2, 3)), SPLIT)
    np.testing.assert_array_equal(before.mean_mask, after.mean_mask)
    assert before.threshold == after.threshold


def test_rows_carry_the_same_floors_and_oracles():
    masks, depth = masks_and_depth()
    targets = {"saliency": pool_saliency(masks, (2, 3)), "depth": pool_depth(depth, (2, 3))}
    acts = np.random.default_rng(1).standard_normal((1, 4, 6, 3)).astype(np.float16)
    cells = [FitSpec(1, "saliency"), FitSpec(1, "depth")]
    saliency, deep = fit_site(acts, [1], (2, 3), targets, SPLIT, cells, ProbeConfig(epochs=1))
    assert saliency.row["floor_dice"] == pytest.approx(mask_floor(targets["saliency"], SPLIT).best_dice)
    floor = depth_floor(targets["depth"], SPLIT)
    assert deep.row["floor_rmse"] == pytest.approx(floor.rmse.mean())
    assert [r["oracle_rmse"] for r in deep.images] == pytest.approx(floor.oracle_rmse.tolist())
    error = np.mean([r["rmse"] ** 2 for r in deep.images])
    assert deep.row["skill"] == pytest.approx(1 - error / np.mean(floor.rmse**2))
