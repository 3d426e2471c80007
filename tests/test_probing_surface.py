"""Surface features against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from probing.surface import feature_count, latent_features


@pytest.fixture
def latents():
    random = np.random.default_rng(0)
    return random.normal(size=(2, 3, 6, 4)).astype(np.float16), random.normal(size=(2, 3, 6, 4)).astype(np.float16)


def test_a_cell_sees_its_neighbourhood_in_both_latents(latents):
    found = latent_features(*latents, (6, 4), "surface")
    assert found.shape == (2, 24, 2 * 3 * 25 + 2)
    assert feature_count("surface", 3) == 2 * 3 * 25 + 2
    both = np.concatenate(latents, 1)
    for row, column in ((0, 0), (2, 1), (5, 3)):
        rows, columns = np.clip(row + np.arange(-2, 3), 0, 5), np.clip(column + np.arange(-2, 3), 0, 3)
        expected = both[1][:, rows][:, :, columns].reshape(-1)
        np.testing.assert_array_equal(found[1, row * 4 + column, :-2], expected)


def test_a_reach_of_one_is_the_latents_themselves_and_their_place(latents):
    found = latent_features(*latents, (6, 4), "surface_point")
    expected = np.concatenate(latents, 1).transpose(0, 2, 3, 1).reshape(2, 24, 6)
    np.testing.assert_array_equal(found[..., :-2], expected)
    place = [[row, column] for row in np.linspace(-1, 1, 6) for column in np.linspace(-1, 1, 4)]
    np.testing.assert_allclose(found[..., -2:], [place] * 2, atol=2e-3)


def test_coarse_cells_hold_means(latents):
    found = latent_features(*latents, (3, 2), "surface_point")
    expected = (
        np.concatenate(latents, 1)
        .astype(np.float32)
        .reshape(2, 6, 3, 2, 2, 2)
        .mean((3, 5))
        .transpose(0, 2, 3, 1)
        .reshape(2, 6, 6)
    )
    np.testing.assert_allclose(found[..., :-2], expected, atol=2e-3)
