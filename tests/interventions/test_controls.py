"""Controls: what they share with the real edit, and what they must not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interventions import controls


def test_late_steps_are_as_many_at_the_end():
    assert controls.late_steps((1, 2, 3), 15) == (13, 14, 15)
    assert controls.late_steps((1, 4), 4) == (3, 4)


def test_only_needed_probes_are_asked_for_and_the_real_one_comes_first():
    assert controls.probes_of(["none", "random_direction", "late_steps"]) == (("trained", "none"),)
    assert controls.probes_of(["shuffled_probe", "random_probe"]) == (
        ("trained", "none"), ("trained", "shuffled"), ("random", "none"),
    )  # fmt: skip


def test_rescaling_sets_the_norm_of_every_token():
    generator = torch.Generator().manual_seed(0)
    edit, strength = torch.randn(2, 5, 7, generator=generator), torch.rand(2, 5, generator=generator)
    edit[0, 3] = 0
    found = controls.rescaled(edit, strength)
    strength[0, 3] = 0
    assert torch.allclose(found.norm(dim=-1), strength, atol=1e-6)
    assert torch.allclose(torch.nn.functional.cosine_similarity(found, edit, dim=-1)[1], torch.ones(5))


def test_random_directions_are_orthogonal_and_follow_the_covariance():
    random = np.random.default_rng(0)
    spread = np.array([5.0, 1.0, 1.0, 0.0])
    vectors = random.normal(size=(400, 4)) * spread
    probe = np.array([0.0, 0.0, 1.0, 0.0])
    drawn = np.stack([controls.random_direction(vectors, [probe], np.random.default_rng(i)) for i in range(300)])
    assert np.allclose(drawn @ probe, 0, atol=1e-12)
    assert np.allclose(np.linalg.norm(drawn, axis=1), 1)
    assert not drawn[:, 3].any()
    assert np.mean(drawn[:, 0] ** 2) > 0.7


def test_a_direction_needs_room_beside_the_probe():
    vectors = np.random.default_rng(0).normal(size=(9, 1)) * np.array([1.0, 0.0])
    with pytest.raises(ValueError, match="vary along the edit alone"):
        controls.random_direction(vectors, [np.array([2.0, 0.0])], np.random.default_rng(0))


def test_turned_edits_keep_sign_and_norm_of_every_token():
    generator = torch.Generator().manual_seed(1)
    probe = torch.randn(6, generator=generator)
    real = torch.randn(2, 4, 1, generator=generator) * probe
    direction = torch.nn.functional.normalize(torch.randn(2, 6, generator=generator), dim=-1)
    turned = controls.along(direction, real, probe)
    assert torch.allclose(turned.norm(dim=-1), real.norm(dim=-1), atol=1e-6)
    coefficient = (turned * direction[:, None]).sum(-1)
    assert torch.equal(coefficient.sign(), (real @ probe).sign())


def test_variations_follow_the_probe_and_the_covariance():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(500, 3)) @ np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.1]])
    vectors -= vectors.mean(0)
    probe = np.array([1.0, 0.0, 1.0])
    assert np.allclose(controls.probe_direction("rank_one", vectors, probe), probe / np.sqrt(2))
    natural = controls.probe_direction("natural", vectors, probe)
    expected = np.cov(vectors.T) @ probe
    assert np.allclose(natural, expected / np.linalg.norm(expected))
    assert not controls.probe_direction("natural", vectors, np.zeros(3)).any()
