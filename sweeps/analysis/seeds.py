"""How much seeds matter: spread over the weight permutations of a randomised network, and over seeds of the probes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probing.diffusion.variants import is_plain, kind, own_seed
from probing.statistics import Interval
from sweeps.analysis import summary
from sweeps.analysis.scores import Measure, Scores, cube, equal, finished_rows, seeds_of
from sweeps.analysis.tables import RunData
from sweeps.config.schema import GRID

RANDOM_SEED = 100
"""default of model.random_seed"""


@dataclass(frozen=True)
class Spread:
    """One score under several seeds, the reported seed first."""

    measure: Measure
    label: str
    """kind of network, or the sites that the probes were fitted at"""
    seeds: tuple[int, ...]
    scores: tuple[float, ...]
    """last step, mean over test images"""

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.scores))

    @property
    def std(self) -> float:
        """Sample standard deviation over the seeds (divided by their number minus one)."""
        return float(np.std(self.scores, ddof=1))


@dataclass(frozen=True)
class Permutations(Spread):
    """One kind of randomised network; `label` is the kind."""

    trained: float
    smallest_gain: Interval
    """the trained network's gain over the best of the seeds"""


def permutations(run: RunData, scores: Scores) -> list[Permutations]:
    """Decoder means of every kind of network that was sampled with more than one seed."""
    found: list[Permutations] = []
    default = int(run.setting("model.random_seed", RANDOM_SEED))
    trained = summary.final(scores, "trained", scores.lead_part).estimate
    for name in dict.fromkeys(kind(v) for v in scores.variants if not is_plain(v)):
        variants = sorted((v for v in scores.variants if kind(v) == name), key=lambda v: not is_plain(v))
        means = {v: summary.final(scores, v, scores.lead_part).estimate for v in variants}
        means = {v: mean for v, mean in means.items() if np.isfinite(mean)}
        # The plain name is the seed of the settings, which every other table reports, so it has to be there.
        if len(means) < 2 or not is_plain(next(iter(means))):
            continue
        smallest = min((summary.gap(scores, scores.lead_part, v) for v in means), key=lambda gain: gain.estimate)
        seeds = tuple(own_seed(v, default) for v in means)
        found.append(Permutations(scores.measure, name, seeds, tuple(means.values()), trained, smallest))
    return found


def probes(run: RunData, scores: Scores) -> list[Spread]:
    """The trained network's probes under several seeds: the best site (chosen with the reported seed), the decoder."""
    rows = finished_rows(run.table("probes"), GRID, "none", every_seed=True)
    seeds = seeds_of(rows)
    if rows is None or len(seeds) < 2:
        return []
    sites = [s.name for s in scores.sites]
    rows = rows.filter(equal(rows, task=scores.measure.task, variant="trained", step=scores.steps[-1]))
    values = cube(rows, ("seed", "site"), (seeds, sites), scores.measure.score)
    best = summary.best_site(scores)
    parts = {} if best is None else {f"best site {sites[best]}": [best]}
    parts |= {scores.lead_noun: scores.site_indices(scores.lead_part)}
    found = []
    for label, indices in parts.items():
        means = dict(zip(seeds, values[:, indices].mean(1).tolist(), strict=True))
        means = {seed: mean for seed, mean in means.items() if np.isfinite(mean)}
        if len(means) > 1:
            found.append(Spread(scores.measure, label, tuple(means), tuple(means.values())))
    return found
