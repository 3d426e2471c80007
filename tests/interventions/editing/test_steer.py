"""The inner optimisation: equal to Adam on full-size pixels, one trial at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interventions.editing.readout import TargetLabels
from interventions.editing.steer import Adam, as_direction, make_probes, steer
from support import interventions_reference as reference

SIDE, SIZE = 4, 16


def problem(task: str, channels: int, trials: int = 2, bias: bool = False, seed: int = 0):
    """Activations, probe weights and labels."""
    random = np.random.default_rng(seed)
    acts = torch.from_numpy(random.normal(size=(trials, SIDE * SIDE, channels)))
    outputs = 2 if task == "saliency" else 1
    weights = random.normal(size=(outputs, channels + bias)) * random.exponential(size=channels + bias)
    if task == "saliency":
        return acts, weights, random.random((trials, SIZE, SIZE)) < random.random((trials, SIZE, 1))
    return acts, weights, random.normal(size=(trials, SIZE, SIZE)).cumsum(1).astype(np.float32)


def ours(task: str, acts: torch.Tensor, weights: np.ndarray, labels: np.ndarray, adam: Adam) -> torch.Tensor:
    targets = TargetLabels(task, labels, 0.0, acts, labels[0])
    rows = torch.arange(len(acts))
    probes = make_probes([weights], acts.shape[-1], acts)
    return steer(acts, probes, torch.zeros_like(rows), targets.on_grid((SIDE, SIDE)).objective, rows, adam)


def plain(task: str, acts: torch.Tensor, weights: np.ndarray, labels: np.ndarray, adam: Adam) -> torch.Tensor:
    pairs = zip(acts, labels, strict=True)
    return torch.stack([reference.inner_edit(a, weights, t, task, adam.lr, adam.iterations) for a, t in pairs])


@pytest.mark.parametrize("channels", [6, 80])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_equals_full_size_adam_in_double_precision(task: str, bias: bool, channels: int):
    acts, weights, labels = problem(task, channels, bias=bias)
    adam = Adam(0.02, 128)
    change = ours(task, acts, weights, labels, adam)
    expected = plain(task, acts, weights, labels, adam)
    assert expected.abs().max() > 0.1
    assert (change - expected).abs().max() < 1e-9


@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_single_precision_stays_close_and_reads_the_same(task: str):
    acts, weights, labels = problem(task, 80)
    adam = Adam(5e-3, 128)
    single = ours(task, acts.float(), weights, labels, adam).double()
    expected = plain(task, acts.float(), weights, labels, adam).double()
    assert (single - expected).abs().max() < 1e-4
    probes = make_probes([weights], 80, acts)
    which = torch.zeros(len(acts), dtype=torch.long)
    readings = [probes.readings(acts + change, which) for change in (single, expected)]
    assert (readings[0] - readings[1]).abs().max() < 2e-3


def test_epsilon_counts_where_gradients_are_tiny():
    """A patch that agrees already hardly moves, which Adam without its epsilon would not allow."""
    acts, weights, _ = problem("saliency", 12, trials=1)
    labels = np.zeros((1, SIZE, SIZE), bool)
    acts = acts - 40 * torch.from_numpy(weights[1] - weights[0]) / np.sum((weights[1] - weights[0]) ** 2)
    adam = Adam(0.02, 20)
    change = ours("saliency", acts, weights, labels, adam)
    assert (change - plain("saliency", acts, weights, labels, adam)).abs().max() < 1e-9
    assert change.abs().amax(-1).min() < 1e-3


def test_rows_do_not_depend_on_the_rows_beside_them():
    acts, weights, labels = problem("depth", 10)
    adam = Adam(0.02, 30)
    together = ours("depth", acts, weights, labels, adam)
    alone = torch.cat([ours("depth", acts[i : i + 1], weights, labels[i : i + 1], adam) for i in range(2)])
    assert torch.allclose(together, alone, atol=1e-12)


def test_each_row_follows_its_own_probe_and_trial():
    acts, first, labels = problem("saliency", 80, trials=3)
    second = problem("saliency", 80, seed=1)[1]
    adam = Adam(0.02, 40)
    probes = make_probes([first, second], 80, acts)
    objective = TargetLabels("saliency", labels, 0.0, acts, labels[0]).on_grid((SIDE, SIDE)).objective
    which, trials = torch.tensor([1, 0, 1]), torch.tensor([2, 0, 1])
    mixed = steer(acts[trials], probes, which, objective, trials, adam)
    for row, (probe, trial) in enumerate(zip(which.tolist(), trials.tolist(), strict=True)):
        weights = (first, second)[probe]
        expected = reference.inner_edit(acts[trial], weights, labels[trial], "saliency", 0.02, 40)
        assert (mixed[row] - expected).abs().max() < 1e-9


def test_channels_that_the_probe_ignores_stay():
    acts, weights, labels = problem("saliency", 60)
    weights[:, 7] = 0.3
    change = ours("saliency", acts, weights, labels, Adam(0.02, 10))
    assert not change[..., 7].any()
    assert change[..., 8].any()


def test_a_probe_of_zeros_moves_nothing():
    acts, weights, labels = problem("depth", 9)
    assert not ours("depth", acts, np.zeros_like(weights), labels, Adam(0.02, 10)).any()


def test_no_iterations_change_nothing():
    acts, weights, labels = problem("saliency", 9)
    assert not ours("saliency", acts, weights, labels, Adam(0.02, 0)).any()


def test_the_reading_reaches_the_target():
    acts, weights, _ = problem("saliency", 40, trials=3)
    patches = np.random.default_rng(0).random((3, SIDE, SIDE)) < 0.4
    labels = patches.repeat(SIZE // SIDE, 1).repeat(SIZE // SIDE, 2)
    targets = TargetLabels("saliency", labels, 0.0, acts, labels[0])
    target, rows = targets.on_grid((SIDE, SIDE)), torch.arange(3)
    probes = make_probes([weights], 40, acts)
    moved = acts + steer(acts, probes, rows * 0, target.objective, rows, Adam(0.02, 128))
    before, after = (target.scores(probes.readings(a, rows * 0), rows)[0] for a in (acts, moved))
    assert before.max() < 0.9
    assert after.min() >= 0.95


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(45, 120), st.floats(0.3, 3.0))
def test_nodes_stand_for_all_channels(seed: int, channels: int, spread: float):
    """Interpolated and channelwise steps agree, whatever the weights' spread."""
    random = np.random.default_rng(seed)
    size = np.abs(random.normal(size=(2, channels))) * np.exp(spread * random.normal(size=(2, channels)))
    roots = np.exp(random.uniform(-25, 3, size=(50, 1)))
    probes = make_probes([size[:1], size[1:]], channels, torch.zeros((), dtype=torch.float64))
    exact = 1 / (roots[:, None] + 1e-8 / size)
    found = np.einsum("rk,pkc->rpc", 1 / (roots + probes.nodes.numpy()), probes.to_channels.numpy())
    assert np.abs(found * roots[:, None] - exact * roots[:, None]).max() < 1e-10


@pytest.mark.parametrize("shape", [(3, 5), (1, 7), (5,)])
def test_probes_that_do_not_fit_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="5 channels"):
        as_direction(np.zeros(shape), 5)
