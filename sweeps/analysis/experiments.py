"""What the experiments beside the grid say: families, emergence against labellers, transfer, selectivity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from probing import statistics
from probing.probes.directions import cosines, direction
from probing.statistics import Interval
from sweeps.analysis import scores as analysis
from sweeps.analysis import summary
from sweeps.analysis.scores import Measure, Scores
from sweeps.analysis.tables import RunData, Site, site_order
from sweeps.analysis.vocabulary import LABELLER_TITLES
from sweeps.runtime.layout import trained_at

SHARE = 0.9
"""part of the way from floor to final score that the emergence comparison asks for"""
RIVALS = ("position", "other_image", "surface_point", "surface", "surface_rgb")
"""probe controls that selectivity is measured against, beside floor and randomised networks"""


def family_sites(run: RunData, experiment: str) -> tuple[Site, ...]:
    """Sites that an experiment has rows for, in order of execution."""
    rows = analysis.chosen(run.table("probes"), experiment, "none")
    if rows is None:
        return ()
    unique: dict[str, Site] = {}
    for name, tokens, channels in zip(*(rows[c].to_pylist() for c in ("site", "tokens", "channels")), strict=True):
        side = round((tokens or 0) ** 0.5)
        unique.setdefault(name, Site(name, tokens or 0, channels or 0, (side, side)))
    return tuple(sorted(unique.values(), key=lambda s: site_order(s.name)))


def families(run: RunData) -> dict[str, dict[str, Scores]]:
    """Scores by experiment and task of the trained network, for experiments that consist of probes."""
    found = {}
    for name in summary.experiments(run):
        sites = family_sites(run, name)
        scores = analysis.collect(run, name, sites=sites) if sites else {}
        if scores:
            found[name] = scores
    return found


@dataclass(frozen=True)
class Arrival:
    """Scores by step of one way to know the scene, and when it has most of its final score."""

    name: str
    mean: np.ndarray
    """float64 (T,)"""
    low: np.ndarray
    high: np.ndarray
    step: Interval
    """first step with 90 % of the way from floor to final score; NaN where there is none"""


@dataclass(frozen=True)
class Emergence:
    """The probes of the best site against the labellers on decoded partial images, the same test images."""

    measure: Measure
    site: Site
    steps: tuple[int, ...]
    images: int
    floor: float
    arrivals: tuple[Arrival, ...]
    """the probe first"""
    lead: Interval
    """steps by which the probe is there before the labeller on the clean estimate"""
    floor_word: str = ""
    """which answer the floor is"""


def emergence(run: RunData, scores: dict[str, Scores]) -> list[Emergence]:
    """One comparison per task that has rows of the emergence experiment."""
    table = run.table("images")
    if table is None:
        return []
    rows = table.filter(pc.equal(table["experiment"], "emergence"))
    found = (_emergence(rows.filter(pc.equal(rows["task"], t)), s) for t, s in scores.items())
    return [one for one in found if one is not None]


def _emergence(rows: pa.Table, scores: Scores) -> Emergence | None:
    best = summary.best_site(scores)
    shared = sorted(set(rows["sample"].to_pylist()) & set(scores.samples.tolist()))
    if best is None or len(shared) < 2 or not scores.per_image:
        return None
    steps = tuple(sorted(set(rows["step"].to_pylist()) & set(scores.steps)))
    axes = (tuple(f"labeller.{kind}" for kind in LABELLER_TITLES), steps, shared)
    cubes = analysis.cube(rows, ("site", "step", "sample"), axes, scores.measure.score)
    place = [int(np.flatnonzero(scores.samples == sample)[0]) for sample in shared]
    at = [scores.steps.index(step) for step in steps]
    probe = scores.values[scores.at("trained"), best][at][:, place]
    counts = scores.counts[:, place]
    floor = float(scores.floor[best])
    named = [(f"probe at {scores.sites[best].name}", probe), *zip(LABELLER_TITLES.values(), cubes, strict=True)]
    rise = _Rise(steps, floor, scores.measure, counts)
    arrivals = tuple(_arrival(name, values, rise) for name, values in named)
    lead = _lead(probe, cubes[0], rise)
    site = scores.sites[best]
    return Emergence(scores.measure, site, steps, len(shared), floor, arrivals, lead, scores.floor_word(site.name))


@dataclass(frozen=True)
class _Rise:
    """What the step of emergence depends on beside the scores."""

    steps: tuple[int, ...]
    floor: float
    measure: Measure
    counts: np.ndarray
    """float64 (draws, N)"""


def _arrival(name: str, values: np.ndarray, rise: _Rise) -> Arrival:
    bands = [statistics.mean_interval(row, rise.counts) for row in values]
    mean, low, high = np.array([[b.estimate, b.low, b.high] for b in bands]).T
    return Arrival(name, mean, low, high, _when(values, rise))


def _when(values: np.ndarray, rise: _Rise) -> Interval:
    found = statistics.emergence(values, rise.floor, rise.steps, rise.measure.higher, SHARE, rise.counts)
    if found.step is None or found.defined < summary.CLEARLY:
        return Interval(np.nan, np.nan, np.nan)
    return Interval(float(found.step), found.low, found.high)


def _lead(probe: np.ndarray, labeller: np.ndarray, rise: _Rise) -> Interval:
    """Labeller's step minus probe's step, in the same resamples."""

    def firsts(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        means = statistics.resampled_means(values, weights)
        gain = rise.measure.sign * (means - rise.floor)
        reached = gain >= SHARE * gain[-1]
        first = np.asarray(rise.steps, float)[np.argmax(reached, axis=0)]
        return np.where(gain[-1] > 0, first, np.nan)

    whole = np.ones((1, probe.shape[1]))
    lead = float((firsts(labeller, whole) - firsts(probe, whole))[0])
    return statistics.interval(lead, firsts(labeller, rise.counts) - firsts(probe, rise.counts))


@dataclass(frozen=True)
class Transfer:
    """Probes of every step applied at every step, at one site; and how alike their directions are."""

    measure: Measure
    site: Site
    steps: tuple[int, ...]
    scores: np.ndarray
    """float64 (trained at, applied at)"""
    floor: float
    cosine: np.ndarray | None
    """float64 (S, S), None where the probes are gone"""


def transfers(run: RunData, scores: dict[str, Scores]) -> list[Transfer]:
    """Matrices of each task: of the sites that were carried over the best on validation (or by training loss) first."""
    table = run.table("probes")
    if table is None:
        return []
    rows = table.filter(pc.equal(table["experiment"], "transfer"))
    found = []
    for task, main in scores.items():
        mine = rows.filter(pc.equal(rows["task"], task))
        names = set(mine["site"].to_pylist())
        sites = [i for i, s in enumerate(main.sites) if s.name in names]
        quality = main.quality[main.at("trained"), :, -1]
        for i in sorted(sites, key=lambda i: -np.nan_to_num(quality[i], nan=-1e9)):
            found.append(_transfer(run, main, main.sites[i], mine, float(main.floor[i])))
    return found


def _transfer(run: RunData, main: Scores, site: Site, rows: pa.Table, floor: float) -> Transfer:
    mine = rows.filter(pc.equal(rows["site"], site.name))
    origin = pa.array([trained_at(c) for c in mine["control"].to_pylist()], pa.int64())
    mine = mine.append_column("origin", origin)
    steps = tuple(sorted(set(mine["step"].to_pylist())))
    matrix = analysis.cube(mine, ("origin", "step"), (steps, steps), main.measure.score)
    return Transfer(main.measure, site, steps, matrix, floor, _cosine(run, site, steps, main.measure.task))


def _cosine(run: RunData, site: Site, steps: Sequence[int], task: str) -> np.ndarray | None:
    reader: Any = run.reader
    weights = [reader.weights("trained", site.name, step, task) for step in steps] if reader else [None]
    linear = [w["weight"] for w in weights if w is not None and "hidden" not in w]
    if len(linear) < len(weights):
        return None
    return cosines(np.stack([direction(weight, site.channels) for weight in linear]))


@dataclass(frozen=True)
class Selective:
    """By how much each site and step beats the best answer that does not know the image's content."""

    measure: Measure
    sites: tuple[Site, ...]
    steps: tuple[int, ...]
    gain: np.ndarray
    """float64 (S, T), above 0 where the trained network's probe is better than every rival"""
    baselines: tuple[str, ...]


def selective(run: RunData, scores: Scores) -> Selective:
    """Gain of every site and step over the best of floor, randomised networks and fitted controls."""
    sign, task = scores.measure.sign, scores.measure.task
    ours = scores.means[scores.at("trained")]
    baselines = {"floor": np.broadcast_to(scores.floor[:, None], ours.shape)}
    for variant in summary.contrasts(scores):
        baselines[variant] = scores.means[scores.at(variant)]
    for name in RIVALS:
        theirs = analysis.collect(run, control=name).get(task) if name in summary.controls(run) else None
        if theirs is not None and theirs.steps == scores.steps:
            baselines[name] = theirs.means[theirs.at("trained")]
    stacked = sign * np.stack(list(baselines.values()))
    best = np.fmax.reduce(stacked, axis=0)
    return Selective(scores.measure, scores.sites, scores.steps, sign * ours - best, tuple(baselines))
