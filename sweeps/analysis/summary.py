"""What the scores say: curves, best sites, gaps, emergence, interventions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from interventions.summary import Effect, Series, summarise
from probing import statistics
from probing.diffusion.variants import OTHER_SEED, is_plain
from probing.statistics import Interval
from sweeps.analysis.scores import MEASURES, Measure, Scores
from sweeps.analysis.tables import RunData

SHARE = 0.95
"""part of the rise from floor to last score that counts as having emerged"""
CLEARLY = 0.975
"""share of resamples in which a score must beat its floor to be said to do so"""
MAIN_EDITS = "interventions"
"""experiment of the main edits"""
_MEASURES = {m.task: m for m in MEASURES}
CONTROL_ORDER = ("edit", "none", "random_direction", "random_probe", "shuffled_probe", "late_steps")


def curve(scores: Scores, variant: str, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the sites of a part by step, with interval bounds: three float64 (T,)."""
    found = [mean_of(scores, step) for step in scores.part(variant, part)]
    mean, low, high = np.array([[i.estimate, i.low, i.high] for i in found]).T
    return mean, low, high


def mean_of(scores: Scores, values: np.ndarray) -> Interval:
    """Mean of per-image values (N,) with its interval; without images no interval."""
    if scores.per_image:
        return statistics.mean_interval(values, scores.counts)
    return Interval(float(statistics.mean_defined(values)), np.nan, np.nan)


def final(scores: Scores, variant: str, part: str) -> Interval:
    """Last-step score, mean over the sites of a part."""
    return mean_of(scores, scores.part(variant, part)[-1])


def gap(scores: Scores, part: str, other: str, variant: str = "trained") -> Interval:
    """How much better `variant` scores than `other` at the last step; positive is better."""
    ours, theirs = (scores.part(v, part)[-1] for v in (variant, other))
    return mean_of(scores, scores.measure.sign * (ours - theirs))


def emergence(scores: Scores, variant: str, part: str) -> Interval:
    """Earliest step with 95 % of the way from the floor to the last step's score.

    NaN where the last step does not clearly beat the floor, in 97.5 % of the resamples.
    """
    floor = float(np.mean(scores.floor[scores.which(part)]))
    found = statistics.emergence(
        scores.part(variant, part),
        floor,
        scores.steps,
        higher_is_better=scores.measure.higher,
        share=SHARE,
        counts=scores.counts,
    )
    if found.step is None or (scores.per_image and found.defined < CLEARLY):
        return Interval(np.nan, np.nan, np.nan)
    ends = (found.low, found.high) if scores.per_image else (np.nan, np.nan)
    return Interval(float(found.step), *ends)


FALSE_DISCOVERIES = 0.05
"""share of wrong ones accepted among the cells of a heatmap that are said to beat the floor"""


def not_above(scores: Scores, variant: str) -> np.ndarray:
    """Bool (S, T): cells not shown to beat the floor and, of the trained network, every other network.

    By one-sided t-tests over test images, the largest p of a cell, and Benjamini and Hochberg over the cells."""
    sign, ours = scores.measure.sign, scores.values[scores.at(variant)]
    if not scores.per_image:
        return np.zeros(ours.shape[:2], bool)
    p = statistics.above_zero(sign * (ours - scores.floor[:, None, None]))
    for other in contrasts(scores) if variant == "trained" else ():
        p = np.fmax(p, statistics.above_zero(sign * (ours - scores.values[scores.at(other)])))
    return statistics.benjamini_hochberg(p) > FALSE_DISCOVERIES


def best_site(scores: Scores, part: str = "all", variant: str = "trained") -> int | None:
    """Index of the site with the best *validation* score at the last step, of a run without such images with
    the lowest training loss; never by a test score."""
    sites = scores.which(part)
    quality = scores.quality[scores.at(variant), sites, -1]
    if not np.isfinite(quality).any():
        return None
    return sites[int(np.nanargmax(quality))]


def chosen_on(scores: Scores) -> str:
    """How sites are chosen, in words."""
    return "on validation images" if scores.validated else "by training loss, for want of validation images"


def contrasts(scores: Scores) -> tuple[str, ...]:
    """Variants that the trained network is compared with; of a kind with several seeds the one of the settings."""
    return tuple(v for v in scores.variants if v != "trained" and is_plain(v) and _present(scores, v))


def randomised(scores: Scores) -> tuple[str, ...]:
    """Of these the networks that are not trained."""
    return tuple(v for v in contrasts(scores) if v != OTHER_SEED)


def _present(scores: Scores, variant: str) -> bool:
    return bool(np.isfinite(scores.means[scores.at(variant)]).any())


@dataclass(frozen=True)
class Edits:
    """What one kind of edit, or one control of it, did; with the scores of its trials."""

    effect: Effect
    measure: Measure
    before: np.ndarray
    """float64 (trials,)"""
    after: np.ndarray
    """float64 (trials,)"""

    @property
    def main(self) -> bool:
        """Whether it belongs to the main experiment rather than to an ablation."""
        return self.effect.series.experiment == MAIN_EDITS


def interventions(run: RunData) -> list[Edits]:
    """Finished interventions: saliency first, the main series first, each with its controls."""
    table = run.table("interventions")
    if table is None:
        return []
    rows = [r for r in table.to_pylist() if r["status"] == "done" and r["task"] in _MEASURES]
    names = ("control", *Series.__dataclass_fields__)
    trials: dict[tuple, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        trials[tuple(row[n] for n in names)].append((row["score_before"], row["score_after"]))
    found = []
    for effect in summarise(rows):
        key = (effect.control, *(getattr(effect.series, n) for n in names[1:]))
        before, after = np.array(trials[key], float).T
        found.append(Edits(effect, _MEASURES[effect.series.task], before, after))
    return sorted(found, key=_edit_order)


def _edit_order(edit: Edits) -> tuple:
    control = edit.effect.control
    known = control in CONTROL_ORDER
    place = CONTROL_ORDER.index(control) if known else len(CONTROL_ORDER)
    return (edit.measure.task != "saliency", not edit.main, edit.effect.series, place, control)


def controls(run: RunData) -> Sequence[str]:
    """Probe controls that have rows in the main grid."""
    probes = run.table("probes")
    if probes is None:
        return ()
    main = probes.filter(pc.equal(probes["experiment"], run.experiment))
    return sorted(c for c in pc.unique(main["control"]).to_pylist() if c not in (None, "none"))


def experiments(run: RunData) -> Sequence[str]:
    """Experiments besides the main grid that have probe rows."""
    probes = run.table("probes")
    if probes is None:
        return ()
    names = pc.unique(probes["experiment"]).to_pylist()
    return sorted(name for name in names if name not in (None, run.experiment))
