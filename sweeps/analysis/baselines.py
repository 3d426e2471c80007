"""Baselines of the trained network: other networks, probes of inputs that need no network, and the floor.

The headline is the trained network minus its best baseline. Networks and probes are chosen in the same way as sites: on
validation images, or by training loss if a run has none. The floor is known on test images alone; it is the baseline if
its score there is better than that of the chosen one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from probing import statistics
from probing.statistics import Interval
from sweeps.analysis import summary
from sweeps.analysis.scores import Scores
from sweeps.analysis.vocabulary import baseline_noun

NAMED = ("surface", "surface_rgb", "random_forced", "position")
"""baselines that every headline should be compared with; a run may lack some"""
CONTROLS = ("surface", "surface_point", "surface_rgb", "position")
"""probe controls that are baselines: they read no activations"""
FLOOR = "floor"
"""name of the baseline that is the best answer without activations"""
FIT_ALL = "scenesweep run scenes --all"
"""the command that fits every baseline, for the embedded model"""
SIGNIFICANCE = 0.05
"""largest p, after correction, of a difference that counts"""
PREREGISTERED = tuple(
    (task, baseline)
    for task in ("saliency", "depth")
    for baseline in ("vae", "random", "surface", "random_forced", "position")
)
"""(task, baseline) of the ten pre-registered contrasts, decoder mean (or mean over all sites) at the last step"""


def clearly_better(gain: Interval, p: float) -> bool:
    """The one test of all claims and verdicts: the interval of the gain is above zero, and so says the paired test."""
    return bool(gain.low > 0 and p <= SIGNIFICANCE)


@dataclass(frozen=True)
class Baseline:
    """One set of scores that the trained network's probes are compared with."""

    name: str
    """of a variant or of a probe control, or FLOOR"""
    scores: Scores
    variant: str
    """whose rows of `scores` are the baseline's"""

    def final(self, part: str) -> np.ndarray:
        """float64 (N,): last-step score of each image, mean over the sites of a part."""
        return self.scores.part(self.variant, part)[-1]

    def noun(self, part: str) -> str:
        """Its name in a sentence; of the floor, the answer that is best at the sites of a part."""
        noun = baseline_noun(self.name)
        return f"{noun} ({self.scores.floor_word(part)})" if self.name == FLOOR else noun

    def quality(self, part: str) -> float:
        """Criterion by which baselines are chosen, larger is better: mean over the sites of a part, last step."""
        return float(
            np.mean(self.scores.quality[self.scores.variant_index(self.variant), self.scores.site_indices(part), -1])
        )


def floor_baseline(scores: Scores) -> Baseline:
    """The best answer without activations as a baseline; it has no validation score."""
    shape = (1, *scores.values.shape[1:])
    values = np.broadcast_to(scores.floor_values[None, :, None, :], shape)
    unknown = np.full(shape[:3], np.nan)
    return Baseline(
        FLOOR, replace(scores, variants=("trained",), values=values, val=unknown, train_loss=unknown), "trained"
    )


def baselines(scores: Scores, controls: Mapping[str, Scores], part: str = "decoder") -> list[Baseline]:
    """Baselines that have a score at every site of a part; `controls`: scores by name of fitted control."""

    def comparable(other: Scores) -> bool:
        same = scores.sites == other.sites and scores.steps[-1] == other.steps[-1]
        return same and "trained" in other.variants and np.array_equal(scores.samples, other.samples)

    candidates = [Baseline(v, scores, v) for v in summary.other_variants(scores)]
    candidates += [Baseline(c, controls[c], "trained") for c in CONTROLS if c in controls and comparable(controls[c])]
    candidates.append(floor_baseline(scores))
    sites = scores.site_indices(part)
    return [b for b in candidates if sites and np.isfinite(statistics.mean_defined(b.final(part)))]


@dataclass(frozen=True)
class Headline:
    """The trained network minus its best baseline at the last step, mean over the decoder or over all sites."""

    baseline: Baseline
    gain: Interval
    """above 0 if the trained network is better"""
    trained_score: float
    baseline_score: float
    missing: tuple[str, ...]
    """expected baselines that the run does not have"""


def headline(scores: Scores, controls: Mapping[str, Scores]) -> Headline | None:
    """The contrast that the report leads with; None if the run has no baseline."""
    part = scores.lead_part
    available = baselines(scores, controls, part)
    if not available:
        return None
    best = max(available, key=lambda b: np.nan_to_num(b.quality(part), nan=-np.inf))

    def mean(values: np.ndarray) -> float:
        return float(statistics.mean_defined(values))

    for floor in (b for b in available if b.name == FLOOR):
        if scores.measure.sign * (mean(floor.final(part)) - mean(best.final(part))) > 0:
            best = floor
    missing = tuple(name for name in NAMED if name not in {b.name for b in available})
    trained = mean(scores.part("trained", part)[-1])
    return Headline(best, gap(scores, best, part), trained, mean(best.final(part)), missing)


def gap(scores: Scores, baseline: Baseline, part: str) -> Interval:
    """How much better the trained network is at the last step, image by image; positive is better."""
    trained = scores.part("trained", part)[-1]
    return summary.mean_of(scores, scores.measure.sign * (trained - baseline.final(part)))


def site_tests(scores: Scores, baseline: Baseline) -> np.ndarray:
    """float64 (S,): Wilcoxon signed-rank p of trained against a baseline at each site's last step, Holm-corrected."""
    pairs = [(scores.part("trained", s.name)[-1], baseline.final(s.name)) for s in scores.sites]
    return statistics.holm([statistics.paired_test(*pair).p for pair in pairs])


@dataclass(frozen=True)
class Contrast:
    """One pre-registered contrast; all numbers are NaN if the run does not have the baseline."""

    task: str
    baseline: str
    gain: Interval
    p: float
    """two-sided Wilcoxon signed-rank test over test images"""
    holm: float
    """Holm-corrected over the contrasts that the run has"""


def preregistered(
    scores: Mapping[str, Scores], controls: Mapping[str, Mapping[str, Scores]], vae: Mapping[str, Scores]
) -> list[Contrast]:
    """The ten pre-registered contrasts; `controls`: scores by control and task, `vae`: the VAE's scores by task."""
    gains, p = [], []
    for task, name in PREREGISTERED:
        of_task = {control: by_task[task] for control, by_task in controls.items() if task in by_task}
        pair = _pair(name, scores.get(task), of_task, vae.get(task))
        p.append(np.nan if pair is None else statistics.paired_test(*pair).p)
        gain = summary.NAN_INTERVAL
        if pair is not None:
            gain = summary.mean_of(scores[task], scores[task].measure.sign * (pair[0] - pair[1]))
        gains.append(gain)
    rows = zip(PREREGISTERED, gains, p, statistics.holm(p), strict=True)
    return [Contrast(task, name, gain, float(value), float(holm)) for (task, name), gain, value, holm in rows]


def _pair(
    name: str, scores: Scores | None, controls: Mapping[str, Scores], vae: Scores | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Per-image scores (N,) of the trained decoder and of a baseline at the last step; None if one is missing."""
    if scores is None or not scores.per_image:
        return None
    part = scores.lead_part
    trained = scores.part("trained", part)[-1]
    if name != "vae":
        return next(((trained, b.final(part)) for b in baselines(scores, controls, part) if b.name == name), None)
    if vae is None or vae.steps[-1] != scores.steps[-1] or not np.array_equal(vae.samples, scores.samples):
        return None
    return trained, vae.part("trained", "all")[-1]


def missing_for_claim(names: set[str]) -> list[str]:
    """Baselines that a claim of linearity needs and that are not among `names`, in words."""
    missing = [] if "random_forced" in names else [baseline_noun("random_forced")]
    return missing if names & {"surface", "surface_rgb", "position"} else [*missing, "the surface or position alone"]
