"""Summaries of scores: curves, best sites, gains, emergence steps, and the results of interventions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from scipy import stats

from interventions.config import DIRECTIONS
from interventions.controls import LATE_STEPS, NULLS, SHUFFLED_PROBE
from interventions.summary import Effect, Series, series_of, summarise
from probing import statistics
from probing.diffusion.variants import OTHER_SEED, is_plain
from probing.statistics import Interval
from sweeps.analysis.scores import MEASURES, Measure, Scores
from sweeps.analysis.tables import RunData
from sweeps.config.schema import GRID

NAN_INTERVAL = Interval(np.nan, np.nan, np.nan)
SHARE = 0.95
"""share of the rise from the floor to the last score that counts as having emerged"""
CLEARLY = 0.975
"""share of resamples in which a score must beat its floor to be reported as above it"""
FALSE_DISCOVERIES = 0.05
"""accepted false discovery rate among the cells of a heatmap that are shown as above the floor"""
MAIN_EDITS = "interventions"
"""experiment of the main edits"""
CONTROL_ORDER = ("edit", "none", *NULLS, SHUFFLED_PROBE, LATE_STEPS)


def curve(scores: Scores, variant: str, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the sites of a part by step, with interval bounds: three float64 (T,)."""
    bands = [mean_of(scores, step) for step in scores.part(variant, part)]
    mean, low, high = np.array([[b.estimate, b.low, b.high] for b in bands]).T
    return mean, low, high


def mean_of(scores: Scores, values: np.ndarray) -> Interval:
    """Mean of per-image values (N,) with its interval; NaN bounds if the scores are not per image."""
    if scores.per_image:
        return statistics.mean_interval(values, scores.counts)
    return Interval(float(statistics.mean_defined(values)), np.nan, np.nan)


def final(scores: Scores, variant: str, part: str) -> Interval:
    """Last-step score, mean over the sites of a part."""
    return mean_of(scores, scores.part(variant, part)[-1])


def gap(scores: Scores, part: str, other: str) -> Interval:
    """How much better the trained network scores than `other` at the last step, image by image; positive is better."""
    values, other_values = (scores.part(v, part)[-1] for v in ("trained", other))
    return mean_of(scores, scores.measure.sign * (values - other_values))


@dataclass(frozen=True)
class Rise:
    """When a part of a network has most of its final score."""

    step: Interval
    """earliest step with 95 % of the way from the floor to the last step's score; NaN unless that beats the floor"""
    change: Interval
    """how much better the last step is than the first; above zero if the score rises at all"""

    @property
    def found(self) -> bool:
        """Whether the score rises, clearly, and ends above the floor: only then is a share of the rise a number."""
        low = self.change.low if np.isfinite(self.change.low) else self.change.estimate
        return bool(np.isfinite(self.step.estimate) and low > 0)

    @property
    def reason(self) -> str:
        """Why there is no step, in a few words; empty if there is one."""
        if self.found:
            return ""
        return "no rise" if np.isfinite(self.step.estimate) else "not above the floor"


def emergence(scores: Scores, variant: str, part: str) -> Rise:
    """When the mean over the sites of a part has 95 % of its rise.

    The last step has to beat the floor in at least 97.5 % of the resamples.
    """
    values = scores.part(variant, part)
    floor = np.mean(scores.floor_values[scores.site_indices(part)], axis=0)
    change = mean_of(scores, scores.measure.sign * (values[-1] - values[0]))
    result = statistics.emergence(
        values, floor, scores.steps, higher_is_better=scores.measure.higher, share=SHARE, counts=scores.counts
    )
    if result.step is None or (scores.per_image and result.defined < CLEARLY):
        return Rise(NAN_INTERVAL, change)
    ends = (result.low, result.high) if scores.per_image else (np.nan, np.nan)
    return Rise(Interval(float(result.step), *ends), change)


def not_above(scores: Scores, variant: str) -> np.ndarray:
    """Bool (S, T): heatmap cells not shown to beat the floor and, for the trained network, every other network.

    One-sided t-tests over test images; a cell's p is the largest of its comparisons. False discovery rate over the
    cells by Benjamini and Hochberg (1995).
    """
    sign, values = scores.measure.sign, scores.values[scores.variant_index(variant)]
    if not scores.per_image:
        return np.zeros(values.shape[:2], bool)
    p = statistics.above_zero(sign * (values - scores.floor_values[:, None, :]))
    for other in other_variants(scores) if variant == "trained" else ():
        p = np.fmax(p, statistics.above_zero(sign * (values - scores.values[scores.variant_index(other)])))
    weak, defined = np.zeros(p.shape, bool), ~np.isnan(p)
    weak[defined] = stats.false_discovery_control(p[defined]) > FALSE_DISCOVERIES
    return weak


def best_site(scores: Scores, part: str = "all", variant: str = "trained") -> int | None:
    """Index of the site with the best *validation* score at the last step; None if there is no criterion.

    In a run without validation images, the site with the lowest training loss. Never by a test score.
    """
    sites = scores.site_indices(part)
    quality = scores.quality[scores.variant_index(variant), sites, -1]
    if not np.isfinite(quality).any():
        return None
    return sites[int(np.nanargmax(quality))]


def shares(scores: Scores) -> np.ndarray:
    """float64 (S, T): the trained network's mean score as a share of the way from the floor to the grid oracle."""
    whole = (scores.oracle_means - scores.floor)[:, None]
    gain = scores.means[scores.variant_index("trained")] - scores.floor[:, None]
    return np.divide(gain, whole, out=np.full_like(gain, np.nan), where=np.abs(whole) > 1e-9)


def final_share(scores: Scores, site: int) -> Interval:
    """The last step's share of the way from floor to grid oracle at a site, with its interval over images."""
    estimate = float(shares(scores)[site, -1])
    if not scores.per_image:
        return Interval(estimate, np.nan, np.nan)
    last = scores.values[scores.variant_index("trained"), site, -1]
    score, floor, oracle = (
        statistics.resampled_means(values, scores.counts)
        for values in (last, scores.floor_values[site], scores.oracle[site])
    )
    whole = oracle - floor
    draws = np.divide(score - floor, whole, out=np.full_like(whole, np.nan), where=np.abs(whole) > 1e-9)
    return statistics.interval(estimate, draws)


def best_group(scores: Scores) -> list[int]:
    """The best site, then all sites that are not clearly worse at the last step, image by image; best first.

    Empty if no site can be chosen.
    """
    best = best_site(scores)
    if best is None or not scores.per_image:
        return [] if best is None else [best]
    last = scores.values[scores.variant_index("trained"), :, -1]
    gaps = [statistics.mean_interval(scores.measure.sign * (last[best] - own), scores.counts) for own in last]
    tied = [i for i, gap in enumerate(gaps) if i != best and gap.low <= 0]
    return [best, *sorted(tied, key=lambda i: gaps[i].estimate)]


def chosen_on(scores: Scores) -> str:
    """How sites are chosen, as the end of a sentence."""
    return "on validation images" if scores.validated else "by training loss, because there are no validation images"


def other_variants(scores: Scores) -> tuple[str, ...]:
    """Variants that the trained network is compared with; of several seeds only the one of the settings."""
    others = (v for v in scores.variants if v != "trained" and is_plain(v))
    return tuple(v for v in others if np.isfinite(scores.means[scores.variant_index(v)]).any())


def randomised(scores: Scores) -> tuple[str, ...]:
    """Those of `other_variants` that are networks with other weights."""
    return tuple(v for v in other_variants(scores) if v != OTHER_SEED)


@dataclass(frozen=True)
class Edits:
    """Results of one kind of edit, or of one control, with the scores of its trials."""

    effect: Effect
    measure: Measure
    before: np.ndarray
    """float64 (trials,): score against the target label without the edit"""
    after: np.ndarray
    """float64 (trials,): score with the edit"""

    @property
    def main(self) -> bool:
        """Whether it belongs to the main experiment rather than to an ablation."""
        return self.effect.series.experiment == MAIN_EDITS


def interventions(run: RunData) -> list[Edits]:
    """Finished interventions: saliency first, main series first, the paper's direction first; controls follow edits."""
    table, measures = run.table("interventions"), {m.task: m for m in MEASURES}
    if table is None:
        return []
    rows = [r for r in table.to_pylist() if r["status"] == "done" and r["task"] in measures]
    trials: dict[tuple[str, Series], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        trials[row["control"], series_of(row)].append((row["score_before"], row["score_after"]))
    edits = []
    for effect in summarise(rows):
        before, after = np.array(trials[effect.control, effect.series], float).T
        edits.append(Edits(effect, measures[effect.series.task], before, after))
    return sorted(edits, key=_edit_order)


def _edit_order(edit: Edits) -> tuple[bool, bool, int, Series, int, str]:
    control, series = edit.effect.control, edit.effect.series
    rank = CONTROL_ORDER.index(control) if control in CONTROL_ORDER else len(CONTROL_ORDER)
    direction = DIRECTIONS.index(series.direction)
    return (edit.measure.task != "saliency", not edit.main, direction, series, rank, control)


def controls(run: RunData) -> Sequence[str]:
    """Probe controls that have rows in the main grid."""
    probes = run.table("probes")
    if probes is None:
        return ()
    grid = probes.filter(pc.equal(probes["experiment"], GRID))
    return sorted(c for c in pc.unique(grid["control"]).to_pylist() if c not in (None, "none"))


def experiments(run: RunData) -> Sequence[str]:
    """Experiments beside the main grid that have probe rows."""
    probes = run.table("probes")
    if probes is None:
        return ()
    names = pc.unique(probes["experiment"]).to_pylist()
    return sorted(name for name in names if name not in (None, GRID))
