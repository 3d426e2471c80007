"""Pooled labels against hand-counted patches and direct computation on pixels."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from probing.scoring.targets import pixel_ranks, pool_depth, pool_edges, pool_saliency, split_patches

MASK = np.array([[[0, 200, 1, 0], [0, 255, 0, 0]]], dtype=np.uint8)


def test_foreground_is_counted_patch_by_patch():
    pooled = pool_saliency(MASK, (1, 2))
    np.testing.assert_array_equal(pooled.counts, [[2, 1]])
    assert (pooled.pixels, pooled.grid, len(pooled)) == (4, (1, 2), 1)
    np.testing.assert_array_equal(pool_saliency(MASK, (1, 2), threshold=127).counts, [[2, 0]])
    np.testing.assert_array_equal(pool_saliency(MASK, (2, 4), threshold=200).counts, [[0, 0, 0, 0, 0, 1, 0, 0]])


def test_depth_moments_and_ranks_by_hand():
    depth = np.array([[[1.0, 3.0, 3.0, 0.0]]], dtype=np.float32)
    pooled = pool_depth(depth, (1, 2))
    np.testing.assert_array_equal(pooled.values, [[[1.0, 3.0], [0.0, 3.0]]])
    np.testing.assert_allclose(pooled.mean, [[2.0, 1.5]])
    np.testing.assert_allclose(pooled.variance, [[1.0, 2.25]])
    np.testing.assert_allclose(pooled.rank_sums, [[2 + 3.5, 1 + 3.5]])
    np.testing.assert_allclose(pooled.rank_squares, [0.5**2 + 1 + 1 + 1.5**2])


def test_patches_run_row_by_row_in_non_square_grids():
    maps = np.arange(24).reshape(1, 4, 6)
    patches = split_patches(maps, (2, 3))
    np.testing.assert_array_equal(patches[0, 0], [0, 1, 6, 7])
    np.testing.assert_array_equal(patches[0, 2], [4, 5, 10, 11])
    np.testing.assert_array_equal(patches[0, 3], [12, 13, 18, 19])


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(np.float32, (2, 4, 6), elements=st.sampled_from([0.0, 0.25, -1.5, 2.0, 7.0])))
def test_ranks_are_scipys_tie_averaged_ranks(depth):
    expected = stats.rankdata(depth.reshape(2, -1), axis=1).reshape(depth.shape)
    np.testing.assert_array_equal(pixel_ranks(depth), expected)


def test_given_ranks_are_used_for_every_grid():
    depth = np.random.default_rng(0).standard_normal((3, 4, 6)).astype(np.float32)
    ranks = pixel_ranks(depth)
    for grid in ((1, 1), (2, 3), (4, 6)):
        with_ranks, without = pool_depth(depth, grid, ranks), pool_depth(depth, grid)
        np.testing.assert_array_equal(with_ranks.rank_sums, without.rank_sums)
        assert with_ranks.rank_sums.sum() == pytest.approx(3 * 24 * 25 / 2)


def test_targets_travel_between_processes_without_their_cache():
    pooled = pool_depth(np.zeros((2, 2, 2), dtype=np.float32), (1, 1))
    pooled.cache["key"] = "tensor"
    again = pickle.loads(pickle.dumps(pooled))
    assert again.cache == {}
    np.testing.assert_array_equal(again.mean, pooled.mean)


def test_edge_weights_by_hand():
    image = np.zeros((1, 2, 4, 3), dtype=np.uint8)
    image[0, :, 2:] = 255
    edges = pool_edges(image, (1, 2))
    np.testing.assert_allclose(edges.across, [[[2 * np.exp(-1) / (2 * 3)]]])
    assert edges.down.shape == (1, 0, 2)


def test_edges_of_a_flat_image_all_count_fully():
    edges = pool_edges(np.full((1, 4, 4, 3), 9, dtype=np.uint8), (2, 2))
    np.testing.assert_allclose(edges.across, np.full((1, 2, 1), 2 / 12))
    np.testing.assert_allclose(edges.down, np.full((1, 1, 2), 2 / 12))


@pytest.mark.parametrize("grid", [(3, 2), (2, 4), (0, 2), (8, 12)])
def test_grids_that_do_not_divide_the_image_are_refused(grid):
    with pytest.raises(ValueError, match="do not divide into a grid"):
        pool_depth(np.zeros((1, 4, 6), dtype=np.float32), grid)


def test_labels_that_are_not_finite_are_named():
    depth = np.zeros((3, 2, 2), dtype=np.float32)
    depth[1, 0, 1] = np.nan
    with pytest.raises(ValueError, match="depth label of sample 1 is not finite"):
        pool_depth(depth, (1, 1))


def test_wrong_shapes_and_thresholds_are_refused():
    with pytest.raises(ValueError, match=r"\(samples, height, width\)"):
        pool_saliency(np.zeros((4, 4), dtype=np.uint8), (1, 1))
    with pytest.raises(ValueError, match=r"0\.\.254"):
        pool_saliency(MASK, (1, 1), threshold=255)
