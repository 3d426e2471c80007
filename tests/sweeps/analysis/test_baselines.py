"""The headline's baseline: chosen on validation images, named, together with the baselines that the run lacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.report_store import CONFIG, Made, make_store
from sweeps.analysis import baselines, summary, tables
from sweeps.analysis.scores import Scores, collect
from sweeps.report.context import build_context

FEW = ("mid.0", "up.2.1", "up.3.0")
ByTask = tuple[dict[str, Scores], dict[str, dict[str, Scores]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> ByTask:
    made = Made(test=8, sites=FEW, pictures=False, variants=("trained", "random", "random_forced"))
    run = tables.load(make_store(tmp_path_factory.mktemp("run"), made), CONFIG)
    return collect(run), {"position": collect(run, control="position")}


@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_the_baseline_is_the_best_on_validation_not_on_test(found: ByTask, task: str) -> None:
    scores, position = found[0][task], found[1]["position"][task]
    scores = replace(scores, floor=np.full(len(scores.sites), -9 * scores.measure.sign))
    lead = baselines.headline(scores, {"position": position})
    assert lead is not None
    assert (lead.baseline.name, lead.missing) == ("position", ("surface", "surface_rgb"))
    worst = position.val - 9 * scores.measure.sign
    chosen = baselines.headline(scores, {"position": replace(position, val=worst)})
    assert chosen is not None
    assert chosen.baseline.name in ("random", "random_forced")


def test_the_gain_is_paired_and_positive_if_trained_is_better(found: ByTask) -> None:
    scores, position = found[0]["depth"], found[1]["position"]["depth"]
    scores = replace(scores, floor=np.full(len(scores.sites), 9.0))
    lead = baselines.headline(scores, {"position": position})
    assert lead is not None
    ours, baseline = (s.part("trained", "decoder")[-1] for s in (scores, position))
    assert lead.gain.estimate == pytest.approx(np.mean(baseline - ours))
    assert lead.gain.low <= lead.gain.estimate <= lead.gain.high


def test_a_run_without_baselines_has_no_headline(found: ByTask) -> None:
    scores = found[0]["saliency"]
    alone = replace(
        scores, floor=np.full(3, np.nan), values=np.where(np.arange(3)[:, None, None, None] == 0, scores.values, np.nan)
    )
    assert baselines.headline(alone, {}) is None


def test_controls_of_other_images_are_no_baselines(found: ByTask) -> None:
    position = replace(found[1]["position"]["depth"], samples=np.arange(8))
    names = [r.name for r in baselines.baselines(found[0]["depth"], {"position": position})]
    assert names == ["random", "random_forced", "floor"]


def test_the_report_names_the_baseline_and_the_missing_ones(tmp_path: Path) -> None:
    from sweeps.report import build

    store = make_store(tmp_path, Made(test=4, sites=FEW, extras=False, pictures=False))
    html = build.draw_context(build_context(tables.load(store, CONFIG), store)).html
    assert "the floor (mean mask or all foreground), by" in html
    assert "lacks the following baselines: the surface" in html
    assert "<code>scenesweep run scenes --all</code>" in html


def test_preregistered_contrasts_are_corrected_over_those_in_the_run(found: ByTask) -> None:
    scores, controls = found
    ten = baselines.preregistered(scores, controls, {})
    assert len(ten) == 10
    held = {(c.task, c.baseline) for c in ten if np.isfinite(c.p)}
    assert held == {(t, r) for t in ("saliency", "depth") for r in ("random", "random_forced", "position")}
    smallest = min((c for c in ten if np.isfinite(c.p)), key=lambda c: c.p)
    assert smallest.holm == pytest.approx(min(1.0, 6 * smallest.p))
    assert all(np.isnan(c.holm) for c in ten if np.isnan(c.p))


@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_cells_at_the_floor_are_marked_and_good_ones_are_not(found: ByTask, task: str) -> None:
    scores = found[0][task]
    rng = np.random.default_rng(0)
    values = scores.floor[:, None, None] + rng.normal(0, 0.1, scores.values.shape)
    values[0, 1] += 0.6 * scores.measure.sign
    made = replace(scores, values=values)
    weak = summary.not_above(made, "trained")
    assert not weak[1].any()
    assert weak[[0, 2]].mean() > 0.9
    values[1, 1] = values[0, 1]
    assert summary.not_above(replace(made, values=values), "trained")[1].all()
