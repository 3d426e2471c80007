"""Intervals and tests over images: joint bootstrap, paired tests, multiple comparisons, emergence, selectivity.

Scores are arrays whose last axis runs over test images, NaN where a score is undefined. Undefined scores are
left out of every mean; a statistic of nothing is NaN and never enters another mean. Only numpy and scipy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]
RESAMPLES = 2000
"""bootstrap resamples where the caller names no number"""


@dataclass(frozen=True)
class Interval:
    """An estimate with a percentile bootstrap interval."""

    estimate: float
    """value on all images"""
    low: float
    """lower end"""
    high: float
    """upper end"""
    level: float = 0.95
    """coverage aimed at"""


def resample_counts(images: int, resamples: int = RESAMPLES, seed: int = 0, groups: ArrayLike | None = None) -> Array:
    """How often every image occurs in every resample: (resamples, images).

    groups: (images) labels, such as captions; images of one group are drawn together. Give the same counts to
    every site, step and control that is compared, so that all of them see the same images (paired, joint)."""
    if images < 1 or resamples < 1:
        raise ValueError(f"bootstrap needs images and resamples, not {images} and {resamples}")
    labels = np.arange(images) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    if len(labels) != images:
        raise ValueError(f"{len(labels)} group labels for {images} images")
    size = int(labels.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=resamples)
    return drawn[:, labels].astype(np.float64)


def mean_defined(scores: ArrayLike) -> Array:
    """Mean over the last axis without undefined scores; NaN where nothing is defined."""
    scores = np.asarray(scores, dtype=np.float64)
    good = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        return np.where(good, scores, 0.0).sum(-1) / np.where(good.any(-1), good.sum(-1), np.nan)


def resampled_means(scores: ArrayLike, counts: Array) -> Array:
    """Means (..., resamples) of scores (..., images) in the resamples of `counts`, undefined scores left out."""
    scores = np.asarray(scores, dtype=np.float64)
    good = ~np.isnan(scores)
    total, weight = np.where(good, scores, 0.0) @ counts.T, good @ counts.T
    with np.errstate(invalid="ignore"):
        return total / np.where(weight > 0, weight, np.nan)


def interval(estimate: float, draws: ArrayLike, level: float = 0.95) -> Interval:
    """Percentile interval of the defined draws; NaN ends where there are none."""
    known = np.asarray(draws, dtype=np.float64)
    known = known[~np.isnan(known)]
    tail = (1 - level) / 2
    low, high = np.quantile(known, [tail, 1 - tail]) if len(known) else (np.nan, np.nan)
    return Interval(float(estimate), float(low), float(high), level)


def mean_interval(scores: ArrayLike, counts: Array | None = None, level: float = 0.95) -> Interval:
    """Mean of scores (images) with its interval."""
    scores = np.asarray(scores, dtype=np.float64)
    counts = resample_counts(len(scores)) if counts is None else counts
    return interval(float(mean_defined(scores)), resampled_means(scores, counts), level)


def difference_interval(ours: ArrayLike, theirs: ArrayLike, counts: Array | None = None) -> Interval:
    """Mean of ours - theirs, image by image (paired), with its interval."""
    return mean_interval(np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64), counts)


@dataclass(frozen=True)
class PairedTest:
    """A two-sided test of whether paired scores differ."""

    difference: float
    """mean of ours - theirs"""
    statistic: float
    """of the test; NaN where it could not be run"""
    p: float
    """two-sided; 1 where every pair is equal, NaN with fewer than two pairs"""
    pairs: int
    """images on which both scores are defined"""


def paired_test(ours: ArrayLike, theirs: ArrayLike, method: str = "wilcoxon", seed: int = 0) -> PairedTest:
    """Compares scores of the same images: wilcoxon (signed ranks), t, or permutation (sign flips).

    Raises ValueError for an unknown method or arrays of different length."""
    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if ours.shape != theirs.shape or ours.ndim != 1:
        raise ValueError(f"paired scores must be two lists of one length, not {ours.shape} and {theirs.shape}")
    if method not in _TESTS:
        raise ValueError(f"paired test {method!r} is none of {', '.join(_TESTS)}")
    gaps = ours - theirs
    gaps = gaps[~np.isnan(gaps)]
    mean = float(mean_defined(gaps))
    if len(gaps) < 2:
        return PairedTest(mean, np.nan, np.nan, len(gaps))
    if np.ptp(gaps) == 0:
        return PairedTest(mean, np.nan, 1.0 if mean == 0 else _sign_p(len(gaps)), len(gaps))
    statistic, p = _TESTS[method](gaps, seed)
    return PairedTest(mean, float(statistic), float(p), len(gaps))


def _sign_p(pairs: int) -> float:
    """Two-sided p of all pairs differing the same way, by sign flips."""
    return 2.0 ** (1 - pairs)


def _wilcoxon(gaps: Array, _seed: int) -> tuple[float, float]:
    found = stats.wilcoxon(gaps)
    return found.statistic, found.pvalue


def _student(gaps: Array, _seed: int) -> tuple[float, float]:
    found = stats.ttest_1samp(gaps, 0.0)
    return found.statistic, found.pvalue


def _flips(gaps: Array, seed: int, flips: int = 9999) -> tuple[float, float]:
    """Share of random sign patterns whose mean is at least as far from zero, the observed one counted."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(flips, len(gaps)))
    observed = abs(gaps.mean())
    extreme = np.abs(signs @ gaps / len(gaps)) >= observed * (1 - 1e-12)
    return gaps.mean(), (extreme.sum() + 1) / (flips + 1)


_TESTS: dict[str, Callable[[Array, int], tuple[float, float]]] = {
    "wilcoxon": _wilcoxon,
    "t": _student,
    "permutation": _flips,
}


def above_zero(gaps: ArrayLike) -> Array:
    """One-sided t-test p (...) that the mean of gaps (..., images) is above zero, undefined ones left out.

    NaN with fewer than two images; where all gaps are equal, 0 if they are above zero and else 1."""
    gaps = np.asarray(gaps, dtype=np.float64)
    count, mean = (~np.isnan(gaps)).sum(-1), mean_defined(gaps)
    squares = np.where(np.isnan(gaps), 0.0, np.square(gaps - mean[..., None])).sum(-1)
    error = np.sqrt(squares / np.maximum(count - 1, 1) / np.maximum(count, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.where(error > 0, stats.t.sf(mean / error, np.maximum(count - 1, 1)), np.where(mean > 0, 0.0, 1.0))
    return np.where(count > 1, p, np.nan)


def holm(p: ArrayLike) -> Array:
    """Holm's adjusted p values (family-wise error), any shape; NaN entries are no comparisons and stay NaN."""
    return _adjusted(p, lambda ordered: np.maximum.accumulate(ordered * np.arange(len(ordered), 0, -1)))


def benjamini_hochberg(p: ArrayLike) -> Array:
    """Benjamini and Hochberg's adjusted p values (false discovery rate), any shape; NaN stays NaN."""

    def adjust(ordered: Array) -> Array:
        count = len(ordered)
        return np.minimum.accumulate((ordered * count / np.arange(1, count + 1))[::-1])[::-1]

    return _adjusted(p, adjust)


def _adjusted(p: ArrayLike, adjust: Callable[[Array], Array]) -> Array:
    """Applies `adjust` to the defined p values in ascending order."""
    p = np.asarray(p, dtype=np.float64)
    flat = p.ravel()
    known = np.flatnonzero(~np.isnan(flat))
    if np.any((flat[known] < 0) | (flat[known] > 1)):
        raise ValueError("p values must lie between 0 and 1")
    order = known[np.argsort(flat[known], kind="stable")]
    found = np.full(flat.shape, np.nan)
    found[order] = np.minimum(adjust(flat[order]), 1.0)
    return found.reshape(p.shape)


@dataclass(frozen=True)
class Emergence:
    """The first step at which a score has made most of its way from the floor to its last value."""

    step: int | None
    """first step that reaches the share; None where the last step is no better than the floor"""
    low: float
    """lower end of the step's bootstrap interval"""
    high: float
    """upper end"""
    progress: tuple[float, ...]
    """(s_t - floor) / (s_last - floor) of every step"""
    defined: float
    """share of resamples in which the last step beats the floor"""


def emergence(
    scores: ArrayLike,
    floor: ArrayLike,
    steps: Sequence[int],
    higher_is_better: bool = True,
    share: float = 0.95,
    counts: Array | None = None,
) -> Emergence:
    """Emergence step of scores (steps, images) in order of steps, with an interval over images.

    floor: (images) what is reached without activations on the same images, or one number. Resamples whose last
    step does not beat the floor have no emergence step and are left out of the interval; see `defined`."""
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or len(scores) != len(steps):
        raise ValueError(f"scores must be (steps, images) for {len(steps)} steps, not {scores.shape}")
    counts = resample_counts(scores.shape[1]) if counts is None else counts
    base = np.broadcast_to(np.asarray(floor, dtype=np.float64), scores.shape[1:])
    means, lowest = resampled_means(scores, counts), resampled_means(base, counts)
    draws, _ = _first_steps(means, lowest, steps, higher_is_better, share)
    found, progress = _first_steps(
        mean_defined(scores)[:, None], np.atleast_1d(mean_defined(base)), steps, higher_is_better, share
    )
    ends = interval(found[0], draws)
    step = None if np.isnan(found[0]) else int(found[0])
    return Emergence(step, ends.low, ends.high, tuple(progress[:, 0].tolist()), float(np.mean(~np.isnan(draws))))


def _first_steps(
    means: Array, floor: Array, steps: Sequence[int], higher_is_better: bool, share: float
) -> tuple[Array, Array]:
    """First step (draws) to reach the share, NaN where the last is no better; progress (steps, draws)."""
    gain = means - floor
    last = gain[-1]
    better = last > 0 if higher_is_better else last < 0
    progress = np.divide(gain, last, out=np.full_like(gain, np.nan), where=better)
    first = np.argmax(progress >= share, axis=0)
    return np.where(better, np.asarray(steps, dtype=np.float64)[first], np.nan), progress


@dataclass(frozen=True)
class Selectivity:
    """By how much a probe beats the best of its controls, positive when it does."""

    control: str
    """the best control on all images"""
    gain: Interval
    """probe minus control (turned round for errors); every resample takes its own best control"""


def selectivity(
    task: ArrayLike, controls: Mapping[str, ArrayLike], higher_is_better: bool = True, counts: Array | None = None
) -> Selectivity:
    """Selectivity of scores (images) over controls {name: (images)}, such as position, other_image and floor."""
    if not controls:
        raise ValueError("selectivity needs at least one control")
    sign = 1.0 if higher_is_better else -1.0
    ours = sign * np.asarray(task, dtype=np.float64)
    names = list(controls)
    theirs = sign * np.stack([np.asarray(controls[name], dtype=np.float64) for name in names])
    counts = resample_counts(len(ours)) if counts is None else counts
    level = mean_defined(theirs)
    if np.isnan(level).all():
        return Selectivity(names[0], Interval(np.nan, np.nan, np.nan))
    best = int(np.nanargmax(level))
    draws = resampled_means(ours, counts) - np.fmax.reduce(resampled_means(theirs, counts), axis=0)
    return Selectivity(names[best], interval(float(mean_defined(ours)) - level[best], draws))
