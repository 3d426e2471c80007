"""Statistics against hand-computed numbers, scipy and simulated truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from probing import statistics


def test_counts_draw_as_many_images_as_there_are_and_depend_on_the_seed():
    counts = statistics.resample_counts(7, 50, seed=1)
    assert counts.shape == (50, 7)
    np.testing.assert_array_equal(counts.sum(1), 7)
    np.testing.assert_array_equal(counts, statistics.resample_counts(7, 50, seed=1))
    assert (counts != statistics.resample_counts(7, 50, seed=2)).any()


def test_images_of_one_caption_are_drawn_together():
    counts = statistics.resample_counts(6, 200, groups=["a", "b", "a", "c", "b", "b"])
    np.testing.assert_array_equal(counts[:, 0], counts[:, 2])
    np.testing.assert_array_equal(counts[:, 1], counts[:, 5])
    assert (counts[:, 0] != counts[:, 3]).any()


def test_resampled_means_are_weighted_means_of_defined_scores():
    counts = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    scores = np.array([[1.0, 4.0, np.nan], [1.0, 4.0, 7.0]])
    np.testing.assert_allclose(statistics.resampled_means(scores, counts), [[2.0, np.nan], [2.0, 7.0]])


def test_mean_of_nothing_is_nan_and_of_some_leaves_out_the_undefined():
    np.testing.assert_array_equal(statistics.mean_defined([[np.nan, 2.0, 4.0], [np.nan] * 3]), [3.0, np.nan])


def test_interval_agrees_with_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).gamma(2.0, size=60)
    ours = statistics.mean_interval(values, statistics.resample_counts(60, 20000, seed=3))
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20000, random_state=4)
    assert ours.estimate == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.02)


def test_intervals_cover_the_true_mean_about_as_often_as_they_say():
    random = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        found = statistics.mean_interval(random.normal(size=50), statistics.resample_counts(50, 400, seed=trial))
        hits += found.low <= 0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_pairing_removes_what_images_share():
    random = np.random.default_rng(1)
    hard = random.normal(size=80) * 5
    ours, theirs = hard + 0.3 + random.normal(size=80) * 0.1, hard + random.normal(size=80) * 0.1
    gap = statistics.difference_interval(ours, theirs)
    assert 0.2 < gap.low < 0.3 < gap.high < 0.4


def test_interval_of_no_defined_draws_has_no_ends():
    found = statistics.interval(0.5, [np.nan, np.nan])
    assert found.estimate == 0.5
    assert np.isnan([found.low, found.high]).all()


@pytest.mark.parametrize("method", ["wilcoxon", "t"])
def test_paired_tests_see_a_difference_and_miss_none(method):
    random = np.random.default_rng(2)
    base = random.normal(size=40)
    assert statistics.paired_test(base + 0.5 + random.normal(size=40) * 0.3, base, method).p < 0.001
    noise = [statistics.paired_test(random.normal(size=30), random.normal(size=30), method).p for _ in range(60)]
    assert np.mean(np.array(noise) < 0.05) < 0.15


def test_t_and_wilcoxon_are_scipys():
    random = np.random.default_rng(3)
    ours, theirs = random.normal(size=25), random.normal(size=25)
    assert statistics.paired_test(ours, theirs, "t").p == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    assert statistics.paired_test(ours, theirs).p == pytest.approx(stats.wilcoxon(ours, theirs).pvalue)


def test_degenerate_pairs_have_defined_outcomes():
    assert statistics.paired_test([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).p == 1.0
    assert statistics.paired_test([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]).p == 0.25
    lone = statistics.paired_test([2.0, np.nan], [1.0, 1.0])
    assert (lone.difference, lone.pairs) == (1.0, 1)
    assert np.isnan(lone.p)


def test_paired_test_raises_on_wrong_input():
    with pytest.raises(ValueError, match=r"\(1,\) and \(2,\)"):
        statistics.paired_test([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="'z'"):
        statistics.paired_test([1.0, 2.0], [1.0, 2.0], "z")


def test_holm_by_hand():
    np.testing.assert_allclose(statistics.holm([[0.01, 0.04], [0.03, 0.005]]), [[0.03, 0.06], [0.06, 0.02]])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=12), st.integers(0, 11))
def test_adjusted_values_never_fall_below_p_keep_order_and_ignore_undefined(p, hole):
    adjusted = statistics.holm(p)
    assert (adjusted >= np.array(p) - 1e-15).all()
    assert (adjusted <= 1).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()
    holed = statistics.holm(np.insert(np.array(p), min(hole, len(p)), np.nan))
    np.testing.assert_allclose(holed[~np.isnan(holed)], adjusted)


def test_adjusting_raises_if_a_value_is_no_probability():
    with pytest.raises(ValueError, match="p values"):
        statistics.holm([0.5, 1.5])


def test_emergence_by_hand_for_scores_and_for_errors():
    scores = np.array([0.2, 0.6, 0.97, 1.0])[:, None] * np.ones((4, 10))
    found = statistics.emergence(scores, 0.0, [1, 2, 3, 4])
    assert (found.step, found.low, found.high, found.defined) == (3, 3.0, 3.0, 1.0)
    np.testing.assert_allclose(found.progress, [0.2, 0.6, 0.97, 1.0])
    errors = statistics.emergence(2.0 - scores, 2.0, [1, 5, 10, 15], higher_is_better=False)
    assert errors.step == 10


def test_emergence_is_undefined_where_the_last_step_does_not_beat_the_floor():
    found = statistics.emergence(np.full((3, 8), 0.4), 0.5, [1, 2, 3])
    assert found.step is None
    assert np.isnan(found.low)
    assert found.defined == 0.0


def test_emergence_interval_widens_with_noise_and_holds_the_estimate():
    random = np.random.default_rng(4)
    rise = np.minimum(np.arange(1, 16) / 6, 1.0)
    scores = rise[:, None] + random.normal(size=(15, 30)) * 0.3
    found = statistics.emergence(scores, np.zeros(30), list(range(1, 16)))
    assert found.step is not None
    assert found.low <= found.step <= found.high
    assert 4 <= found.low < found.high <= 15


def test_emergence_raises_if_the_number_of_steps_differs():
    with pytest.raises(ValueError, match="2 steps"):
        statistics.emergence(np.zeros((3, 4)), 0.0, [1, 2])


def test_selectivity_takes_the_best_control_and_turns_errors_round():
    ones = np.ones(20)
    found = statistics.selectivity(0.8 * ones, {"position": 0.5 * ones, "floor": 0.6 * ones, "other_image": 0.1 * ones})
    assert found.control == "floor"
    assert found.gain.estimate == pytest.approx(0.2)
    errors = statistics.selectivity(0.5 * ones, {"position": 0.9 * ones, "floor": 1.1 * ones}, higher_is_better=False)
    assert errors.control == "position"
    assert errors.gain.estimate == pytest.approx(0.4)
    assert errors.gain.low == pytest.approx(0.4)


def test_selectivity_with_undefined_controls():
    ones, none = np.ones(5), np.full(5, np.nan)
    assert statistics.selectivity(ones, {"a": none, "b": 0.5 * ones}).control == "b"
    assert np.isnan(statistics.selectivity(ones, {"a": none}).gain.estimate)
    with pytest.raises(ValueError, match="at least one control"):
        statistics.selectivity(ones, {})


def test_above_zero_is_the_one_sided_t_test() -> None:
    gaps = np.random.default_rng(0).normal(0.2, 1, (3, 20))
    gaps[1, :5] = np.nan
    found = statistics.above_zero(gaps)
    for row, p in zip(gaps, found, strict=True):
        expected = stats.ttest_1samp(row[~np.isnan(row)], 0, alternative="greater").pvalue
        assert p == pytest.approx(expected)
    np.testing.assert_array_equal(statistics.above_zero([[0.5] * 3, [0.0] * 3, [1, np.nan, np.nan]]), [0, 1, np.nan])
