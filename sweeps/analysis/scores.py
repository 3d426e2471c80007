"""Numbers of the report: per-image scores as one cube, and what is said about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from probing import statistics
from sweeps.analysis.tables import RunData, Site
from sweeps.analysis.vocabulary import FLOOR_NOUNS, MEASURE_TITLES, POSITION_FLOOR


@dataclass(frozen=True)
class Measure:
    """How one task is scored in the headline figures."""

    task: str
    score: str
    """column of results/probes and results/images"""
    label: str
    higher: bool
    """whether a larger score is better"""

    @property
    def sign(self) -> float:
        """+1 where larger is better, else -1."""
        return 1.0 if self.higher else -1.0


MEASURES = (
    Measure("saliency", "dice", MEASURE_TITLES["dice"], True),
    Measure("depth", "rmse", MEASURE_TITLES["rmse"], False),
)


@dataclass(frozen=True)
class Scores:
    """Test scores of one task on the axes variant, site, step, image."""

    measure: Measure
    variants: tuple[str, ...]
    sites: tuple[Site, ...]
    steps: tuple[int, ...]
    samples: np.ndarray
    """(N,) sample numbers"""
    values: np.ndarray
    """float64 (V, S, T, N); NaN where a score is absent"""
    oracle: np.ndarray
    """float64 (S, N)"""
    floor: np.ndarray
    """float64 (S,): the mean score of the best answer without activations, a fitted position control among them"""
    val: np.ndarray
    """float64 (V, S, T): mean validation score, for choices"""
    train_loss: np.ndarray
    """float64 (V, S, T): mean training loss, for choices of a run without validation images"""
    counts: np.ndarray
    """float64 (draws, N): how often each image occurs in each resample, the same for all cells"""
    per_image: bool
    """whether N counts images; False where only means were stored and there are no intervals"""
    position: np.ndarray | None = None
    """float64 (S,): mean score of the position control, NaN where it was not fitted; None where nowhere"""
    before_position: np.ndarray | None = None
    """float64 (S,): the floor without the position control, where that was fitted"""

    @property
    def stored_floor(self) -> np.ndarray:
        """float64 (S,): the floor as results/probes has it, without the position control."""
        return self.floor if self.before_position is None else self.before_position

    def floor_word(self, part: str) -> str:
        """Which answer the floor of a part's sites is."""
        plain = FLOOR_NOUNS[self.measure.task]
        by_position = [self.position is not None and self.floor[i] == self.position[i] for i in self.which(part)]
        if not any(by_position):
            return plain
        return POSITION_FLOOR if all(by_position) else f"{POSITION_FLOOR} or {plain}, by site"

    @cached_property
    def means(self) -> np.ndarray:
        """float64 (V, S, T): mean over images with a score."""
        return statistics.mean_defined(self.values)

    @cached_property
    def validated(self) -> bool:
        """Whether sites are chosen on validation images; else by their training loss, never by a test score."""
        return bool(np.isfinite(self.val[self.at("trained")]).any()) if "trained" in self.variants else False

    @cached_property
    def quality(self) -> np.ndarray:
        """float64 (V, S, T): what sites are chosen by, larger is better; NaN where neither is known."""
        return self.measure.sign * self.val if self.validated else -self.train_loss

    @cached_property
    def oracle_means(self) -> np.ndarray:
        """float64 (S,)."""
        return statistics.mean_defined(self.oracle)

    def part(self, variant: str, part: str) -> np.ndarray:
        """float64 (T, N): each image's score, mean over the sites of a part; NaN if one lacks."""
        return self.values[self.at(variant), self.which(part)].mean(0)

    def at(self, variant: str) -> int:
        """Index of a variant; ValueError where the run has none."""
        return self.variants.index(variant)

    def which(self, part: str) -> list[int]:
        """Indices of ``all`` sites, of a side, a block (``up.2``) or one site (``up.2.1``)."""
        return [i for i, s in enumerate(self.sites) if part in ("all", s.side, s.block, s.name)]


def collect(
    run: RunData,
    experiment: str | None = None,
    control: str = "none",
    sites: tuple[Site, ...] | None = None,
    measures: Sequence[Measure] = MEASURES,
) -> dict[str, Scores]:
    """Scores by task of one experiment and control; tasks without a finished probe are left out.

    By default of the main grid's experiment, over the main sites, in the measures that lead.
    """
    experiment = experiment or run.experiment
    probes = chosen(run.table("probes"), experiment, control)
    if probes is None:
        return {}
    images = chosen(run.table("images"), experiment, control)
    found = {m.task: _scores(run, m, sites or run.sites, probes, images) for m in measures}
    kept = {task: s for task, s in found.items() if np.isfinite(s.values).any()}
    return kept if control == POSITION else {task: _with_position(run, s) for task, s in kept.items()}


POSITION = "position"
"""control that learns one value per cell and reads no activations"""


def _with_position(run: RunData, scores: Scores) -> Scores:
    """The position control of the main grid raises the floor of the sites where it is the better answer."""
    rows = chosen(run.table("probes"), run.experiment, POSITION)
    if rows is None:
        return scores
    rows = rows.filter(pc.equal(rows["task"], scores.measure.task))
    steps = pc.unique(rows["step"]).to_pylist()
    axes = (run.variants, [s.name for s in scores.sites], steps)
    position = _mean_over(cube(rows, _CELL, axes, scores.measure.score), (0, 2))
    if not np.isfinite(position).any():
        return scores
    better = np.fmax if scores.measure.higher else np.fmin
    return replace(scores, floor=better(scores.floor, position), position=position, before_position=scores.floor)


def chosen(table: pa.Table | None, experiment: str, control: str, every_seed: bool = False) -> pa.Table | None:
    """Finished rows of one experiment and control; None where there is no table.

    Of several probe seeds those of the lowest, as 0 is the protocol's, unless every seed is asked for.
    """
    if table is None:
        return None
    keep = equal(table, experiment=experiment, control=control)
    if "status" in table.column_names:
        keep = pc.and_(keep, pc.equal(table["status"], "done"))
    rows = table.filter(keep)
    seeds = seeds_of(rows)
    return rows if every_seed or len(seeds) < 2 else rows.filter(equal(rows, seed=seeds[0]))


def seeds_of(rows: pa.Table | None) -> list[int]:
    """The probe seeds of rows, ascending: the first is the reported one."""
    if rows is None or "seed" not in rows.column_names:
        return []
    return sorted(seed for seed in pc.unique(rows["seed"]).to_pylist() if seed is not None)


def equal(table: pa.Table, **wanted: Any) -> pa.ChunkedArray:
    """Bool (rows): whether every named column has the given value."""
    return reduce(pc.and_, (pc.equal(table[name], value) for name, value in wanted.items()))


def _scores(
    run: RunData, measure: Measure, sites: tuple[Site, ...], probes: pa.Table, images: pa.Table | None
) -> Scores:
    probes = probes.filter(pc.equal(probes["task"], measure.task))
    steps = tuple(sorted(pc.unique(probes["step"]).to_pylist()))
    axes = (run.variants, tuple(s.name for s in sites), steps)
    if images is not None:
        images = images.filter(pc.equal(images["task"], measure.task))
    per_image = images is not None and images.num_rows > 0
    samples = np.zeros(1, int)
    if images is not None and per_image:
        samples = np.unique(images["sample"].to_numpy())
    captions = [run.captions.get(i, str(i)) for i in samples.tolist()]

    def scored(column: str) -> np.ndarray:
        if images is not None and per_image:
            return cube(images, (*_CELL, "sample"), (*axes, samples.tolist()), column)
        return cube(probes, _CELL, axes, column)[..., None]

    def mean(column: str) -> np.ndarray:
        return cube(probes, _CELL, axes, f"{column}_{measure.score}")

    return Scores(
        measure=measure,
        variants=run.variants,
        sites=sites,
        steps=steps,
        samples=samples,
        values=scored(measure.score),
        oracle=_mean_over(scored(f"oracle_{measure.score}"), (0, 2)),
        floor=_mean_over(mean("floor"), (0, 2)),
        val=mean("val"),
        train_loss=cube(probes, _CELL, axes, "train_loss"),
        counts=statistics.resample_counts(len(samples), groups=captions),
        per_image=per_image,
    )


def _mean_over(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Mean over axes without undefined values."""
    kept = [i for i in range(values.ndim) if i not in axes]
    moved = values.transpose(*kept, *axes)
    return statistics.mean_defined(moved.reshape(*moved.shape[: len(kept)], -1))


_CELL = ("variant", "site", "step")


def cube(table: pa.Table, keys: Sequence[str], axes: Sequence[Sequence], value: str) -> np.ndarray:
    """float64 array over `axes`: the mean of `value` over rows whose `keys` name a place.

    Rows outside the axes and rows without a finite value are left out; an empty place is NaN.
    """
    shape = tuple(len(a) for a in axes)
    if value not in table.column_names or not table.num_rows or 0 in shape:
        return np.full(shape, np.nan)
    place = np.stack([_places(table[k], a) for k, a in zip(keys, axes, strict=True)])
    values = table[value].cast(pa.float64()).to_numpy(zero_copy_only=False)
    good = (place >= 0).all(0) & np.isfinite(values)
    flat = np.ravel_multi_index(tuple(place[:, good]), shape)
    size = int(np.prod(shape))
    counts = np.bincount(flat, minlength=size)
    sums = np.bincount(flat, weights=values[good], minlength=size)
    with np.errstate(invalid="ignore"):
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).reshape(shape)


def _places(column: pa.ChunkedArray, axis: Sequence) -> np.ndarray:
    coded = column.combine_chunks().dictionary_encode()
    index = {name: i for i, name in enumerate(axis)}
    lookup = np.array([index.get(name, -1) for name in coded.dictionary.to_pylist()] + [-1])
    return lookup[coded.indices.fill_null(len(lookup) - 1).to_numpy(zero_copy_only=False)]
