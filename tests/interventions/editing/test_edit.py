"""Edited sampling: what is changed, when, in which rows, and what is measured inside."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from interventions.config import EditSpec
from interventions.controls import EDIT, STEERED
from interventions.editing.edit import Editor, edit_batch
from interventions.editing.readout import TargetLabels
from interventions.editing.steer import as_direction
from interventions.plan import Row, rows_of
from interventions.sources.base import ProbeKey
from interventions.sources.cache import ProbeCache
from probing.diffusion.sampling import sample
from support import interventions_fakes as fakes

CONTROLS = ("random_direction", "random_probe", "shuffled_probe", "late_steps", "rank_one", "natural")
SITE = "up.2.1"


def targets(task: str = "saliency") -> TargetLabels:
    rows, columns = np.mgrid[:128, :128] / 128
    masks = np.stack([columns > 0.6, rows > 0.7])
    like = torch.zeros(())
    if task == "saliency":
        return TargetLabels(task, masks, 9.0, like, rows > 0.4)
    return TargetLabels(task, masks + rows, 9.0, like, rows)


def spec(task: str = "saliency", **changes: object) -> EditSpec:
    return EditSpec(**{"task": task, "sites": (SITE,), "steps": (1,), "iterations": 40, "lr": 0.05, **changes})


def probe_cache() -> ProbeCache:
    return ProbeCache(fakes.SOURCES, torch.device("cpu"))


def editor(rows: tuple[Row, ...], late: tuple[int, ...] = (4,), **changes: object) -> Editor:
    return Editor(spec(**changes), rows, targets(changes.get("task", "saliency")), probe_cache(), (0, 0), late)


def acts(rows: int, seed: int = 0) -> torch.Tensor:
    """Activations of site up.2.1, the same in every row."""
    site = next(s for s in fakes.model().sites() if s.name == SITE)
    one = torch.randn(1, site.tokens, site.channels, generator=torch.Generator().manual_seed(seed))
    return one.expand(rows, -1, -1).contiguous()


def run(editor: Editor, step: int, before: torch.Tensor) -> torch.Tensor:
    editor.step = step
    site = next(s for s in fakes.model().sites() if s.name == SITE)
    return editor(site, before)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_an_empty_edit_is_the_original_bit_for_bit(guidance: float):
    rows = rows_of([0, 1], ())
    model = fakes.model()
    edited = edit_batch(
        model, fakes.PROMPT, 3, targets(), rows, spec(iterations=0, sites=("all",)), probe_cache(),
        guidance=guidance, steps=fakes.STEPS,
    )  # fmt: skip
    original = sample(model, [fakes.PROMPT] * 2, [3] * 2, steps=fakes.STEPS, guidance=guidance)
    assert np.array_equal(edited.images, original.images.numpy())
    assert not edited.measures["edit_norm"].any()
    assert np.isnan(edited.measures["readout_after"]).all()


def test_edits_reach_the_image_and_rows_do_not_touch_each_other():
    model, rows = fakes.model(), rows_of([0, 1], ())
    settings = {"guidance": 2.0, "steps": fakes.STEPS}
    both = edit_batch(model, fakes.PROMPT, 3, targets(), rows, spec(), probe_cache(), **settings)
    one = edit_batch(model, fakes.PROMPT, 3, targets(), rows[1:], spec(), probe_cache(), **settings)
    plain = sample(model, [fakes.PROMPT], [3], steps=fakes.STEPS, guidance=2.0).images.numpy()
    assert (both.images[0] != both.images[1]).any()
    assert (both.images[0] != plain[0]).any()
    assert np.abs(both.images[1].astype(int) - one.images[0]).max() <= 1
    assert both.measures["edit_norm"][1] == pytest.approx(one.measures["edit_norm"][0], rel=1e-4)


def test_later_sites_of_the_same_call_see_the_edit(monkeypatch: pytest.MonkeyPatch):
    """An early site's edit changes what a later site of the same call is given."""
    seen: dict[str, torch.Tensor] = {}
    real = Editor.__call__

    def spy(self: Editor, site, before):
        seen.setdefault(site.name, before.clone())
        return real(self, site, before)

    monkeypatch.setattr(Editor, "__call__", spy)
    for sites in (("up.2.1",), ("up.1.0", "up.2.1")):
        edit_batch(
            fakes.model(), fakes.PROMPT, 3, targets(), rows_of([0], ()), spec(sites=sites), probe_cache(),
            guidance=2.0, steps=1,
        )  # fmt: skip
        seen.setdefault("alone", seen["up.2.1"])
        seen["both"] = seen.pop("up.2.1")
    assert (seen["alone"] - seen["both"]).abs().max() > 1e-4


def test_controls_are_as_strong_as_the_real_edit_token_by_token():
    rows = rows_of([0, 1], CONTROLS)
    worker, before = editor(rows), acts(len(rows))
    early = run(worker, 1, before) - before
    late = run(worker, 4, before) - before
    change = {row: early[i] + late[i] for i, row in enumerate(rows)}
    for row in rows:
        norm, real = change[row].norm(dim=-1), change[Row(row.trial)].norm(dim=-1)
        assert torch.allclose(norm, real, atol=1e-5), row
    assert not late[[i for i, row in enumerate(rows) if row.control != "late_steps"]].any()
    assert not early[[i for i, row in enumerate(rows) if row.control == "late_steps"]].any()


def test_the_random_direction_is_one_per_trial_orthogonal_with_the_real_signs():
    rows = rows_of([0, 1], ("random_direction",))
    worker, before = editor(rows), acts(4)
    change = run(worker, 1, before) - before
    weight = worker.probe_cache.get("saliency", next(s for s in fakes.model().sites() if s.name == SITE), 1,
                                  worker.controls, "weights").linear.weight[0]  # fmt: skip
    directions = []
    for real, turned in ((change[0], change[1]), (change[2], change[3])):
        assert (turned @ weight).abs().max() < 1e-4 * weight.norm() * turned.norm(dim=-1).max()
        unit = turned / (turned.norm(dim=-1, keepdim=True) * torch.sign(real @ weight)[:, None])
        assert torch.allclose(unit, unit[:1].expand_as(unit), atol=1e-4)
        directions.append(unit[0])
    assert (directions[0] @ directions[1]).abs() < 0.99


def test_readings_and_norms_are_means_over_the_edits_of_a_row():
    rows = rows_of([0, 1], ("random_direction", "late_steps"))
    worker, before = editor(rows, steps=(1, 2), late=(3, 4), iterations=128), acts(len(rows))
    for step in (1, 2, 3, 4):
        run(worker, step, before)
    measures = worker.measures()
    real, turned, _ = (np.array([row.control == c for row in rows]) for c in worker.controls)
    assert (measures["readout_after"][real] >= 0.95).all()
    assert np.allclose(measures["readout_after"][turned], measures["readout_before"][turned], atol=1e-6)
    assert np.allclose(measures["edit_norm"][turned], measures["edit_norm"][real], rtol=1e-4)
    assert (measures["departure_after"][real] > measures["departure_before"][real]).all()
    assert np.isnan(measures["readout_spearman"]).all()


def test_depth_readings_follow_the_target_order():
    rows = rows_of([0, 1], ())
    worker, before = editor(rows, task="depth", iterations=128), acts(2)
    run(worker, 1, before)
    measures = worker.measures()
    assert (measures["readout_spearman"] >= 0.9).all()
    assert (measures["readout_after"] < measures["readout_before"]).all()


def test_the_step_size_can_be_in_units_of_the_site():
    rows, before = rows_of([0], ()), acts(1)
    plain, scaled = editor(rows), editor(rows, lr_units="rms")
    site = next(s for s in fakes.model().sites() if s.name == SITE)
    rms = scaled.probe_cache.get("saliency", site, 1, (EDIT,), "weights").stats.rms
    by_hand = editor(rows, lr=0.05 * rms)
    changes = [run(worker, 1, before) - before for worker in (plain, scaled, by_hand)]
    assert torch.equal(changes[1], changes[2])
    assert not torch.equal(changes[0], changes[1])


def test_steps_beyond_the_last_and_unknown_sites_are_refused():
    settings = {"guidance": 2.0, "steps": 2}
    with pytest.raises(ValueError, match="step 3 is beyond 2"):
        edit_batch(fakes.model(), fakes.PROMPT, 3, targets(), rows_of([0], ()), spec(steps=(1, 3)), probe_cache(),
                   **settings)  # fmt: skip
    with pytest.raises(ValueError, match="did you mean 'up.2.1'"):
        edit_batch(fakes.model(), fakes.PROMPT, 3, targets(), rows_of([0], ()), spec(sites=("up.2.11",)),
                   probe_cache(), **settings)  # fmt: skip


def site_probes(worker: Editor):
    site = next(s for s in fakes.model().sites() if s.name == SITE)
    return worker.probe_cache.get(worker.spec.task, site, 1, worker.controls, worker.spec.direction)


@pytest.mark.parametrize("task", ["saliency", "depth"])
@pytest.mark.parametrize("direction", ["pattern", "mean_difference"])
def test_a_turned_edit_moves_every_reading_as_far_as_the_papers_along_one_direction(task: str, direction: str):
    rows, before = rows_of([0, 1], ()), acts(2)
    paper = run(editor(rows, task=task), 1, before) - before
    worker = editor(rows, task=task, direction=direction)
    turned = run(worker, 1, before) - before
    weight = site_probes(worker).linear.weight[0]
    assert torch.allclose(turned @ weight, paper @ weight, atol=1e-4)
    moments = fakes.moments(task, SITE, 1, "trained")
    probe = site_probes(worker).probe
    unit = moments.pattern(probe) if direction == "pattern" else moments.mean_difference()
    along = turned @ torch.from_numpy(unit).float()
    assert torch.allclose(along.abs(), turned.norm(dim=-1), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(turned, paper, atol=1e-2)


@pytest.mark.parametrize(("scale", "direction"), [("reading", "pattern"), ("reading", "weights"), ("gap", "pattern"),
                                                   ("rms", "pattern"), ("rms", "weights")])  # fmt: skip
def test_the_gain_is_in_units_of_its_scale(scale: str, direction: str):
    rows, before = rows_of([0, 1], ()), acts(2)
    one = run(editor(rows, direction=direction), 1, before) - before
    worker = editor(rows, direction=direction, scale=scale, gain=1.7)
    edit = run(worker, 1, before) - before
    if scale == "reading":
        assert torch.allclose(edit, 1.7 * one, rtol=1e-4, atol=1e-6)
        return
    parts = site_probes(worker)
    unit = parts.stats.rms * before.shape[-1] ** 0.5 if scale == "rms" else parts.directions.gap
    size = edit.square().sum(-1).mean(-1).sqrt()
    assert torch.allclose(size, torch.full((2,), 1.7 * unit), rtol=1e-4)
    cosine = torch.nn.functional.cosine_similarity(edit.flatten(1), one.flatten(1))
    assert torch.allclose(cosine, torch.ones(2), atol=1e-5)


def test_edits_along_the_weights_have_no_gap():
    with pytest.raises(ValueError, match="scale=gap: edits along the weights have no gap"):
        run(editor(rows_of([0], ()), scale="gap", gain=2.0), 1, acts(1))


@pytest.mark.parametrize("task", ["saliency", "depth"])
@pytest.mark.parametrize("direction", ["pattern", "mean_difference"])
def test_an_edit_of_natural_size_follows_the_change_of_the_label_alone(task: str, direction: str):
    rows, before = rows_of([0, 1], ("random_probe",)), acts(4)
    worker = editor(rows, task=task, direction=direction, scale="label", gain=1.5, iterations=1)
    change = run(worker, 1, before) - before
    moments = fakes.moments(task, SITE, 1, "trained")
    probe = site_probes(worker).probe
    unit = moments.pattern(probe) if direction == "pattern" else moments.mean_difference()
    for row, edit in zip(rows, change.double().numpy(), strict=True):
        label = targets(task).labels[row.trial] * 1.0 - targets(task).original
        expected = 1.5 * label.reshape(8, 16, 8, 16).mean((1, 3)).ravel() * moments.gap(unit) / moments.contrast
        if row.control == "edit":
            np.testing.assert_allclose(edit, expected[:, None] * unit, atol=1e-5)
        assert 0 < (expected == 0).sum() < 50  # of 64 patches; those do not move at all
        np.testing.assert_allclose(np.linalg.norm(edit, axis=1), np.abs(expected), atol=1e-5)


def test_without_a_difference_of_labels_no_natural_change_is_known():
    worker = editor(rows_of([0], ()), direction="pattern", scale="label")
    parts = site_probes(worker)
    flat = replace(parts, directions=replace(parts.directions, contrast=0.0))
    worker.probe_cache.site_probes = dict.fromkeys(worker.probe_cache.site_probes, flat)
    with pytest.raises(ValueError, match="no natural change is known; use scale=reading"):
        run(worker, 1, acts(1))


def test_edits_along_the_weights_have_no_natural_change():
    with pytest.raises(ValueError, match="scale=label: edits along the weights have no natural change"):
        run(editor(rows_of([0], ()), scale="label"), 1, acts(1))


NULLS = ("random_direction", "random_probe", "shuffled_probe", "permuted_probe", "mirror_target", "decoy_place")


def null_editor(direction: str) -> tuple[Editor, dict[Row, torch.Tensor]]:
    """An editor with targets and, after them, the opposite targets; changes by row."""
    rows = rows_of([0, 1], NULLS)
    both = targets()
    both = TargetLabels(
        "saliency", np.concatenate([both.labels, both.labels[:, ::-1, ::-1]]), 9.0, torch.zeros(()), both.original
    )
    worker = Editor(spec(direction=direction), rows, both, probe_cache(), (0, 0), (4,))
    before = acts(len(rows))
    change = run(worker, 1, before) - before
    return worker, dict(zip(rows, change, strict=True))


@pytest.mark.parametrize("direction", ["weights", "pattern", "mean_difference"])
def test_every_null_has_the_norm_of_the_real_edit(direction: str):
    _, change = null_editor(direction)
    for row, edit in change.items():
        real = change[Row(row.trial)]
        if row.control in ("mirror_target", "decoy_place"):
            assert edit.norm() == pytest.approx(float(real.norm()), rel=1e-4), row
        else:
            assert torch.allclose(edit.norm(dim=-1), real.norm(dim=-1), atol=1e-5), row


@pytest.mark.parametrize("direction", ["weights", "pattern"])
def test_nulls_go_elsewhere(direction: str):
    worker, change = null_editor(direction)
    parts = site_probes(worker)
    real = change[Row(0)]
    decoy = change[Row(0, "decoy_place")].unflatten(0, (8, 8))
    assert torch.allclose(decoy, real.unflatten(0, (8, 8)).roll((4, 4), dims=(0, 1)), atol=1e-5)
    random = change[Row(0, "random_direction")]
    assert (random @ parts.linear.weight[0]).abs().max() < 1e-3 * random.norm()
    if direction == "pattern":
        assert (random @ parts.directions.unit[0]).abs().max() < 1e-3 * random.norm()
    # the mirrored target is what an edit towards it alone would do, up to its size
    opposite = TargetLabels(
        "saliency", targets().labels[:, ::-1, ::-1].copy(), 9.0, torch.zeros(()), targets().original
    )
    alone = Editor(spec(direction=direction), rows_of([0], ()), opposite, probe_cache(), (0, 0), (4,))
    expected = run(alone, 1, acts(1)) - acts(1)
    found = change[Row(0, "mirror_target")]
    assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.9999


def test_a_null_along_the_pattern_follows_the_pattern_of_its_own_probe():
    _, change = null_editor("pattern")
    for control in ("random_probe", "shuffled_probe", "permuted_probe"):
        kind = STEERED[control]
        key = ProbeKey("saliency", SITE, 1, *kind)
        probe = as_direction(fakes.probe(key), fakes.channels(SITE))[0]
        unit = torch.from_numpy(fakes.moments("saliency", SITE, 1, kind[0]).pattern(probe)).float()
        edit = change[Row(1, control)]
        assert torch.allclose((edit @ unit).abs(), edit.norm(dim=-1), rtol=1e-4, atol=1e-6)
