"""Intervals and tests over images: joint bootstrap, paired tests, multiple comparisons, emergence, selectivity.

Scores are arrays whose last axis is the test images, NaN if a score is undefined. Undefined scores are left out of
every mean; the mean of no score is NaN and is left out of other means. Imports numpy and scipy alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]
RESAMPLES = 2000
"""default number of bootstrap resamples"""
TAIL = (1 - 0.95) / 2
"""share of resamples outside each end of an interval"""


@dataclass(frozen=True)
class Interval:
    """An estimate with a percentile bootstrap interval."""

    estimate: float
    """value on all images"""
    low: float
    """lower end"""
    high: float
    """upper end"""


def resample_counts(images: int, resamples: int = RESAMPLES, seed: int = 0, groups: ArrayLike | None = None) -> Array:
    """Number of times that every image occurs in every resample: (resamples, images).

    groups: (images) labels, such as captions; images of one group are drawn together. Use the same counts for
    every site, step and control that is compared, so that all have the same resampled images (paired, joint).
    Raises ValueError if there are no images or resamples, or not one group label per image."""
    if images < 1 or resamples < 1:
        raise ValueError(f"bootstrap needs images and resamples, not {images} and {resamples}")
    labels = np.arange(images) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    if len(labels) != images:
        raise ValueError(f"{len(labels)} group labels for {images} images")
    size = int(labels.max()) + 1
    rng, chances = np.random.default_rng(seed), np.full(size, 1 / size)
    counts = np.empty((resamples, images))
    for start in range(0, resamples, 100):  # in blocks, since the draws of all images are whole numbers of 64 bits
        block = counts[start : start + 100]
        block[:] = rng.multinomial(size, chances, size=len(block))[:, labels]
    return counts


def mean_defined(scores: ArrayLike) -> Array:
    """Mean over the last axis without undefined scores; NaN if none is defined."""
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


def interval(estimate: float, draws: ArrayLike) -> Interval:
    """95 % percentile interval of the defined draws; its ends are NaN if there are none."""
    known = np.asarray(draws, dtype=np.float64)
    known = known[~np.isnan(known)]
    low, high = np.quantile(known, [TAIL, 1 - TAIL]) if len(known) else (np.nan, np.nan)
    return Interval(float(estimate), float(low), float(high))


def mean_interval(scores: ArrayLike, counts: Array | None = None) -> Interval:
    """Mean of scores (images) with its interval."""
    scores = np.asarray(scores, dtype=np.float64)
    counts = resample_counts(len(scores)) if counts is None else counts
    return interval(float(mean_defined(scores)), resampled_means(scores, counts))


def difference_interval(scores: ArrayLike, baseline: ArrayLike, counts: Array | None = None) -> Interval:
    """Mean of scores - baseline, image by image (paired), with its interval."""
    return mean_interval(np.asarray(scores, dtype=np.float64) - np.asarray(baseline, dtype=np.float64), counts)


@dataclass(frozen=True)
class PairedTest:
    """A two-sided test of whether paired scores differ."""

    difference: float
    """mean of scores - baseline"""
    p: float
    """two-sided; 1 if every pair is equal, NaN with fewer than two pairs"""
    pairs: int
    """images on which both scores are defined"""


def paired_test(scores: ArrayLike, baseline: ArrayLike, method: str = "wilcoxon") -> PairedTest:
    """Compare scores of the same images by Wilcoxon's signed ranks (wilcoxon) or Student's t test (t).

    Raises ValueError if the method is unknown or the arrays differ in length."""
    scores, baseline = np.asarray(scores, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if scores.shape != baseline.shape or scores.ndim != 1:
        raise ValueError(f"paired scores must be two lists of one length, not {scores.shape} and {baseline.shape}")
    if method not in ("wilcoxon", "t"):
        raise ValueError(f"paired test {method!r} must be wilcoxon or t")
    gaps = scores - baseline
    gaps = gaps[~np.isnan(gaps)]
    mean = float(mean_defined(gaps))
    if len(gaps) < 2:
        return PairedTest(mean, np.nan, len(gaps))
    if np.ptp(gaps) == 0:
        # neither test is defined without variance; a sign test of all pairs differing the same way has this p
        return PairedTest(mean, 1.0 if mean == 0 else 2.0 ** (1 - len(gaps)), len(gaps))
    result = stats.wilcoxon(gaps) if method == "wilcoxon" else stats.ttest_1samp(gaps, 0.0)
    return PairedTest(mean, float(result.pvalue), len(gaps))


def least_p(pairs: int, comparisons: int = 1) -> float:
    """The smallest p that Wilcoxon's two-sided signed-rank test of `pairs` can give, after Holm's correction.

    It is reached if all pairs differ in one direction, 2 / 2^pairs, times the number of comparisons."""
    return min(1.0, comparisons * 2.0 ** (1 - pairs)) if pairs > 1 else 1.0


def above_zero(gaps: ArrayLike) -> Array:
    """One-sided t-test p (...) that the mean of gaps (..., images) is above zero, undefined ones left out.

    NaN with fewer than two images; if all gaps are equal, 0 if they are above zero and else 1."""
    gaps = np.asarray(gaps, dtype=np.float64)
    count, mean = (~np.isnan(gaps)).sum(-1), mean_defined(gaps)
    squares = np.where(np.isnan(gaps), 0.0, np.square(gaps - mean[..., None])).sum(-1)
    error = np.sqrt(squares / np.maximum(count - 1, 1) / np.maximum(count, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.where(error > 0, stats.t.sf(mean / error, np.maximum(count - 1, 1)), np.where(mean > 0, 0.0, 1.0))
    return np.where(count > 1, p, np.nan)


def holm(p: ArrayLike) -> Array:
    """Holm's adjusted p values (family-wise error), any shape; NaN entries are no comparisons and stay NaN.

    Raises ValueError if a value is not between 0 and 1."""
    p = np.asarray(p, dtype=np.float64)
    if np.any((p < 0) | (p > 1)):
        raise ValueError("p values must lie between 0 and 1")
    adjusted, defined = np.full(p.shape, np.nan), ~np.isnan(p)
    order = np.argsort(p[defined], kind="stable")
    stepped = np.maximum.accumulate(p[defined][order] * np.arange(len(order), 0, -1))
    adjusted[defined] = np.minimum(stepped, 1.0)[np.argsort(order)]
    return adjusted


@dataclass(frozen=True)
class Emergence:
    """The first step at which a score has covered most of the distance from the floor to its last value."""

    step: int | None
    """first step that reaches the share; None if the last step is no better than the floor"""
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

    floor: (images) scores without activations on the same images, or one number. Resamples whose last step does not
    beat the floor have no emergence step and are left out of the interval; see `defined`.
    Raises ValueError if scores have another number of steps."""
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or len(scores) != len(steps):
        raise ValueError(f"scores must be (steps, images) for {len(steps)} steps, not {scores.shape}")
    counts = resample_counts(scores.shape[1]) if counts is None else counts
    base = np.broadcast_to(np.asarray(floor, dtype=np.float64), scores.shape[1:])
    means, lowest = resampled_means(scores, counts), resampled_means(base, counts)
    draws, _ = _first_steps(means, lowest, steps, higher_is_better, share)
    first, progress = _first_steps(
        mean_defined(scores)[:, None], np.atleast_1d(mean_defined(base)), steps, higher_is_better, share
    )
    ends = interval(first[0], draws)
    step = None if np.isnan(first[0]) else int(first[0])
    return Emergence(step, ends.low, ends.high, tuple(progress[:, 0].tolist()), float(np.mean(~np.isnan(draws))))


def _first_steps(
    means: Array, floor: Array, steps: Sequence[int], higher_is_better: bool, share: float
) -> tuple[Array, Array]:
    """First step (draws) to reach the share, NaN if the last is no better; progress (steps, draws)."""
    gain = means - floor
    last = gain[-1]
    better = last > 0 if higher_is_better else last < 0
    progress = np.divide(gain, last, out=np.full_like(gain, np.nan), where=better)
    first = np.argmax(progress >= share, axis=0)
    return np.where(better, np.asarray(steps, dtype=np.float64)[first], np.nan), progress


@dataclass(frozen=True)
class Selectivity:
    """By how much a probe beats the best of its controls; positive if it does."""

    control: str
    """the best control on all images"""
    gain: Interval
    """probe minus control (control minus probe for errors); every resample has its own best control"""


def selectivity(
    scores: ArrayLike, controls: Mapping[str, ArrayLike], higher_is_better: bool = True, counts: Array | None = None
) -> Selectivity:
    """Selectivity of scores (images) over controls {name: (images)}, such as position, other_image and floor.

    Raises ValueError if there are no controls."""
    if not controls:
        raise ValueError("selectivity needs at least one control")
    sign = 1.0 if higher_is_better else -1.0
    signed = sign * np.asarray(scores, dtype=np.float64)
    names = list(controls)
    signed_controls = sign * np.stack([np.asarray(controls[name], dtype=np.float64) for name in names])
    counts = resample_counts(len(signed)) if counts is None else counts
    level = mean_defined(signed_controls)
    if np.isnan(level).all():
        return Selectivity(names[0], Interval(np.nan, np.nan, np.nan))
    best = int(np.nanargmax(level))
    draws = resampled_means(signed, counts) - np.fmax.reduce(resampled_means(signed_controls, counts), axis=0)
    return Selectivity(names[best], interval(float(mean_defined(signed)) - level[best], draws))
