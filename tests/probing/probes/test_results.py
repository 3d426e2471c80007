"""Results of fit_site: rows, failures and the defined outcomes of degenerate data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probing.dataset.split import Split
from probing.probes.batched import predict
from probing.probes.config import ProbeConfig
from probing.probes.fit import fit_site
from probing.probes.results import FitSpec
from storage import tables
from support import probe_reference
from support.probe_problem import FAST, fit, grid_specs, pooled, problem, split_of


def test_test_labels_and_activations_never_reach_the_weights():
    acts, masks, depth, images = problem()
    split, specs, config = split_of(9), grid_specs(2), ProbeConfig(**FAST, selection="val", normalise="rms")
    before = fit((acts, masks, depth, images), (2, 3), split, specs, config)
    acts, masks, depth = acts.copy(), masks.copy(), depth.copy()
    acts[:, split.test] = 7.0
    masks[split.test] = 1
    depth[split.test] = 3.0
    after = fit((acts, masks, depth, images), (2, 3), split, specs, config)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.weights, other.weights)
        assert one.row["val_loss"] == other.row["val_loss"]
        assert one.row["test_loss"] != other.row["test_loss"]


def test_selection_keeps_the_epoch_with_the_lowest_validation_loss():
    config = ProbeConfig(epochs=12, lr=0.5, selection="val", optimizer="sgd")
    for result in fit(problem(), (2, 3), split_of(9), grid_specs(2), config):
        assert result.row["val_loss"] == min(e["val_loss"] for e in result.epochs)


def test_a_step_with_non_finite_training_activations_fails_alone():
    acts, *rest = problem(3)
    split = split_of(9)
    acts[1, split.train[0], 2, 3] = np.inf
    specs = grid_specs(3, controls=("none", "position"))
    results = {r.spec: r for r in fit((acts, *rest), (2, 3), split, specs, ProbeConfig(**FAST))}
    for spec, result in results.items():
        failed = spec.step == 2 and spec.control == "none"
        assert result.ok is not failed
        if failed:
            assert result.weights is None
            assert result.row["error"].startswith("step 2:")
    sound = fit((acts[[0, 2]], *rest), (2, 3), split, [FitSpec(1, "depth")], ProbeConfig(**FAST))
    np.testing.assert_allclose(results[FitSpec(1, "depth")].weights, sound[0].weights, atol=1e-6)


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_non_finite_sample_outside_training_fails_its_step_and_is_named(part):
    acts, *rest = problem(2)
    split = split_of(9)
    sample = getattr(split, part)[1]
    acts[0, sample, 0, 0] = np.nan
    results = fit((acts, *rest), (2, 3), split, grid_specs(2), ProbeConfig(**FAST))
    for result in results:
        assert result.ok is (result.spec.step == 2)
        if not result.ok:
            assert f"{part} sample {sample}" in result.row["error"]


def test_diverged_weights_fail_with_a_fix():
    acts, *rest = problem(1)
    config = ProbeConfig(epochs=40, lr=1e38, optimizer="sgd")
    (result,) = fit((acts * 100, *rest), (2, 3), split_of(9), [FitSpec(1, "depth")], config)
    assert result.row["status"] == "failed"
    assert "probe.lr" in result.row["error"]


def test_constant_labels_leave_correlations_undefined_and_out_of_the_mean():
    acts, masks, depth, images = problem()
    split = split_of(9)
    depth[split.test[0]] = 0.25
    (result,) = fit((acts, masks, depth, images), (2, 3), split, [FitSpec(1, "depth")], ProbeConfig(**FAST))
    defined = [row["spearman"] for row in result.images[1:]]
    assert result.images[0]["spearman"] is None
    assert result.images[0]["pearson"] is None
    assert result.images[0]["rmse_aligned"] == pytest.approx(0, abs=1e-6)
    assert result.row["spearman"] == pytest.approx(np.mean(defined))
    assert result.dropped == {"spearman": 1, "pearson": 1}


def test_labels_constant_everywhere_give_no_nan_anywhere():
    acts, masks, depth, images = problem()
    data = (acts, np.zeros_like(masks), np.full_like(depth, 0.5), images)
    for result in fit(data, (2, 3), split_of(9), grid_specs(2), ProbeConfig(**FAST)):
        assert result.ok
        for value in [*result.row.values(), *(v for row in result.images for v in row.values())]:
            assert not (isinstance(value, float) and np.isnan(value))
        for name in ("spearman", "pearson", "skill", "ap"):
            assert result.row.get(name) is None


def test_an_image_without_foreground_has_a_dice_but_no_average_precision():
    acts, masks, depth, images = problem()
    split = split_of(9)
    masks[split.test[1]] = 0
    (result,) = fit((acts, masks, depth, images), (2, 3), split, [FitSpec(1, "saliency")], ProbeConfig(**FAST))
    assert result.images[1]["ap"] is None
    assert result.images[1]["dice"] in (pytest.approx(0.0, abs=1e-6), pytest.approx(1.0))
    assert result.images[1]["oracle_dice"] == 1.0
    assert result.dropped == {"ap": 1}
    assert result.row["ap"] == pytest.approx(np.mean([result.images[i]["ap"] for i in (0, 2)]))


def test_one_test_sample_is_enough_for_every_control():
    specs = grid_specs(2, controls=("none", "shuffled", "other_image", "position"))
    for result in fit(problem(), (2, 3), split_of(9, val=0, test=1), specs, ProbeConfig(**FAST)):
        assert result.ok
        assert len(result.images) == 1
        assert result.row["val_loss"] is None
        assert result.row["test_loss"] > 0


def test_rows_have_the_columns_of_the_tables():
    saliency, depth = fit(problem(1), (2, 3), split_of(9), grid_specs(1), ProbeConfig(**FAST))
    shared = {"step", "task", "control", "seed", "tokens", "channels", "n_train", "n_val", "n_test", "train_loss"}
    shared |= {"val_loss", "test_loss", "seconds", "status", "error", "dropped"}
    own = {"dice", "val_dice", "oracle_dice", "ap", "ap_val", "crossentropy", "dice_threshold", "dice_background"}
    assert set(saliency.row) == shared | own | {"floor_dice"}
    own = {"rmse", "val_rmse", "oracle_rmse", "rmse_aligned", "spearman", "pearson", "skill", "floor_rmse"}
    own |= {"spearman_residual"}
    assert set(depth.row) == shared | own
    key = {"step", "task", "control", "seed", "sample"}
    assert set(saliency.images[0]) == key | {"dice", "oracle_dice", "ap"}
    assert set(depth.images[0]) == key | {"rmse", "oracle_rmse", "rmse_aligned", "spearman", "pearson"} | {
        "spearman_residual"
    }
    assert [row["epoch"] for row in depth.epochs] == [1, 2, 3]
    assert (saliency.row["n_train"], saliency.row["n_val"], saliency.row["n_test"]) == (4, 2, 3)


def test_the_chosen_threshold_is_never_worse_than_argmax_on_train():
    data, split = problem(), split_of(9)
    (result,) = fit(data, (2, 3), split, [FitSpec(1, "saliency")], ProbeConfig(**FAST))
    logits = predict(result.weights, data[0][0, split.train]).numpy()
    masks = data[1][split.train]
    margin = probe_reference.enlarge(torch.from_numpy(logits), (2, 3), masks.shape[1:]).numpy()
    margin = margin[:, 1] - margin[:, 0]
    found = max(
        np.mean([probe_reference.dice(m > t, y == 1) for m, y in zip(margin, masks, strict=True)])
        for t in [0.0, *np.unique(margin)]
    )
    test_masks = data[1][split.test]
    test = probe_reference.enlarge(predict(result.weights, data[0][0, split.test]), (2, 3), test_masks.shape[1:])
    test = (test[:, 1] - test[:, 0]).numpy()
    best = [
        t
        for t in [0.0, *np.unique(margin)]
        if np.isclose(np.mean([probe_reference.dice(m > t, y == 1) for m, y in zip(margin, masks, strict=True)]), found)
    ]
    scores = [
        np.mean([probe_reference.dice(m > t, y == 1) for m, y in zip(test, test_masks, strict=True)]) for t in best
    ]
    assert any(np.isclose(result.row["dice_threshold"], s, atol=1e-6) for s in scores)


BAD = [
    (lambda a: a | {"acts": a["acts"][:, :, :5]}, "5 patches.*2 x 3"),
    (lambda a: a | {"acts": a["acts"][0]}, "expected activations"),
    (lambda a: a | {"steps": [1, 1]}, "expected activations"),
    (lambda a: a | {"acts": a["acts"][:, :8]}, "targets of saliency: 9"),
    (lambda a: a | {"specs": [FitSpec(9, "depth")]}, "step 9"),
    (lambda a: a | {"specs": [FitSpec(1, "normals")]}, "'normals'"),
    (lambda a: a | {"specs": [FitSpec(1, "depth", "shufled")]}, "'shufled'"),
    (lambda a: a | {"split": Split([0, 1], [], [9])}, "sample 9"),
    (lambda a: a | {"split": Split([0, 1], [], [2]), "config": ProbeConfig(selection="val")}, "probe.selection=val"),
    (lambda a: a | {"config": ProbeConfig(smoothness=1.0)}, "probe.smoothness"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_inputs_that_do_not_fit_together_raise(change, message):
    acts, masks, depth, _ = problem()
    good = {
        "acts": acts,
        "steps": [1, 2],
        "grid": (2, 3),
        "targets": pooled(masks, depth, (2, 3)),
        "split": split_of(9),
        "specs": [FitSpec(1, "depth")],
        "config": ProbeConfig(**FAST),
    }
    with pytest.raises(ValueError, match=message):
        fit_site(**change(good))


@pytest.mark.parametrize(
    "wrong",
    [{"lr": 0}, {"epochs": 0}, {"batch": 0}, {"optimizer": "lion"}, {"normalise": "z"}, {"hidden": -1}],
    ids=str,
)
def test_wrong_settings_name_their_key(wrong):
    with pytest.raises(ValueError, match=f"probe.{next(iter(wrong))}"):
        ProbeConfig(**wrong)


def test_splits_must_be_disjoint_and_filled():
    with pytest.raises(ValueError, match="empty split"):
        Split([], [], [1])
    with pytest.raises(ValueError, match="listed twice"):
        Split([1, 2], [], [2])


def test_validation_losses_are_computed_every_val_every_epochs_and_after_the_last():
    config = ProbeConfig(epochs=5, lr=1e-2, val_every=3)
    (result,) = fit(problem(1), (2, 3), split_of(9), [FitSpec(1, "depth")], config)
    assert [row["val_loss"] is not None for row in result.epochs] == [False, False, True, False, True]
    assert result.row["val_loss"] == result.epochs[-1]["val_loss"]


def test_every_column_is_in_the_tables_schema():
    for result in fit(problem(1), (2, 3), split_of(9), grid_specs(1), ProbeConfig(**FAST)):
        assert set(result.row) <= set(tables.PROBES.names)
        assert set(result.images[0]) <= set(tables.IMAGES.names)
        assert set(result.epochs[0]) <= set(tables.EPOCHS.names)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_torchs_number_of_threads_comes_back_even_after_an_error():
    fit(problem(1), (2, 3), split_of(9), grid_specs(1), ProbeConfig(**FAST))
    assert torch.get_num_threads() == 2
    with pytest.raises(ValueError, match="shufled"):
        fit(problem(1), (2, 3), split_of(9), [FitSpec(1, "depth", "shufled")], ProbeConfig(**FAST))
    assert torch.get_num_threads() == 2
