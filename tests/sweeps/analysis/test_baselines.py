"""The headline's rival: chosen on validation, named, with what the run lacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.report_store import CONFIG, Made, make_store
from sweeps.analysis import baselines as contrasts
from sweeps.analysis import scores as analysis
from sweeps.analysis import summary as findings
from sweeps.analysis import tables as report_data
from sweeps.analysis.scores import Scores
from sweeps.report.context import build_context

FEW = ("mid.0", "up.2.1", "up.3.0")
Found = tuple[dict[str, Scores], dict[str, dict[str, Scores]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    made = Made(test=8, sites=FEW, pictures=False, variants=("trained", "random", "random_forced"))
    run = report_data.load(make_store(tmp_path_factory.mktemp("run"), made), CONFIG)
    return analysis.collect(run), {"position": analysis.collect(run, control="position")}


@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_the_rival_is_the_best_on_validation_not_on_test(found: Found, task: str) -> None:
    scores, position = found[0][task], found[1]["position"][task]
    lead = contrasts.headline(scores, {"position": position})
    assert lead is not None
    assert (lead.baseline.name, lead.missing) == ("position", ("surface", "surface_rgb"))
    worst = position.val - 9 * scores.measure.sign
    chosen = contrasts.headline(scores, {"position": replace(position, val=worst)})
    assert chosen is not None
    assert chosen.baseline.name in ("random", "random_forced")


def test_the_gain_is_paired_and_positive_where_trained_is_better(found: Found) -> None:
    scores, position = found[0]["depth"], found[1]["position"]["depth"]
    lead = contrasts.headline(scores, {"position": position})
    assert lead is not None
    ours, theirs = (s.part("trained", "decoder")[-1] for s in (scores, position))
    assert lead.gain.estimate == pytest.approx(np.mean(theirs - ours))
    assert lead.gain.low <= lead.gain.estimate <= lead.gain.high


def test_a_run_without_rivals_has_no_headline_contrast(found: Found) -> None:
    scores = found[0]["saliency"]
    alone = replace(scores, values=np.where(np.arange(3)[:, None, None, None] == 0, scores.values, np.nan))
    assert contrasts.headline(alone, {}) is None


def test_controls_of_other_images_are_no_rivals(found: Found) -> None:
    position = replace(found[1]["position"]["depth"], samples=np.arange(8))
    names = [r.name for r in contrasts.baselines(found[0]["depth"], {"position": position})]
    assert names == ["random", "random_forced"]


def test_the_report_names_the_rival_and_what_is_missing(tmp_path: Path) -> None:
    from sweeps.report import build as report

    store = make_store(tmp_path, Made(test=4, sites=FEW, extras=False, pictures=False))
    html = report.draw_context(build_context(report_data.load(store, CONFIG), store)).html
    assert "the randomised network, by" in html
    assert "lacks the following baselines: the surface" in html
    assert "<code>scenesweep run scenes --all</code>" in html


def test_ten_contrasts_are_corrected_over_those_held(found: Found) -> None:
    scores, controls = found
    ten = contrasts.preregistered(scores, controls, {})
    assert len(ten) == 10
    held = {(c.task, c.baseline) for c in ten if np.isfinite(c.p)}
    assert held == {(t, r) for t in ("saliency", "depth") for r in ("random", "random_forced", "position")}
    smallest = min((c for c in ten if np.isfinite(c.p)), key=lambda c: c.p)
    assert smallest.holm == pytest.approx(min(1.0, 6 * smallest.p))
    assert all(np.isnan(c.holm) for c in ten if np.isnan(c.p))


@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_cells_at_the_floor_are_marked_and_good_ones_are_not(found: Found, task: str) -> None:
    scores = found[0][task]
    rng = np.random.default_rng(0)
    values = scores.floor[:, None, None] + rng.normal(0, 0.1, scores.values.shape)
    values[0, 1] += 0.6 * scores.measure.sign
    made = replace(scores, values=values)
    weak = findings.not_above(made, "trained")
    assert not weak[1].any()
    assert weak[[0, 2]].mean() > 0.9
    values[1, 1] = values[0, 1]
    assert findings.not_above(replace(made, values=values), "trained")[1].all()
