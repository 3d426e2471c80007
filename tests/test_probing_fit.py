"""fit_site against the slow loop of the paper, cell by cell, over shapes, options and controls."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probing import baseline
from probing.controls import label_rows
from probing.fit import CellSpec, ProbeConfig, Split, fit_site, predict
from probing.probes import initial_seed, sample_orders
from probing.targets import pool_depth, pool_saliency, split_cells

FAST = {"epochs": 3, "lr": 1e-2}
DOUBLE = {**FAST, "dtype": "float64"}


def problem(steps=2, samples=9, grid=(2, 3), cell=(4, 2), channels=5, seed=0):
    """Random activations float16, masks in 0/1 and depth with steps and ramps, larger than delta in places."""
    random = np.random.default_rng(seed)
    size = (grid[0] * cell[0], grid[1] * cell[1])
    acts = random.standard_normal((steps, samples, grid[0] * grid[1], channels)).astype(np.float16)
    masks = (random.random((samples, *size)) < random.random((samples, 1, 1))).astype(np.uint8)
    depth = random.standard_normal((samples, *size)) * 0.7 + random.standard_normal((samples, 1, 1)) * 1.5
    depth[:, :, : size[1] // 2] += 2.0
    images = random.integers(0, 256, (samples, *size, 3), dtype=np.uint8)
    return acts, masks, depth.astype(np.float32), images


def split_of(samples, val=2, test=3):
    order = np.random.default_rng(1).permutation(samples)
    return Split(order[val + test :], order[:val], order[val : val + test])


def pooled(masks, depth, grid):
    return {"saliency": pool_saliency(masks, grid), "depth": pool_depth(depth, grid)}


def fit(data, grid, split, cells, config, images=None):
    acts, masks, depth, _ = data
    steps = list(range(1, len(acts) + 1))
    return fit_site(acts, steps, grid, pooled(masks, depth, grid), split, cells, config, images=images)


def grid_cells(steps, tasks=("saliency", "depth"), controls=("none",), seeds=(0,)):
    return [CellSpec(s, t, c, e) for s in range(1, steps + 1) for t in tasks for c in controls for e in seeds]


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
    results = fit(data, grid, split, grid_cells(len(acts), seeds=(seed,)), config, images)
    for result in results:
        cell = result.cell
        labels = masks if cell.task == "saliency" else depth
        slow = reference.fit_one(
            acts[cell.step - 1], labels, grid, cell.task, split, config, cell.step, seed, images
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
    grid, cell, channels, samples, val, batch, seed = shape
    data = problem(2, samples, grid, cell, channels, seed)
    split = split_of(samples, val=val, test=2)
    for tolerance, dtype in ((1e-9, "float64"), (1e-4, "float32")):
        config = ProbeConfig(epochs=2, batch=batch, dtype=dtype)
        check_against_slow(data, grid, split, config, tolerance, seed)


@pytest.mark.slow
def test_the_papers_settings_equal_the_slow_loop():
    data = problem(2, 24, (4, 4), (8, 8), 16, seed=3)
    check_against_slow(data, (4, 4), split_of(24, 4, 8), ProbeConfig(), 1e-4)


def test_the_benchmarks_baseline_is_the_same_probe():
    acts, masks, depth, _ = data = problem()
    split, config = split_of(9), ProbeConfig(epochs=4)
    train, test = torch.from_numpy(split.train), torch.from_numpy(split.test)
    labels = {"saliency": torch.from_numpy(masks).long(), "depth": torch.from_numpy(depth)}
    for result in fit(data, (2, 3), split, grid_cells(2), config):
        slow = baseline.paper_probe(
            torch.from_numpy(acts[result.cell.step - 1]).float(),
            labels[result.cell.task],
            (2, 3),
            result.cell.task,
            train,
            test,
            sample_orders(100, len(train), 4),
            initial_seed(0, result.cell.step, result.cell.task),
        )
        score = result.row["dice" if result.cell.task == "saliency" else "rmse"]
        np.testing.assert_allclose(result.weights, slow.weights, atol=1e-5)
        np.testing.assert_allclose([e["train_loss"] for e in result.epochs], slow.train_losses, atol=1e-5)
        np.testing.assert_allclose(score, slow.scores[-1], atol=1e-5)


def control_labels(maps, control, grid, split, seed):
    """Full-size labels under a control, cut and put together again block by block."""
    count, height, width = maps.shape
    cells = split_cells(maps, grid)
    rows = label_rows(control, count, grid[0] * grid[1], split, seed)
    given = cells.reshape(-1, cells.shape[2])[rows]
    blocks = given.reshape(count, *grid, height // grid[0], width // grid[1])
    return blocks.transpose(0, 1, 3, 2, 4).reshape(maps.shape)


CONTROLS = ("none", "shuffled", "other_image", "position", "position_activation")


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("bias", [False, True])
def test_controls_equal_the_slow_loop_on_full_size_control_labels(control, bias):
    acts, masks, depth, _ = data = problem()
    grid, split, seed, config = (2, 3), split_of(9), 2, ProbeConfig(**DOUBLE, bias=bias)
    every = grid_cells(2, controls=CONTROLS, seeds=(0, seed))
    results = {r.cell: r for r in fit(data, grid, split, every, config)}
    onehot = np.broadcast_to(np.eye(6), (9, 6, 6))
    for cell in grid_cells(2, controls=(control,), seeds=(seed,)):
        read = acts[cell.step - 1].astype(np.float64)
        read = {"position": onehot, "position_activation": np.concatenate([read, onehot], 2)}.get(control, read)
        labels = control_labels(masks if cell.task == "saliency" else depth, control, grid, split, seed)
        slow = reference.fit_one(read, labels, grid, cell.task, split, config, cell.step, seed)
        assert_same(results[cell], slow, 1e-9)


def test_position_activation_folds_the_scale_into_the_channels_only():
    acts, *_ = data = problem()
    split, config = split_of(9), ProbeConfig(**DOUBLE, normalise="rms")
    cells = [CellSpec(1, "depth", "position_activation")]
    (result,) = fit(data, (2, 3), split, cells, config)
    scaled = (acts[:1].astype(np.float64) / result.scale, *data[1:])
    (plain,) = fit(scaled, (2, 3), split, cells, dataclasses.replace(config, normalise="none"))
    np.testing.assert_allclose(result.weights[:, :5] * result.scale, plain.weights[:, :5], atol=1e-9)
    np.testing.assert_allclose(result.weights[:, 5:], plain.weights[:, 5:], atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"hidden": 3, "bias": True}, {"selection": "val", "normalise": "rms"}], ids=str)
def test_a_cell_fitted_alone_equals_the_cell_fitted_with_all_others(options):
    data, grid, split = problem(3, 9), (2, 3), split_of(9)
    config = ProbeConfig(**{**FAST, **options})
    every = grid_cells(3, controls=("none", "shuffled", "other_image", "position"), seeds=(0, 1))
    for together in fit(data, grid, split, every, config)[::5]:
        (alone,) = fit(data, grid, split, [together.cell], config)
        np.testing.assert_allclose(together.weights, alone.weights, atol=1e-6)
        for name in ("dice", "ap", "rmse", "spearman", "test_loss", "train_loss", "val_loss"):
            assert together.row.get(name) == pytest.approx(alone.row.get(name), abs=1e-6)


def test_the_order_of_cells_and_of_steps_does_not_matter():
    acts, masks, depth, _ = data = problem(3)
    cells = grid_cells(3)
    split, config, grid = split_of(9), ProbeConfig(**FAST), (2, 3)
    once = fit(data, grid, split, cells, config)
    turned = fit_site(
        acts[::-1], [3, 2, 1], grid, pooled(masks, depth, grid), split, cells[::-1], config
    )
    assert [r.cell for r in once] == cells
    for one, other in zip(once, turned[::-1], strict=True):
        assert one.cell == other.cell
        np.testing.assert_allclose(one.weights, other.weights, atol=1e-6)


def test_shipped_weights_predict_what_was_scored():
    acts, masks, depth, _ = data = problem()
    split = split_of(9)
    for options in ({"bias": True, "normalise": "rms"}, {"hidden": 3, "normalise": "rms"}):
        for result in fit(data, (2, 3), split, grid_cells(2), ProbeConfig(**FAST, **options)):
            read = predict(result.weights, acts[result.cell.step - 1, split.test], result.hidden)
            labels = masks[split.test] if result.cell.task == "saliency" else depth[split.test]
            maps = reference.enlarge(read, (2, 3), labels.shape[1:]).double().numpy()
            for name, values in reference.score_maps(result.cell.task, maps, labels).items():
                if name in result.images[0]:
                    np.testing.assert_allclose([r[name] for r in result.images], values, atol=1e-5)


def test_predict_refuses_other_channels():
    with pytest.raises(ValueError, match="reads 4 channels, the activations have 7"):
        predict(np.zeros((2, 4)), np.zeros((3, 7)))


def test_start_is_the_default_of_linear_layers():
    config = ProbeConfig(epochs=1, lr=1e-30)
    (result,) = fit(problem(1), (2, 3), split_of(9), [CellSpec(1, "saliency", seed=7)], config)
    torch.manual_seed(initial_seed(7, 1, "saliency"))
    expected = torch.nn.Linear(5, 2, bias=False).weight.detach().numpy()
    np.testing.assert_allclose(result.weights, expected, atol=1e-7)


def test_test_labels_and_activations_never_reach_the_weights():
    acts, masks, depth, images = problem()
    split, cells, config = split_of(9), grid_cells(2), ProbeConfig(**FAST, selection="val", normalise="rms")
    before = fit((acts, masks, depth, images), (2, 3), split, cells, config)
    acts, masks, depth = acts.copy(), masks.copy(), depth.copy()
    acts[:, split.test] = 7.0
    masks[split.test] = 1
    depth[split.test] = 3.0
    after = fit((acts, masks, depth, images), (2, 3), split, cells, config)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.weights, other.weights)
        assert one.row["val_loss"] == other.row["val_loss"]
        assert one.row["test_loss"] != other.row["test_loss"]


def test_selection_keeps_the_epoch_with_the_lowest_validation_loss():
    config = ProbeConfig(epochs=12, lr=0.5, selection="val", optimizer="sgd")
    for result in fit(problem(), (2, 3), split_of(9), grid_cells(2), config):
        assert result.row["val_loss"] == min(e["val_loss"] for e in result.epochs)


def test_a_step_with_non_finite_training_activations_fails_alone():
    acts, *rest = problem(3)
    split = split_of(9)
    acts[1, split.train[0], 2, 3] = np.inf
    cells = grid_cells(3, controls=("none", "position"))
    results = {r.cell: r for r in fit((acts, *rest), (2, 3), split, cells, ProbeConfig(**FAST))}
    for cell, result in results.items():
        failed = cell.step == 2 and cell.control == "none"
        assert result.ok is not failed
        if failed:
            assert result.weights is None
            assert result.row["error"] == "step 2: activations of the training samples are not finite"
    sound = fit((acts[[0, 2]], *rest), (2, 3), split, [CellSpec(1, "depth")], ProbeConfig(**FAST))
    np.testing.assert_allclose(results[CellSpec(1, "depth")].weights, sound[0].weights, atol=1e-6)


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_non_finite_sample_outside_training_fails_its_step_and_is_named(part):
    acts, *rest = problem(2)
    split = split_of(9)
    sample = getattr(split, part)[1]
    acts[0, sample, 0, 0] = np.nan
    results = fit((acts, *rest), (2, 3), split, grid_cells(2), ProbeConfig(**FAST))
    for result in results:
        assert result.ok is (result.cell.step == 2)
        if not result.ok:
            assert f"{part} sample {sample}" in result.row["error"]


def test_diverged_weights_fail_with_a_cure():
    acts, *rest = problem(1)
    config = ProbeConfig(epochs=40, lr=1e30, optimizer="sgd")
    (result,) = fit((acts * 100, *rest), (2, 3), split_of(9), [CellSpec(1, "depth")], config)
    assert result.row["status"] == "failed"
    assert "lower probe.lr" in result.row["error"]


def test_constant_labels_leave_correlations_undefined_and_out_of_the_mean():
    acts, masks, depth, images = problem()
    split = split_of(9)
    depth[split.test[0]] = 0.25
    (result,) = fit((acts, masks, depth, images), (2, 3), split, [CellSpec(1, "depth")], ProbeConfig(**FAST))
    defined = [row["spearman"] for row in result.images[1:]]
    assert result.images[0]["spearman"] is None
    assert result.images[0]["pearson"] is None
    assert result.images[0]["rmse_aligned"] == pytest.approx(0, abs=1e-6)
    assert result.row["spearman"] == pytest.approx(np.mean(defined))
    assert result.dropped == {"spearman": 1, "pearson": 1}


def test_labels_constant_everywhere_give_no_nan_anywhere():
    acts, masks, depth, images = problem()
    data = (acts, np.zeros_like(masks), np.full_like(depth, 0.5), images)
    for result in fit(data, (2, 3), split_of(9), grid_cells(2), ProbeConfig(**FAST)):
        assert result.ok
        for value in [*result.row.values(), *(v for row in result.images for v in row.values())]:
            assert not (isinstance(value, float) and np.isnan(value))
        for name in ("spearman", "pearson", "skill", "ap"):
            assert result.row.get(name) is None


def test_an_image_without_foreground_has_a_dice_but_no_average_precision():
    acts, masks, depth, images = problem()
    split = split_of(9)
    masks[split.test[1]] = 0
    (result,) = fit((acts, masks, depth, images), (2, 3), split, [CellSpec(1, "saliency")], ProbeConfig(**FAST))
    assert result.images[1]["ap"] is None
    assert result.images[1]["dice"] in (pytest.approx(0.0, abs=1e-6), pytest.approx(1.0))
    assert result.images[1]["oracle_dice"] == 1.0
    assert result.dropped == {"ap": 1}
    assert result.row["ap"] == pytest.approx(np.mean([result.images[i]["ap"] for i in (0, 2)]))


def test_one_test_sample_is_enough_for_every_control():
    cells = grid_cells(2, controls=("none", "shuffled", "other_image", "position"))
    for result in fit(problem(), (2, 3), split_of(9, val=0, test=1), cells, ProbeConfig(**FAST)):
        assert result.ok
        assert len(result.images) == 1
        assert result.row["val_loss"] is None
        assert result.row["test_loss"] > 0


def test_rows_carry_the_columns_of_the_tables():
    saliency, depth = fit(problem(1), (2, 3), split_of(9), grid_cells(1), ProbeConfig(**FAST))
    shared = {"step", "task", "control", "seed", "tokens", "channels", "n_train", "n_val", "n_test", "train_loss"}
    shared |= {"val_loss", "test_loss", "seconds", "status", "error"}
    own = {"dice", "val_dice", "oracle_dice", "ap", "ap_val", "crossentropy", "dice_threshold", "dice_background"}
    assert set(saliency.row) == shared | own | {"floor_dice"}
    own = {"rmse", "val_rmse", "oracle_rmse", "rmse_aligned", "spearman", "pearson", "skill", "floor_rmse"}
    assert set(depth.row) == shared | own
    key = {"step", "task", "control", "seed", "sample"}
    assert set(saliency.images[0]) == key | {"dice", "oracle_dice", "ap"}
    assert set(depth.images[0]) == key | {"rmse", "oracle_rmse", "rmse_aligned", "spearman", "pearson"}
    assert [row["epoch"] for row in depth.epochs] == [1, 2, 3]
    assert (saliency.row["n_train"], saliency.row["n_val"], saliency.row["n_test"]) == (4, 2, 3)


def test_the_chosen_threshold_is_never_worse_than_argmax_on_train():
    data, split = problem(), split_of(9)
    swapped = Split(split.train, split.val, split.test)
    (result,) = fit(data, (2, 3), swapped, [CellSpec(1, "saliency")], ProbeConfig(**FAST))
    logits = predict(result.weights, data[0][0, split.train]).numpy()
    masks = data[1][split.train]
    margin = reference.enlarge(torch.from_numpy(logits), (2, 3), masks.shape[1:]).numpy()
    margin = margin[:, 1] - margin[:, 0]
    found = max(
        np.mean([reference.dice(m > t, y == 1) for m, y in zip(margin, masks, strict=True)])
        for t in [0.0, *np.unique(margin)]
    )
    test_masks = data[1][split.test]
    test = reference.enlarge(predict(result.weights, data[0][0, split.test]), (2, 3), test_masks.shape[1:])
    test = (test[:, 1] - test[:, 0]).numpy()
    best = [
        t
        for t in [0.0, *np.unique(margin)]
        if np.isclose(np.mean([reference.dice(m > t, y == 1) for m, y in zip(margin, masks, strict=True)]), found)
    ]
    scores = [np.mean([reference.dice(m > t, y == 1) for m, y in zip(test, test_masks, strict=True)]) for t in best]
    assert any(np.isclose(result.row["dice_threshold"], s, atol=1e-6) for s in scores)


BAD = [
    (lambda a: a | {"acts": a["acts"][:, :, :5]}, "activations have 5 cells, the grid 2 x 3"),
    (lambda a: a | {"acts": a["acts"][0]}, "must be .steps, samples, cells, channels."),
    (lambda a: a | {"steps": [1, 1]}, "must be .steps, samples, cells, channels."),
    (lambda a: a | {"acts": a["acts"][:, :8]}, "targets of saliency: 9 samples"),
    (lambda a: a | {"cells": [CellSpec(9, "depth")]}, "no activations of step 9"),
    (lambda a: a | {"cells": [CellSpec(1, "normals")]}, "no task named 'normals'"),
    (lambda a: a | {"cells": [CellSpec(1, "depth", "shufled")]}, "unknown probe control 'shufled'"),
    (lambda a: a | {"split": Split([0, 1], [], [9])}, "split names sample 9"),
    (lambda a: a | {"split": Split([0, 1], [], [2]), "config": ProbeConfig(selection="val")}, "needs validation"),
    (lambda a: a | {"config": ProbeConfig(smoothness=1.0)}, "needs the images"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_inputs_that_do_not_fit_together_are_refused(change, message):
    acts, masks, depth, _ = problem()
    good = {
        "acts": acts,
        "steps": [1, 2],
        "grid": (2, 3),
        "targets": pooled(masks, depth, (2, 3)),
        "split": split_of(9),
        "cells": [CellSpec(1, "depth")],
        "config": ProbeConfig(**FAST),
    }
    with pytest.raises(ValueError, match=message):
        fit_site(**change(good))


@pytest.mark.parametrize(
    "wrong", [{"lr": 0}, {"epochs": 0}, {"batch": 0}, {"optimizer": "lion"}, {"normalise": "z"}, {"hidden": -1}], ids=str
)
def test_wrong_settings_name_their_key(wrong):
    with pytest.raises(ValueError, match=f"probe.{next(iter(wrong))}"):
        ProbeConfig(**wrong)


def test_splits_must_be_disjoint_and_filled():
    with pytest.raises(ValueError, match="empty split"):
        Split([], [], [1])
    with pytest.raises(ValueError, match="listed twice"):
        Split([1, 2], [], [2])
