"""How much seeds matter: spread over permutation seeds of a randomised network, and over seeds of the probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probing.diffusion.variants import is_plain, kind, own_seed
from probing.statistics import Interval
from sweeps.analysis import scores as analysis
from sweeps.analysis import summary
from sweeps.analysis.scores import Measure, Scores
from sweeps.analysis.tables import RunData

PART = "decoder"
PERMUTED = 100
"""model.random_seed where the run's configuration does not say"""


@dataclass(frozen=True)
class Spread:
    """One score under several seeds, the reported seed first."""

    measure: Measure
    what: str
    """kind of network, or the place that probes were fitted at"""
    seeds: tuple[int, ...]
    scores: tuple[float, ...]
    """last step, mean over test images"""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.scores))

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds, of the sample (divided by their number less one)."""
        return float(np.std(self.scores, ddof=1))


@dataclass(frozen=True)
class Permutations(Spread):
    """A kind of randomised network; `what` is the kind."""

    trained: float
    smallest: Interval
    """the trained network's gain over the seed that it beats by least"""


def permutations(run: RunData, scores: Scores) -> list[Permutations]:
    """Decoder means of every kind of network that was sampled with more than one seed."""
    kinds = dict.fromkeys(kind(v) for v in scores.variants if not is_plain(v))
    found = (_permutations(run, scores, name) for name in kinds) if scores.which(PART) else ()
    return [one for one in found if one is not None]


def _permutations(run: RunData, scores: Scores, name: str) -> Permutations | None:
    mine = sorted((v for v in scores.variants if kind(v) == name), key=lambda v: not is_plain(v))
    means = {v: summary.final(scores, v, PART).estimate for v in mine}
    held = [v for v in mine if np.isfinite(means[v])]
    if len(held) < 2 or not is_plain(held[0]):
        return None
    default = int(run.setting("model.random_seed", PERMUTED))
    gains = [summary.gap(scores, PART, v) for v in held]
    smallest = min(gains, key=lambda g: g.estimate)
    trained = summary.final(scores, "trained", PART).estimate
    seeds, values = tuple(own_seed(v, default) for v in held), tuple(means[v] for v in held)
    return Permutations(scores.measure, name, seeds, values, trained, smallest)


def probes(run: RunData, scores: Scores) -> list[Spread]:
    """The trained network's probes under several seeds: the best site (chosen with the reported seed), the decoder."""
    rows = analysis.chosen(run.table("probes"), run.experiment, "none", every_seed=True)
    seeds = analysis.seeds_of(rows)
    if rows is None or len(seeds) < 2:
        return []
    sites = [s.name for s in scores.sites]
    mine = rows.filter(analysis.equal(rows, task=scores.measure.task, variant="trained", step=scores.steps[-1]))
    values = analysis.cube(mine, ("seed", "site"), (seeds, sites), scores.measure.score)
    best = summary.best_site(scores)
    places = {} if best is None else {f"best site {sites[best]}": [best]}
    places |= {"decoder mean": scores.which(PART)} if scores.which(PART) else {}
    found = (_probes(scores.measure, what, seeds, values[:, where].mean(1)) for what, where in places.items())
    return [one for one in found if one is not None]


def _probes(measure: Measure, what: str, seeds: Sequence[int], values: np.ndarray) -> Spread | None:
    held = np.flatnonzero(np.isfinite(values))
    if len(held) < 2:
        return None
    return Spread(measure, what, tuple(seeds[int(i)] for i in held), tuple(float(values[i]) for i in held))
