"""Edited sampling: what is changed, when, in which rows, and what is measured inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interventions.config import EditSpec
from interventions.controls import EDIT
from interventions.editing.edit import Editor, edit_batch
from interventions.editing.readout import TargetLabels
from interventions.plan import Row, rows_of
from interventions.sources.cache import ProbeCache
from probing.diffusion.sampling import sample
from support import interventions_fakes as fakes

CONTROLS = ("random_direction", "random_probe", "shuffled_probe", "late_steps", "rank_one", "natural")
SITE = "up.2.1"


def targets(task: str = "saliency") -> TargetLabels:
    rows, columns = np.mgrid[:128, :128] / 128
    masks = np.stack([columns > 0.6, rows > 0.7])
    like = torch.zeros(())
    return TargetLabels(task, masks if task == "saliency" else masks + rows, 9.0, like)


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
        guidance=guidance, total=fakes.STEPS,
    )  # fmt: skip
    original = sample(model, [fakes.PROMPT] * 2, [3] * 2, steps=fakes.STEPS, guidance=guidance)
    assert np.array_equal(edited.images, original.images.numpy())
    assert not edited.measures["edit_norm"].any()
    assert np.isnan(edited.measures["readout_after"]).all()


def test_edits_reach_the_image_and_rows_do_not_touch_each_other():
    model, rows = fakes.model(), rows_of([0, 1], ())
    settings = {"guidance": 2.0, "total": fakes.STEPS}
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
            guidance=2.0, total=1,
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
                                  worker.controls).linear.weight[0]  # fmt: skip
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
    rms = scaled.probe_cache.get("saliency", site, 1, (EDIT,)).stats.rms
    by_hand = editor(rows, lr=0.05 * rms)
    changes = [run(worker, 1, before) - before for worker in (plain, scaled, by_hand)]
    assert torch.equal(changes[1], changes[2])
    assert not torch.equal(changes[0], changes[1])


def test_steps_beyond_the_last_and_unknown_sites_are_refused():
    settings = {"guidance": 2.0, "total": 2}
    with pytest.raises(ValueError, match="step 3 is beyond 2"):
        edit_batch(fakes.model(), fakes.PROMPT, 3, targets(), rows_of([0], ()), spec(steps=(1, 3)), probe_cache(),
                   **settings)  # fmt: skip
    with pytest.raises(ValueError, match="did you mean 'up.2.1'"):
        edit_batch(fakes.model(), fakes.PROMPT, 3, targets(), rows_of([0], ()), spec(sites=("up.2.11",)),
                   probe_cache(), **settings)  # fmt: skip
