"""Batches of activations as linear maps, whole and in slabs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from probing.probes import features, training
from probing.probes.config import ProbeConfig
from support.probe_problem import FAST, fit, grid_specs, problem, split_of


@pytest.fixture
def acts():
    return torch.from_numpy(problem(3)[0])


@pytest.mark.parametrize("slab", [1, 40, 95, 200, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_apply_and_weight_grad_are_the_maps_of_the_gathered_activations(acts, slab, dtype, monkeypatch):
    monkeypatch.setattr(features, "SLAB", slab)
    samples = torch.tensor([5, 0, 7, 3, 2])
    gathered = acts[:, samples].to(dtype).flatten(1, 2)
    weight, gradient = torch.randn(3, 2, 5, dtype=dtype), torch.randn(3, 2, 30, dtype=dtype)
    batch = features.Activations(acts, dtype).batch(samples)
    np.testing.assert_allclose(batch.apply(weight), weight @ gathered.transpose(1, 2), atol=1e-5)
    np.testing.assert_allclose(batch.weight_grad(gradient), gradient @ gathered, atol=1e-5)
    columns = torch.cat([torch.arange(30)[part] for part, _ in batch.slabs()])
    np.testing.assert_array_equal(columns, np.arange(30))


class OnCard(features.Activations):
    """Activations that say that they are on a card, and note how many samples each batch has."""

    def __init__(self, acts, dtype):
        super().__init__(acts, dtype)
        self.real, self.acts, self.counts = acts, SimpleNamespace(is_cuda=True), []

    def batch(self, samples):
        self.counts.append(len(samples))
        return features.Activations(self.real, self.dtype).batch(samples)


def test_a_card_converts_some_samples_at_a_time(acts, monkeypatch):
    # a batch of all training samples, converted at once, would need more memory than the recorded activations
    monkeypatch.setattr(training, "BLOCK", 2 * acts.shape[0] * acts.shape[2])
    source, samples = OnCard(acts, torch.float32), torch.arange(5)
    found = training.root_mean_squares(source, samples)
    assert source.counts == [2, 2, 1]
    np.testing.assert_allclose(found, acts[:, :5].float().square().mean((1, 2, 3)).sqrt(), rtol=1e-5)


def test_batches_of_different_size_do_not_share_a_buffer(acts):
    source = features.Activations(acts, torch.float32)
    weight = torch.eye(5).expand(3, 5, 5)
    first = source.batch(torch.tensor([1, 2])).apply(weight)
    source.batch(torch.tensor([4])).apply(weight)
    np.testing.assert_array_equal(first, acts[:, [1, 2]].float().flatten(1, 2).transpose(1, 2))


@pytest.mark.parametrize("options", [{}, {"hidden": 2, "normalise": "rms", "bias": True}], ids=str)
def test_slabs_and_blocks_do_not_change_results(options, monkeypatch):
    config = ProbeConfig(**FAST, **options)
    specs = grid_specs(2, controls=("none", "position_activation"))
    whole = fit(problem(), (2, 3), split_of(9), specs, config)
    monkeypatch.setattr(features, "SLAB", 25)
    monkeypatch.setattr(training, "BLOCK", 1)
    for one, other in zip(whole, fit(problem(), (2, 3), split_of(9), specs, config), strict=True):
        np.testing.assert_allclose(one.weights, other.weights, atol=1e-5)
        for name in ("train_loss", "val_loss", "test_loss", "ap", "rmse"):
            assert one.row.get(name) == pytest.approx(other.row.get(name), abs=1e-5)
