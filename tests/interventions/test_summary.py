"""Summaries of interventions: intervals over images, tests, and edits that look like effects but are none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interventions import summary
from probing import statistics

COMMON = {"experiment": "interventions", "sites": "up.2.1", "steps": "1", "iterations": 8, "lr": 0.1,
          "guidance": 2.0, "status": "done"}  # fmt: skip


def rows(task: str = "saliency", edit: float = 0.3, other: float = 0.0, images: int = 30) -> list[dict]:
    """Edits that gain `edit` and a control that gains `other`, both with noise."""
    random, found = np.random.default_rng(0), []
    sign = 1 if task == "saliency" else -1
    for sample in range(images):
        start = random.uniform(0.3, 0.5)
        for trial in range(5):
            for control, gain in (("edit", edit), ("random_direction", other), ("none", 0.0)):
                noise = 0.0 if control == "none" else random.normal(scale=0.05)
                after = start + sign * (gain + noise)
                # an object that follows its target leaves the place where it was
                left = summary.PERFECT[task] - sign * gain
                found.append({**COMMON, "task": task, "sample": sample, "trial": trial, "control": control,
                              "score_before": start, "score_after": after, "mirror_after": start,
                              "original_after": left, "constant_after": None, "slope": gain})  # fmt: skip
    return found


@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_a_real_effect_holds_against_every_comparison(task: str):
    effects = summary.summarise(rows(task))
    assert [e.control for e in effects] == ["edit", "none", "random_direction"]
    edit, none, turned = effects
    assert (edit.images, edit.trials) == (30, 150)
    assert edit.gain.estimate == pytest.approx(0.3, abs=0.05)
    assert edit.gain.low > 0.2
    assert edit.slope.estimate == pytest.approx(0.3)
    assert {a.other for a in edit.comparisons} == {"none", "random_direction", "mirror", "original"}
    assert edit.moved.estimate == pytest.approx(0.6, abs=0.05)
    assert edit.improved.estimate == pytest.approx(0.3, abs=0.05)
    assert all(a.test.p < 1e-4 and a.test.pairs == 30 for a in edit.comparisons if a.other != "original")
    assert all(a.gain.low > 0 for a in edit.comparisons if a.other != "original")
    assert [a.other for a in edit.comparisons if a.null] == ["random_direction"]
    assert none.moved.estimate == pytest.approx(0)
    assert none.gain.estimate == 0
    assert turned.gain.low < 0 < turned.gain.high
    assert not turned.comparisons


def test_a_control_that_does_the_same_is_not_beaten():
    edit = summary.summarise(rows(other=0.3))[0]
    assert edit.gain.low > 0
    assert not all(a.gain.low > 0 for a in edit.comparisons)


def test_a_variation_is_an_edit_and_no_control():
    varied = [
        {**r, "control": "natural", "score_after": r["score_after"] + 0.1} for r in rows() if r["control"] == "edit"
    ]
    edit, natural, *_ = (e for e in summary.summarise([*rows(), *varied]) if e.control != "none")
    assert (edit.control, natural.control) == ("edit", "natural")
    assert (
        {a.other for a in edit.comparisons}
        == {a.other for a in natural.comparisons}
        == {"none", "random_direction", "mirror", "original"}
    )
    assert natural.gain.estimate == pytest.approx(edit.gain.estimate + 0.1, abs=1e-6)


def test_failed_rows_are_left_out_and_series_kept_apart():
    broken = {**rows()[0], "status": "failed", "score_after": None}
    longer = [{**row, "iterations": 16} for row in rows()]
    effects = summary.summarise([*rows(), broken, *longer])
    assert [e.series.iterations for e in effects] == [8, 8, 8, 16, 16, 16]
    assert effects[0].trials == 150


def test_a_missing_control_trial_is_no_comparison():
    kept = [r for r in rows() if r["control"] != "random_direction" or r["sample"] < 20]
    edit = summary.summarise(kept)[0]
    against = {a.other: a.test.pairs for a in edit.comparisons}
    assert against == {"none": 30, "random_direction": 20, "mirror": 30, "original": 30}


def test_clutter_at_the_target_improves_its_score_and_moves_nothing():
    """Junk where the target is raises agreement with it; the object stays where it was."""
    junk = [
        {**r, "original_after": 0.9} if r["control"] == "random_direction" else r for r in rows(edit=0.3, other=0.3)
    ]
    edit, _, turned = summary.summarise(junk)
    assert turned.improved.low > 0.2
    assert turned.moved.estimate == pytest.approx(0.4, abs=0.05)
    lead = next(c for c in edit.comparisons if c.other == "random_direction")
    assert lead.gain.estimate == pytest.approx(0.2, abs=0.05)
    assert lead.gain.low > 0


def test_every_image_counts_the_same_whatever_its_number_of_trials():
    few = [r for r in rows(images=8) if r["trial"] == 0 or r["sample"] == 0]
    moved = [{**r, "score_after": r["score_before"] + (0.4 if r["sample"] == 0 else 0.0)} for r in few]
    edit = summary.summarise(moved)[0]
    assert edit.improved.estimate == pytest.approx(0.4 / 8)


def test_rows_of_earlier_versions_are_the_papers_edits():
    old = rows()[0]
    assert summary.series_of(old) == summary.series_of({**old, "direction": "weights", "scale": "reading", "gain": 1.0})
    assert summary.series_of({**old, "direction": "pattern"}) != summary.series_of(old)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4))
def test_medians_equal_those_of_repeated_rows(seed: int, images: int, trials: int):
    random = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), trials)
    values = random.normal(size=len(image)).round(1)
    values[random.random(len(values)) < 0.2] = np.nan
    counts = statistics.resample_counts(images, 7, seed)
    for draw, found in zip(counts, summary.medians(values, image, counts), strict=True):
        repeated = np.repeat(values, draw[image].astype(int))
        repeated = repeated[~np.isnan(repeated)]
        assert found == pytest.approx(np.median(repeated)) if len(repeated) else np.isnan(found)


def test_the_bootstrap_resamples_images_not_trials():
    """Trials that repeat one number per image must not narrow the interval."""
    few = [r for r in rows() if r["trial"] == 0]
    many = [{**r, "trial": t} for r in few for t in range(5)]
    narrow, wide = (summary.summarise(found)[0].gain for found in (many, few))
    assert (narrow.low, narrow.high) == pytest.approx((wide.low, wide.high))


def test_the_slope_of_measured_on_requested_depth():
    random = np.random.default_rng(0)
    asked = random.uniform(-2, 2, 40)
    depths = [{**COMMON, "task": "depth", "sample": i // 2, "trial": i % 2, "depth_before": 0.3,
               "depth_wanted": 0.3 + a, "depth_after": 0.4 + 0.6 * a + 0.01 * random.normal()}
              for i, a in enumerate(asked)]  # fmt: skip
    found = summary.depth_slope(depths)
    assert found.slope.estimate == pytest.approx(0.6, abs=0.01)
    assert found.slope.low > 0.55
    assert found.correlation > 0.99
    assert found.edits == 40
    assert summary.depth_slope(rows()).edits == 0


@pytest.mark.parametrize(
    ("task", "column", "bar"), [("saliency", "readout_after", 0.95), ("depth", "readout_spearman", 0.9)]
)
def test_readings_that_reached_their_target_are_counted(task: str, column: str, bar: float):
    read = [{**row, column: bar if row["trial"] < 4 else bar - 0.01} for row in rows(task)]
    edit, none, _ = summary.summarise([{**r, column: None} if r["control"] == "none" else r for r in read])
    assert edit.reached == pytest.approx(0.8)
    assert np.isnan(none.reached)
