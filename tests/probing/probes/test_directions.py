"""Directions of probes and their cosines."""

from __future__ import annotations

import numpy as np

from probing.probes.directions import cosines, direction


def test_cosines_compare_directions_without_bias() -> None:
    one = np.array([[1.0, 0, 9.0], [3.0, 0, 5.0]])  # two outputs, two channels, a bias
    two = np.array([[0.0, 4.0, 1.0]])
    np.testing.assert_allclose(direction(one, 2), [2, 0])
    found = cosines(np.stack([direction(one, 2), direction(two, 2), [-1.0, 0.0]]))
    np.testing.assert_allclose(found, [[1, 0, -1], [0, 1, 0], [-1, 0, 1]], atol=1e-12)
    assert np.isnan(cosines(np.array([[0.0, 0.0], [1.0, 0.0]]))[0, 1])
