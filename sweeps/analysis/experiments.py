"""Results of the experiments beside the grid: site families, emergence against labellers, transfer, selectivity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from probing import statistics
from probing.probes.directions import cosines, direction
from probing.statistics import Interval
from sweeps.analysis import summary
from sweeps.analysis.baselines import FLOOR
from sweeps.analysis.scores import Measure, Scores, collect, cube, finished_rows
from sweeps.analysis.summary import Rise
from sweeps.analysis.tables import RunData, Site, grid_of, site_order
from sweeps.analysis.vocabulary import LABELLER_TITLES
from sweeps.runtime.layout import EMERGENCE, trained_at

CONTENT_FREE_CONTROLS = ("position", "other_image", "surface_point", "surface", "surface_rgb")
"""probe controls that do not know the image's content; baselines of selectivity beside floor and other networks"""


def families(run: RunData) -> dict[str, dict[str, Scores]]:
    """Scores by experiment and task of the trained network, for experiments that consist of probes."""
    found = {}
    for name in summary.experiments(run):
        sites = family_sites(run, name)
        scores = collect(run, name, sites=sites) if sites else {}
        if scores:
            found[name] = scores
    return found


def family_sites(run: RunData, experiment: str) -> tuple[Site, ...]:
    """Sites for which an experiment has rows, in order of execution."""
    rows = finished_rows(run.table("probes"), experiment, "none")
    if rows is None:
        return ()
    shapes = {
        r["site"]: (r["tokens"] or 0, r["channels"] or 0)
        for r in rows.select(["site", "tokens", "channels"]).to_pylist()
    }
    sites = (Site(name, tokens, channels, grid_of(tokens, run.image)) for name, (tokens, channels) in shapes.items())
    return tuple(sorted(sites, key=lambda s: site_order(s.name)))


@dataclass(frozen=True)
class EmergenceCurve:
    """Scores by step of the probe or of a labeller, and the step at which most of the final score is reached."""

    name: str
    mean: np.ndarray
    """float64 (T,)"""
    low: np.ndarray
    high: np.ndarray
    step: Interval
    """first step with 95 % of the way from floor to final score; NaN unless the last step clearly beats the floor"""
    change: Interval
    """how much better the last step is than the first; above zero if the score rises"""

    @property
    def rise(self) -> Rise:
        """The step of emergence, with whether there is a rise at all."""
        return Rise(self.step, self.change)


@dataclass(frozen=True)
class Emergence:
    """The best site's probes and the labellers on decoded partial images, scored on the same test images."""

    measure: Measure
    site: Site
    steps: tuple[int, ...]
    images: int
    floor: float
    """mean over the same images as the curves"""
    curves: tuple[EmergenceCurve, ...]
    """the probe first, then the labellers in the order of LABELLER_TITLES"""
    lead: Interval
    """number of steps by which the probe precedes the labeller on the clean estimate, each on the way to its own end"""
    passed: Interval
    """first measured step from which on the labeller on the clean estimate scores better than the probe; NaN if never,
    infinite ends if not in all resamples"""
    floor_word: str = ""
    """noun for the answer that is the floor"""
    rise: Rise = Rise(summary.NAN_INTERVAL, summary.NAN_INTERVAL)
    """of the best site's probe over all test images, as everywhere in the report; the curves are over fewer"""


def emergence(run: RunData, scores: dict[str, Scores]) -> list[Emergence]:
    """One comparison per task that has rows of the emergence experiment."""
    table = run.table("images")
    if table is None:
        return []
    rows = table.filter(pc.equal(table["experiment"], EMERGENCE))
    found = (_emergence(rows.filter(pc.equal(rows["task"], task)), s) for task, s in scores.items())
    return [result for result in found if result is not None]


def _emergence(rows: pa.Table, scores: Scores) -> Emergence | None:
    best = summary.best_site(scores)
    shared = sorted(set(rows["sample"].to_pylist()) & set(scores.samples.tolist()))
    if best is None or len(shared) < 2 or not scores.per_image:
        return None
    site, measure = scores.sites[best], scores.measure
    steps = tuple(sorted(set(rows["step"].to_pylist()) & set(scores.steps)))
    labeller_sites = [f"labeller.{kind}" for kind in LABELLER_TITLES]
    labellers = cube(rows, ("site", "step", "sample"), (labeller_sites, steps, shared), measure.score)
    columns = [int(np.flatnonzero(scores.samples == sample)[0]) for sample in shared]
    rows_of_steps = [scores.steps.index(step) for step in steps]
    probe = scores.values[scores.variant_index("trained"), best][np.ix_(rows_of_steps, columns)]
    counts = scores.counts[:, columns]
    floors = scores.floor_values[best, columns]

    curves = []
    for name, values in [(f"probe at {site.name}", probe), *zip(LABELLER_TITLES.values(), labellers, strict=True)]:
        bands = [statistics.mean_interval(step, counts) for step in values]
        mean, low, high = np.array([[b.estimate, b.low, b.high] for b in bands]).T
        result = statistics.emergence(values, floors, steps, measure.higher, summary.SHARE, counts)
        step = summary.NAN_INTERVAL
        if result.step is not None and result.defined >= summary.CLEARLY:
            step = Interval(float(result.step), result.low, result.high)
        change = statistics.difference_interval(measure.sign * values[-1], measure.sign * values[0], counts)
        curves.append(EmergenceCurve(name, mean, low, high, step, change))

    pair = np.stack([labellers[0], probe])
    lead = _lead(pair, counts, steps, floors, measure.sign)
    passed = _passed(pair, counts, steps, measure.sign)
    floor, word = float(statistics.mean_defined(floors)), scores.floor_word(site.name)
    rise = summary.emergence(scores, "trained", site.name)
    return Emergence(measure, site, steps, len(shared), floor, tuple(curves), lead, passed, word, rise)


def _passed(pair: np.ndarray, counts: np.ndarray, steps: Sequence[int], sign: float) -> Interval:
    """First measured step from which on the first of scores (2, T, N) is better than the second."""

    def first(counts: np.ndarray) -> np.ndarray:
        better = sign * (statistics.resampled_means(pair[0], counts) - statistics.resampled_means(pair[1], counts)) > 0
        stays = np.flip(np.logical_and.accumulate(np.flip(better, 0), axis=0), 0)
        return np.where(stays.any(0), np.asarray(steps, float)[np.argmax(stays, axis=0)], np.inf)

    estimate = float(first(np.ones((1, pair.shape[-1])))[0])
    if not np.isfinite(estimate):
        return summary.NAN_INTERVAL
    low, high = np.quantile(first(counts), [statistics.TAIL, 1 - statistics.TAIL], method="inverted_cdf")
    return Interval(estimate, float(low), float(high))


def _lead(pair: np.ndarray, counts: np.ndarray, steps: Sequence[int], floors: np.ndarray, sign: float) -> Interval:
    """Step of emergence of the first minus that of the second of scores (2, T, N), both in the same resamples."""

    def difference(counts: np.ndarray) -> np.ndarray:
        gain = sign * (statistics.resampled_means(pair, counts) - statistics.resampled_means(floors, counts))
        last = gain[:, -1]
        first = np.asarray(steps, float)[np.argmax(gain >= summary.SHARE * last[:, None], axis=1)]
        first = np.where(last > 0, first, np.nan)  # a score that ends below the floor never emerges
        return first[0] - first[1]

    on_all_images = np.ones((1, pair.shape[-1]))
    return statistics.interval(float(difference(on_all_images)[0]), difference(counts))


@dataclass(frozen=True)
class Transfer:
    """Probes of every step applied at every step, at one site, and the cosines between their directions."""

    measure: Measure
    site: Site
    steps: tuple[int, ...]
    scores: np.ndarray
    """float64 (trained at, applied at)"""
    floor: float
    images: int | None
    """test images of the scores; None if unknown"""
    cosine: np.ndarray | None
    """float64 (steps, steps); None if the probes are no longer stored or have a hidden layer"""


def transfers(run: RunData, scores: dict[str, Scores]) -> list[Transfer]:
    """Transfer matrices of each task: its sites in order of validation score (or training loss), the best first."""
    table = run.table("probes")
    if table is None:
        return []
    rows = table.filter(pc.equal(table["experiment"], "transfer"))
    rows = rows.append_column("origin", pa.array([trained_at(c) for c in rows["control"].to_pylist()], pa.int64()))
    found = []
    for task, main in scores.items():
        of_task = rows.filter(pc.equal(rows["task"], task))
        names = set(of_task["site"].to_pylist())
        quality = np.nan_to_num(main.quality[main.variant_index("trained"), :, -1], nan=-1e9)
        for i in sorted((i for i, s in enumerate(main.sites) if s.name in names), key=lambda i: -quality[i]):
            site, floor = main.sites[i], float(main.floor[i])
            of_site = of_task.filter(pc.equal(of_task["site"], site.name))
            steps = tuple(sorted(set(of_site["step"].to_pylist())))
            matrix = cube(of_site, ("origin", "step"), (steps, steps), main.measure.score)
            cosine = _cosine(run, site, steps, task)
            found.append(Transfer(main.measure, site, steps, matrix, floor, _tested(of_site), cosine))
    return found


def _tested(rows: pa.Table) -> int | None:
    return pc.max(rows["n_test"]).as_py() if "n_test" in rows.column_names else None


def _cosine(run: RunData, site: Site, steps: Sequence[int], task: str) -> np.ndarray | None:
    if run.reader is None:
        return None
    weights = [run.reader.weights("trained", site.name, step, task) for step in steps]
    linear = [w["weight"] for w in weights if w is not None and "hidden" not in w]
    if len(linear) < len(weights):
        return None
    return cosines(np.stack([direction(weight, site.channels) for weight in linear]))


@dataclass(frozen=True)
class SelectivityMap:
    """By how much each site and step beats the best answer that does not know the image's content."""

    measure: Measure
    sites: tuple[Site, ...]
    steps: tuple[int, ...]
    gain: np.ndarray
    """float64 (S, T), above 0 where the trained network's probe is better than every baseline"""
    baselines: tuple[str, ...]
    images: int | None
    """test images of the scores"""


def selectivity_map(run: RunData, scores: Scores) -> SelectivityMap:
    """Gain of every site and step over the best of floor, other networks and content-free controls."""
    sign, task = scores.measure.sign, scores.measure.task
    trained = scores.means[scores.variant_index("trained")]
    baselines = {FLOOR: np.broadcast_to(scores.floor[:, None], trained.shape)}
    for variant in summary.other_variants(scores):
        baselines[variant] = scores.means[scores.variant_index(variant)]
    fitted = summary.controls(run)
    for name in (c for c in CONTENT_FREE_CONTROLS if c in fitted):
        control = collect(run, control=name).get(task)
        if control is not None and control.steps == scores.steps:
            baselines[name] = control.means[control.variant_index("trained")]
    best = np.fmax.reduce(sign * np.stack(list(baselines.values())), axis=0)
    return SelectivityMap(
        scores.measure, scores.sites, scores.steps, sign * trained - best, tuple(baselines), scores.images
    )
