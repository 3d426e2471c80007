"""Moments of activations and the directions that follow from them, against the textbook."""

from __future__ import annotations

import numpy as np
import pytest

from interventions.sources.moments import measure


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Activations in which the label moves the first channel, and a louder channel shares its noise."""
    random = np.random.default_rng(seed)
    label = random.random(4000) < 0.3
    noise = random.normal(size=4000)
    acts = np.stack([2.0 * label + noise, noise, 5 * random.normal(size=4000)], axis=1) + 100
    return acts.astype(np.float32), label


def test_moments_are_those_of_all_patches_whatever_the_parts():
    acts, label = data()
    whole = measure([(acts, 0.5 * label, label)])
    parts = measure([(acts[i : i + 700], 0.5 * label[i : i + 700], label[i : i + 700]) for i in range(0, 4000, 700)])
    exact = acts.astype(np.float64)
    for moments in (whole, parts):
        assert np.allclose(moments.mean, exact.mean(0))
        assert np.allclose(moments.covariance, np.cov(exact.T, bias=True), atol=1e-9)
        assert np.allclose(moments.positive, exact[label].mean(0))
        assert np.allclose(moments.negative, exact[~label].mean(0))
        assert moments.contrast == pytest.approx(0.5)


def test_the_pattern_is_how_the_label_is_written_and_not_how_it_is_read():
    acts, label = data()
    moments = measure([(acts, 0.5 * label, label)])
    # the best linear reading subtracts the shared noise; the label itself is written to the first channel alone
    probe = np.linalg.solve(moments.covariance, moments.positive - moments.negative)
    assert probe[1] < -0.5 * probe[0]
    pattern = moments.pattern(probe)
    assert pattern[0] > 0.97  # of 4,000 noisy patches
    assert np.allclose(pattern, moments.mean_difference(), atol=1e-9)
    assert moments.gap(pattern) == pytest.approx(2.0, abs=0.1)


def test_a_zero_probe_has_no_pattern_and_one_class_is_refused():
    acts, label = data()
    assert not measure([(acts, 0.5 * label, label)]).pattern(np.zeros(3)).any()
    with pytest.raises(ValueError, match="with and without the object"):
        measure([(acts, label, np.zeros(4000, bool))])
    with pytest.raises(ValueError, match="not finite"):
        measure([(np.full((4, 3), np.nan), np.zeros(4), np.arange(4) > 1)])
