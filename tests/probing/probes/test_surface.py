"""Inputs of the surface controls against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from probing.probes.surface import feature_count, latent_features, picture_features, picture_points


@pytest.fixture
def latents():
    random = np.random.default_rng(0)
    return random.normal(size=(2, 3, 6, 4)).astype(np.float16), random.normal(size=(2, 3, 6, 4)).astype(np.float16)


def test_a_patch_has_its_neighbourhood_in_both_latents(latents):
    found = latent_features(*latents, (6, 4), "surface")
    assert found.shape == (2, 24, 2 * 3 * 25 + 2)
    assert feature_count("surface", 3) == 2 * 3 * 25 + 2
    both = np.concatenate(latents, 1)
    for row, column in ((0, 0), (2, 1), (5, 3)):
        rows, columns = np.clip(row + np.arange(-2, 3), 0, 5), np.clip(column + np.arange(-2, 3), 0, 3)
        expected = both[1][:, rows][:, :, columns].reshape(-1)
        np.testing.assert_array_equal(found[1, row * 4 + column, :-2], expected)


def test_a_neighbourhood_of_one_is_the_latents_and_their_coordinates(latents):
    found = latent_features(*latents, (6, 4), "surface_point")
    expected = np.concatenate(latents, 1).transpose(0, 2, 3, 1).reshape(2, 24, 6)
    np.testing.assert_array_equal(found[..., :-2], expected)
    place = [[row, column] for row in np.linspace(-1, 1, 6) for column in np.linspace(-1, 1, 4)]
    np.testing.assert_allclose(found[..., -2:], [place] * 2, atol=2e-3)


def test_coarse_patches_have_means(latents):
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


@pytest.fixture
def points():
    images = np.random.default_rng(1).integers(0, 256, (2, 48, 32, 3), dtype=np.uint8)
    found = picture_points(images, (6, 4))
    assert found.shape == (2, 12 * 8, 3)
    means = images.reshape(2, 12, 4, 8, 4, 3).mean((2, 4)) / 127.5 - 1
    np.testing.assert_allclose(found.reshape(2, 12, 8, 3), means, atol=1e-3)
    return found


def test_a_patch_has_the_colours_around_it(points):
    found = picture_features(points, (6, 4), (6, 4))
    assert found.shape == (2, 24, feature_count("surface_rgb", 4)) == (2, 24, 195)
    picture = points.reshape(2, 12, 8, 3)
    for row, column in ((0, 0), (2, 1), (5, 3)):
        rows, columns = (np.clip(2 * at - 3 + np.arange(8), 0, n - 1) for at, n in ((row, 12), (column, 8)))
        expected = picture[1][rows][:, columns].transpose(2, 0, 1).reshape(-1)
        np.testing.assert_array_equal(found[1, row * 4 + column, :192], expected)
        place = [2 * row / 5 - 1, 2 * column / 3 - 1, 1]
        np.testing.assert_allclose(found[1, row * 4 + column, 192:], place, atol=1e-3)


def test_a_coarse_grid_has_the_picture_averaged(points):
    picture = points.reshape(2, 6, 2, 4, 2, 3).astype(np.float32).mean((2, 4))
    found = picture_features(points, (6, 4), (3, 2))
    assert found.shape == (2, 6, 195)
    rows, columns = np.clip(2 - 3 + np.arange(8), 0, 5), np.clip(0 - 3 + np.arange(8), 0, 3)
    expected = picture[0][rows][:, columns].transpose(2, 0, 1).reshape(-1)
    np.testing.assert_allclose(found[0, 2, :192], expected, atol=2e-3)
