"""fit_site against the slow loop of the paper, probe by probe, over shapes, options and controls."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probing.probes.batched import predict
from probing.probes.config import ProbeConfig
from probing.probes.controls import label_rows
from probing.probes.fit import fit_site
from probing.probes.optimiser import initial_seed, sample_orders
from probing.probes.results import FitSpec
from probing.scoring.targets import split_patches
from support import probe_reference
from support.probe_problem import DOUBLE, FAST, fit, grid_specs, pooled, problem, split_of
from sweeps.bench import paper_loop


def assert_same(result, slow, tolerance):
    assert result.row["status"] == "done", result.row["error"]
    np.testing.assert_allclose(result.weights, slow.weights, atol=tolerance, rtol=tolerance)
    if slow.hidden is not None:
        np.testing.assert_allclose(result.hidden, slow.hidden, atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose([e["train_loss"] for e in result.epochs], slow.train_losses, atol=tolerance)
    np.testing.assert_allclose(result.row["test_loss"], slow.scores["test_loss"][0], atol=tolerance)
    for name in set(slow.scores) & set(result.images[0]):
        found = [np.nan if row[name] is None else row[name] for row in result.images]
        np.testing.assert_allclose(found, slow.scores[name], atol=10 * tolerance, err_msg=name)


def check_against_slow(data, grid, split, config, tolerance, seed=0):
    acts, masks, depth, images = data
    results = fit(data, grid, split, grid_specs(len(acts), seeds=(seed,)), config, images)
    for result in results:
        spec = result.spec
        labels = masks if spec.task == "saliency" else depth
        slow = probe_reference.fit_one(
            acts[spec.step - 1], labels, grid, spec.task, split, config, spec.step, seed, images
        )
        assert_same(result, slow, tolerance)
        if slow.val_losses:
            found = [e["val_loss"] for e in result.epochs]
            np.testing.assert_allclose(found, slow.val_losses, atol=tolerance)


OPTIONS = [
    {},
    {"bias": True},
    {"normalise": "rms", "bias": True},
    {"optimizer": "sgd"},
    {"selection": "val", "lr": 0.3},
    {"smoothness": 1.0},
    {"hidden": 4},
    {"hidden": 3, "bias": True, "normalise": "rms"},
    {"huber_delta": 0.4},
    {"batch": 100},
    {"batch": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_equals_the_slow_loop_in_double(options):
    config = ProbeConfig(**{**DOUBLE, **options})
    check_against_slow(problem(), (2, 3), split_of(9), config, 1e-9)


@pytest.mark.parametrize("options", OPTIONS[:8], ids=str)
def test_every_option_equals_the_slow_loop_in_single(options):
    config = ProbeConfig(**{**FAST, **options})
    check_against_slow(problem(), (2, 3), split_of(9), config, 1e-4)


shapes = st.tuples(
    st.tuples(st.integers(1, 4), st.integers(1, 5)),
    st.tuples(st.integers(1, 5), st.integers(1, 4)),
    st.integers(1, 6),
    st.integers(5, 10),
    st.integers(0, 2),
    st.integers(1, 5),
    st.integers(0, 99),
)


@settings(max_examples=25, deadline=None)
@given(shapes)
def test_any_shape_equals_the_slow_loop(shape):
    grid, patch, channels, samples, val, batch, seed = shape
    data = problem(2, samples, grid, patch, channels, seed)
    split = split_of(samples, val=val, test=2)
    for tolerance, dtype in ((1e-9, "float64"), (1e-4, "float32")):
        config = ProbeConfig(epochs=2, batch=batch, dtype=dtype)
        check_against_slow(data, grid, split, config, tolerance, seed)


@pytest.mark.slow
def test_the_papers_settings_equal_the_slow_loop():
    data = problem(2, 24, (4, 4), (8, 8), 16, seed=3)
    check_against_slow(data, (4, 4), split_of(24, 4, 8), ProbeConfig(), 1e-4)


def test_the_baseline_of_the_benchmark_is_the_same_probe():
    acts, masks, depth, _ = data = problem()
    split, config = split_of(9), ProbeConfig(epochs=4)
    train, test = torch.from_numpy(split.train), torch.from_numpy(split.test)
    labels = {"saliency": torch.from_numpy(masks).long(), "depth": torch.from_numpy(depth)}
    for result in fit(data, (2, 3), split, grid_specs(2), config):
        slow = paper_loop.paper_probe(
            torch.from_numpy(acts[result.spec.step - 1]).float(),
            labels[result.spec.task],
            (2, 3),
            result.spec.task,
            train,
            test,
            sample_orders(100, len(train), 4),
            initial_seed(0, result.spec.step, result.spec.task),
        )
        score = result.row["dice" if result.spec.task == "saliency" else "rmse"]
        np.testing.assert_allclose(result.weights, slow.weights, atol=1e-5)
        np.testing.assert_allclose([e["train_loss"] for e in result.epochs], slow.train_losses, atol=1e-5)
        np.testing.assert_allclose(score, slow.scores[-1], atol=1e-5)


def control_labels(maps, control, grid, split, seed):
    """Full-size labels under a control, cut and put together again block by block."""
    count, height, width = maps.shape
    patches = split_patches(maps, grid)
    rows = label_rows(control, count, grid[0] * grid[1], split, seed)
    given = patches.reshape(-1, patches.shape[2])[rows]
    blocks = given.reshape(count, *grid, height // grid[0], width // grid[1])
    return blocks.transpose(0, 1, 3, 2, 4).reshape(maps.shape)


CONTROLS = ("none", "shuffled", "other_image", "position", "position_activation")


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("bias", [False, True])
def test_controls_equal_the_slow_loop_on_full_size_control_labels(control, bias):
    acts, masks, depth, _ = data = problem()
    grid, split, seed, config = (2, 3), split_of(9), 2, ProbeConfig(**DOUBLE, bias=bias)
    every = grid_specs(2, controls=CONTROLS, seeds=(0, seed))
    results = {r.spec: r for r in fit(data, grid, split, every, config)}
    onehot = np.broadcast_to(np.eye(6), (9, 6, 6))
    for spec in grid_specs(2, controls=(control,), seeds=(seed,)):
        x = acts[spec.step - 1].astype(np.float64)
        x = {"position": onehot, "position_activation": np.concatenate([x, onehot], 2)}.get(control, x)
        labels = control_labels(masks if spec.task == "saliency" else depth, control, grid, split, seed)
        slow = probe_reference.fit_one(x, labels, grid, spec.task, split, config, spec.step, seed)
        assert_same(results[spec], slow, 1e-9)


def test_position_activation_folds_the_scale_into_the_channels_only():
    acts, *_ = data = problem()
    split, config = split_of(9), ProbeConfig(**DOUBLE, normalise="rms")
    specs = [FitSpec(1, "depth", "position_activation")]
    (result,) = fit(data, (2, 3), split, specs, config)
    scaled = (acts[:1].astype(np.float64) / result.scale, *data[1:])
    (plain,) = fit(scaled, (2, 3), split, specs, dataclasses.replace(config, normalise="none"))
    np.testing.assert_allclose(result.weights[:, :5] * result.scale, plain.weights[:, :5], atol=1e-9)
    np.testing.assert_allclose(result.weights[:, 5:], plain.weights[:, 5:], atol=1e-9)


@pytest.mark.parametrize(
    "options", [{}, {"hidden": 3, "bias": True}, {"selection": "val", "normalise": "rms"}], ids=str
)
def test_a_probe_fitted_alone_equals_the_probe_fitted_with_all_others(options):
    data, grid, split = problem(3, 9), (2, 3), split_of(9)
    config = ProbeConfig(**{**FAST, **options})
    every = grid_specs(3, controls=("none", "shuffled", "other_image", "position"), seeds=(0, 1))
    for together in fit(data, grid, split, every, config)[::5]:
        (alone,) = fit(data, grid, split, [together.spec], config)
        np.testing.assert_allclose(together.weights, alone.weights, atol=1e-6)
        for name in ("dice", "ap", "rmse", "spearman", "test_loss", "train_loss", "val_loss"):
            assert together.row.get(name) == pytest.approx(alone.row.get(name), abs=1e-6)


def test_the_order_of_specs_and_of_steps_does_not_matter():
    acts, masks, depth, _ = data = problem(3)
    specs = grid_specs(3)
    split, config, grid = split_of(9), ProbeConfig(**FAST), (2, 3)
    once = fit(data, grid, split, specs, config)
    turned = fit_site(acts[::-1], [3, 2, 1], grid, pooled(masks, depth, grid), split, specs[::-1], config)
    assert [r.spec for r in once] == specs
    for one, other in zip(once, turned[::-1], strict=True):
        assert one.spec == other.spec
        np.testing.assert_allclose(one.weights, other.weights, atol=1e-6)


def test_shipped_weights_predict_what_was_scored():
    acts, masks, depth, _ = data = problem()
    split = split_of(9)
    for options in ({"bias": True, "normalise": "rms"}, {"hidden": 3, "normalise": "rms"}):
        for result in fit(data, (2, 3), split, grid_specs(2), ProbeConfig(**FAST, **options)):
            logits = predict(result.weights, acts[result.spec.step - 1, split.test], result.hidden)
            labels = masks[split.test] if result.spec.task == "saliency" else depth[split.test]
            maps = probe_reference.enlarge(logits, (2, 3), labels.shape[1:]).double().numpy()
            for name, values in probe_reference.score_maps(result.spec.task, maps, labels).items():
                if name in result.images[0]:
                    np.testing.assert_allclose([r[name] for r in result.images], values, atol=1e-5)


def test_predict_raises_if_the_channels_differ():
    with pytest.raises(ValueError, match="4 channels.*7"):
        predict(np.zeros((2, 4)), np.zeros((3, 7)))


def test_start_is_the_default_of_linear_layers():
    config = ProbeConfig(epochs=1, lr=1e-30)
    (result,) = fit(problem(1), (2, 3), split_of(9), [FitSpec(1, "saliency", seed=7)], config)
    torch.manual_seed(initial_seed(7, 1, "saliency"))
    expected = torch.nn.Linear(5, 2, bias=False).weight.detach().numpy()
    np.testing.assert_allclose(result.weights, expected, atol=1e-7)
