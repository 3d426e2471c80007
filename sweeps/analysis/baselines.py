"""What the trained network is held against: rival networks and probes of what needs no network.

The headline is the trained network minus its best rival. The rival is chosen as sites are: on validation images, or by
training loss where a run has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from probing import statistics
from probing.statistics import Interval
from sweeps.analysis import summary
from sweeps.analysis.scores import Scores

NAMED = ("surface", "surface_rgb", "random_forced", "position")
"""baselines that the headline is meant to be over: a run may lack some"""
CONTROLS = ("surface", "surface_point", "surface_rgb", "position")
"""probe controls that are baselines: they read no activations"""
CURE = "scenesweep run scenes --all"
"""what fits every rival, for the embedded model"""


@dataclass(frozen=True)
class Baseline:
    """One answer that the trained network's probes are held against."""

    name: str
    """of the variant or of the control"""
    scores: Scores
    variant: str
    """whose rows of `scores` it is"""

    def final(self, part: str) -> np.ndarray:
        """(N,) last-step score of each image, mean over the sites of a part."""
        return self.scores.part(self.variant, part)[-1]

    def quality(self, part: str) -> float:
        """What baselines are chosen by at the last step, larger is better: mean over the sites of a part."""
        return float(np.mean(self.scores.quality[self.scores.at(self.variant), self.scores.which(part), -1]))


def baselines(scores: Scores, controls: Mapping[str, Scores], part: str = "decoder") -> list[Baseline]:
    """Rivals that have a score at every site of a part; `controls`: scores of fitted controls by name."""
    found = [Baseline(v, scores, v) for v in summary.contrasts(scores)]
    found += [Baseline(c, controls[c], "trained") for c in CONTROLS if c in controls and _alike(scores, controls[c])]
    return [r for r in found if scores.which(part) and np.isfinite(statistics.mean_defined(r.final(part)))]


def _alike(scores: Scores, other: Scores) -> bool:
    """Whether two controls are of the same sites, test images and last step."""
    same = scores.sites == other.sites and scores.steps[-1] == other.steps[-1]
    return same and "trained" in other.variants and np.array_equal(scores.samples, other.samples)


@dataclass(frozen=True)
class Headline:
    """The trained network minus its best rival, decoder mean at the last step."""

    rival: Baseline
    gain: Interval
    """above 0 where the trained network is better"""
    ours: float
    theirs: float
    missing: tuple[str, ...]
    """of the baselines that are meant, those that the run does not hold"""


def headline(scores: Scores, controls: Mapping[str, Scores], part: str = "decoder") -> Headline | None:
    """The contrast that the report leads with; None where the run holds no rival."""
    held = baselines(scores, controls, part)
    if not held:
        return None
    rival = max(held, key=lambda r: np.nan_to_num(r.quality(part), nan=-np.inf))
    ours, theirs = (float(statistics.mean_defined(v)) for v in (scores.part("trained", part)[-1], rival.final(part)))
    missing = tuple(name for name in NAMED if name not in {r.name for r in held})
    return Headline(rival, gap(scores, rival, part), ours, theirs, missing)


def gap(scores: Scores, rival: Baseline, part: str) -> Interval:
    """How much better the trained network is at the last step, image by image; positive is better."""
    ours, theirs = scores.part("trained", part)[-1], rival.final(part)
    return summary.mean_of(scores, scores.measure.sign * (ours - theirs))


def site_tests(scores: Scores, rival: Baseline) -> np.ndarray:
    """Wilcoxon signed-rank p of trained against a rival at each site's last step, (S,), by Holm."""
    pairs = [(scores.part("trained", s.name)[-1], rival.final(s.name)) for s in scores.sites]
    return statistics.holm([statistics.paired_test(*pair).p for pair in pairs])


_TEN = ("vae", "random", "surface", "random_forced", "position")
TEN = tuple((task, name) for task in ("saliency", "depth") for name in _TEN)
"""the contrasts that were named before any number was seen: task and rival, decoder mean at the last step"""


@dataclass(frozen=True)
class Contrast:
    """One of the ten; NaN throughout where the run does not hold the rival."""

    task: str
    rival: str
    gain: Interval
    p: float
    """two-sided Wilcoxon signed ranks over test images"""
    holm: float
    """corrected over those of the ten that the run holds"""


def ten(
    scores: Mapping[str, Scores], controls: Mapping[str, Mapping[str, Scores]], vae: Mapping[str, Scores]
) -> list[Contrast]:
    """The ten contrasts; `controls`: scores by control and task, `vae`: the VAE's scores by task."""
    pairs = [_pair(name, scores.get(task), _of(controls, task), vae.get(task)) for task, name in TEN]
    p = [np.nan if pair is None else statistics.paired_test(*pair).p for pair in pairs]
    corrected = statistics.holm(p)
    gains = [_gain(scores.get(task), pair) for (task, _), pair in zip(TEN, pairs, strict=True)]
    rows = zip(TEN, gains, p, corrected, strict=True)
    return [Contrast(*named, gain, float(one), float(adjusted)) for named, gain, one, adjusted in rows]


def _of(controls: Mapping[str, Mapping[str, Scores]], task: str) -> dict[str, Scores]:
    return {name: by_task[task] for name, by_task in controls.items() if task in by_task}


def _pair(
    name: str, scores: Scores | None, controls: Mapping[str, Scores], vae: Scores | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Per-image scores of the trained decoder and of a rival at the last step, None where one is absent."""
    if scores is None or not scores.which("decoder") or not scores.per_image:
        return None
    ours = scores.part("trained", "decoder")[-1]
    if name == "vae":
        same = vae is not None and vae.steps[-1] == scores.steps[-1] and np.array_equal(vae.samples, scores.samples)
        return (ours, vae.part("trained", "all")[-1]) if same and vae is not None else None
    return next(((ours, r.final("decoder")) for r in baselines(scores, controls) if r.name == name), None)


def _gain(scores: Scores | None, pair: tuple[np.ndarray, np.ndarray] | None) -> Interval:
    if scores is None or pair is None:
        return Interval(np.nan, np.nan, np.nan)
    return summary.mean_of(scores, scores.measure.sign * (pair[0] - pair[1]))


def lacking(names: set[str]) -> list[str]:
    """What must be among the baselines before a claim is supported and is not, in words."""
    found = [] if "random_forced" in names else ["random_forced"]
    return found if names & {"surface", "surface_rgb", "position"} else [*found, "surface or position"]
