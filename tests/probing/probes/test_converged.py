"""Closed-form and converged references against other solvers of the same problems."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

from probing.dataset.split import Split
from probing.probes.config import ProbeConfig
from probing.probes.converged import PENALTIES, fit_converged
from probing.probes.fit import fit_site
from support.probe_problem import pooled, problem, split_of

GRID = (2, 3)


def solved(bias=False, val=2):
    acts, masks, depth, _ = problem(2, 14)
    split = split_of(14, val=val)
    results = fit_converged(acts, [1, 2], GRID, pooled(masks, depth, GRID), split, bias)
    return results, acts, masks, depth, split


def test_one_result_per_step_and_task_in_order():
    results, *_ = solved()
    found = [(r.spec.step, r.spec.task) for r in results]
    assert found == [(1, "saliency"), (1, "depth"), (2, "saliency"), (2, "depth")]
    assert all(r.ok for r in results)
    assert results[0].row["ap"] > 0


@pytest.mark.parametrize("bias", [False, True])
def test_depth_without_validation_is_least_squares_on_patch_means(bias):
    results, acts, masks, depth, split = solved(bias, val=0)
    x = acts[1, split.train].reshape(-1, 5).astype(np.float64)
    if bias:
        x = np.concatenate([x, np.ones((len(x), 1))], 1)
    y = pooled(masks, depth, GRID)["depth"].mean[split.train].ravel()
    np.testing.assert_allclose(results[3].weights[0], np.linalg.lstsq(x, y, rcond=None)[0], atol=1e-4)


def test_saliency_without_validation_is_the_minimum_of_the_crossentropy():
    results, acts, masks, depth, split = solved(val=0)
    x = acts[0, split.train].reshape(-1, 5).astype(np.float64)
    share = pooled(masks, depth, GRID)["saliency"].counts[split.train].ravel() / 8

    def loss(w):
        return np.mean(np.logaddexp(0, x @ w) - share * (x @ w))

    best = optimize.minimize(loss, np.zeros(5), tol=1e-12)
    found = results[0].weights[1] - results[0].weights[0]
    np.testing.assert_allclose(found, best.x, atol=1e-4)
    assert results[0].row["train_loss"] == pytest.approx(best.fun, abs=1e-7)


def test_the_penalty_is_chosen_on_validation():
    results, acts, masks, depth, split = solved()
    x = acts[0].astype(np.float64)
    scale = np.sqrt(np.mean(x[split.train] ** 2))
    targets = pooled(masks, depth, GRID)["depth"]
    flat, y = x[split.train].reshape(-1, 5) / scale, targets.mean[split.train].ravel()
    weights = [np.linalg.solve(flat.T @ flat / len(y) + p * np.eye(5), flat.T @ y / len(y)) / scale for p in PENALTIES]
    assert min(np.abs(results[1].weights[0] - w).max() for w in weights) < 1e-9


def test_training_long_enough_approaches_the_reference():
    acts, masks, depth, _ = problem(1, 14)
    split, targets = split_of(14), pooled(masks, depth, GRID)
    reference = fit_converged(acts, [1], GRID, targets, Split(split.train, [], split.test))
    config = ProbeConfig(epochs=400, lr=1e-2, batch=100)
    trained = fit_site(acts, [1], GRID, targets, split, [r.spec for r in reference], config)
    assert trained[0].row["train_loss"] == pytest.approx(reference[0].row["train_loss"], abs=1e-4)
    assert trained[1].row["train_loss"] <= reference[1].row["train_loss"] + 1e-4
