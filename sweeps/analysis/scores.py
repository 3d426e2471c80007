"""Per-image test scores of a run as one array over variant, site, step and image."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from probing import statistics
from probing.diffusion.sites import ATTENTION
from sweeps.analysis.tables import SIDES, RunData, Site
from sweeps.analysis.vocabulary import FLOOR_NOUNS, MEASURE_TITLES, POSITION_FLOOR
from sweeps.config.schema import GRID

POSITION = "position"
"""the control that learns one value per patch and reads no activations"""
GROUPS = 7
"""groups of sites in figures of a network without encoder and decoder"""
PROBE_KEYS = ("variant", "site", "step")


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
        """+1 if larger is better, else -1."""
        return 1.0 if self.higher else -1.0


MEASURES = (
    Measure("saliency", "dice", MEASURE_TITLES["dice"], True),
    Measure("depth", "rmse", MEASURE_TITLES["rmse"], False),
)


@dataclass(frozen=True)
class Scores:
    """Test scores of one task on the axes variant (V), site (S), step (T), image (N)."""

    measure: Measure
    variants: tuple[str, ...]
    sites: tuple[Site, ...]
    steps: tuple[int, ...]
    samples: np.ndarray
    """(N,) sample numbers"""
    values: np.ndarray
    """float64 (V, S, T, N); NaN where there is no score"""
    oracle: np.ndarray
    """float64 (S, N): the grid oracle"""
    floor: np.ndarray
    """float64 (S,): mean score of the best answer without activations, including the position control if fitted"""
    val: np.ndarray
    """float64 (V, S, T): mean validation score, to choose sites by"""
    train_loss: np.ndarray
    """float64 (V, S, T): mean training loss, to choose sites by in a run without validation images"""
    counts: np.ndarray
    """float64 (resamples, N): how often each image occurs in each resample, the same for all probes"""
    per_image: bool
    """whether N counts images; False if only means were stored, so that there are no intervals"""
    position: np.ndarray | None = None
    """float64 (S,): mean score of the position control, NaN where it was not fitted; None if it was fitted nowhere"""
    floor_without_position: np.ndarray | None = None
    """float64 (S,): the floor without the position control; None if that was fitted nowhere"""
    floor_images: np.ndarray | None = None
    """float64 (S, N): the floor on each image, see `floors.on_images`; None if only its mean is known"""

    @property
    def floor_values(self) -> np.ndarray:
        """float64 (S, N): the floor on each image; its mean if no more is known."""
        if self.floor_images is not None:
            return self.floor_images
        return np.broadcast_to(self.floor[:, None], (len(self.sites), len(self.samples)))

    @property
    def images(self) -> int | None:
        """Number of test images; None if only means are known."""
        return len(self.samples) if self.per_image else None

    @property
    def lead_part(self) -> str:
        """The part that headlines average over: the decoder, or all sites of a network without one."""
        return "decoder" if self.site_indices("decoder") else "all"

    @property
    def lead_noun(self) -> str:
        """``decoder mean`` or ``mean over all sites``."""
        return "decoder mean" if self.lead_part == "decoder" else "mean over all sites"

    @cached_property
    def blocks(self) -> dict[str, list[int]]:
        """Site indices by block in order of execution; a network without sides has up to seven groups of sites.

        Each kind of sites has blocks or groups of its own, such as `up.2` and `up.2 mlp`.
        """
        found: dict[str, list[int]] = {}
        if any(s.side in SIDES.values() for s in self.sites):
            for i, site in enumerate(self.sites):
                found.setdefault(site.block if site.kind == ATTENTION else f"{site.block} {site.kind}", []).append(i)
            return found
        for kind in dict.fromkeys(site.kind for site in self.sites):
            members = [i for i, site in enumerate(self.sites) if site.kind == kind]
            for group in np.array_split(members, min(GROUPS, len(members))):
                ends = dict.fromkeys([self.sites[group[0]].name, self.sites[group[-1]].name])
                found[" to ".join(ends)] = group.tolist()
        return found

    @property
    def stored_floor(self) -> np.ndarray:
        """float64 (S,): the floor in results/probes, without the position control."""
        return self.floor if self.floor_without_position is None else self.floor_without_position

    def floor_word(self, part: str) -> str:
        """Noun for the answer that is the floor of a part's sites."""
        stored = FLOOR_NOUNS[self.measure.task]
        is_position = [self.position is not None and self.floor[i] == self.position[i] for i in self.site_indices(part)]
        if not any(is_position):
            return stored
        return POSITION_FLOOR if all(is_position) else f"{POSITION_FLOOR} or {stored}, by site"

    @cached_property
    def means(self) -> np.ndarray:
        """float64 (V, S, T): mean over images with a score."""
        return statistics.mean_defined(self.values)

    @cached_property
    def validated(self) -> bool:
        """Whether sites are chosen on validation images; otherwise by training loss. Never by a test score."""
        return "trained" in self.variants and bool(np.isfinite(self.val[self.variant_index("trained")]).any())

    @cached_property
    def quality(self) -> np.ndarray:
        """float64 (V, S, T): criterion by which sites are chosen, larger is better; NaN if unknown."""
        return self.measure.sign * self.val if self.validated else -self.train_loss

    @cached_property
    def oracle_means(self) -> np.ndarray:
        """float64 (S,)."""
        return statistics.mean_defined(self.oracle)

    def part(self, variant: str, part: str) -> np.ndarray:
        """float64 (T, N): each image's mean over the sites of a part; NaN if a site has no score."""
        return self.values[self.variant_index(variant), self.site_indices(part)].mean(0)

    def variant_index(self, variant: str) -> int:
        """Index of a variant. Raises ValueError if the run has no such variant."""
        return self.variants.index(variant)

    def site_indices(self, part: str) -> list[int]:
        """Indices of `all` sites, or of a side, a kind, a block (`up.2`) or one site (`up.2.1`)."""
        if part in self.blocks:
            return self.blocks[part]
        return [i for i, s in enumerate(self.sites) if part in ("all", s.side, s.kind, s.block, s.name)]


def collect(
    run: RunData,
    experiment: str = GRID,
    control: str = "none",
    sites: tuple[Site, ...] | None = None,
    measures: Sequence[Measure] = MEASURES,
) -> dict[str, Scores]:
    """Scores by task of one experiment and control; tasks without a finished probe are left out.

    Defaults to the main grid, its sites and the two headline measures.
    """
    probes = finished_rows(run.table("probes"), experiment, control)
    if probes is None:
        return {}
    by_task = {}
    for measure in measures:
        columns = (*PROBE_KEYS, "sample", measure.score, f"oracle_{measure.score}")
        images = finished_rows(run.table("images"), experiment, control, columns=columns, task=measure.task)
        by_task[measure.task] = _scores(run, measure, sites or run.sites, probes, images)
    by_task = {task: s for task, s in by_task.items() if np.isfinite(s.values).any()}
    return by_task if control == POSITION else {task: _with_position(run, s) for task, s in by_task.items()}


def _with_position(run: RunData, scores: Scores) -> Scores:
    """Raise the floor at sites where the main grid's position control is the better answer."""
    rows = finished_rows(run.table("probes"), GRID, POSITION)
    if rows is None:
        return scores
    rows = rows.filter(pc.equal(rows["task"], scores.measure.task))
    axes = (run.variants, [s.name for s in scores.sites], pc.unique(rows["step"]).to_pylist())
    position = _mean_over(cube(rows, PROBE_KEYS, axes, scores.measure.score), (0, 2))
    if not np.isfinite(position).any():
        return scores
    better = np.fmax if scores.measure.higher else np.fmin
    floor = better(scores.floor, position)
    return replace(scores, floor=floor, position=position, floor_without_position=scores.floor)


def finished_rows(
    table: pa.Table | None,
    experiment: str,
    control: str,
    every_seed: bool = False,
    columns: Collection[str] | None = None,
    task: str = "",
) -> pa.Table | None:
    """Finished rows of one experiment and control, and of one task if it is given; None if there is no table.

    Of several probe seeds only the lowest (the protocol's is 0), unless `every_seed`. Rows have the given columns and
    the seed, or all columns: a table of images is too large to be copied whole.
    """
    if table is None:
        return None
    keep = equal(table, experiment=experiment, control=control, **({"task": task} if task else {}))
    if "status" in table.column_names:
        keep = pc.and_(keep, pc.equal(table["status"], "done"))
    if columns is not None:
        table = table.select([name for name in table.column_names if name in columns or name == "seed"])
    rows = table.filter(keep)
    seeds = seeds_of(rows)
    return rows if every_seed or len(seeds) < 2 else rows.filter(equal(rows, seed=seeds[0]))


def seeds_of(rows: pa.Table | None) -> list[int]:
    """The probe seeds of rows in ascending order; the first is the reported one."""
    if rows is None or "seed" not in rows.column_names:
        return []
    return sorted(seed for seed in pc.unique(rows["seed"]).to_pylist() if seed is not None)


def equal(table: pa.Table, **values: str | int) -> pa.ChunkedArray:
    """Bool (rows): whether every named column has the given value."""
    return reduce(pc.and_, (pc.equal(table[name], value) for name, value in values.items()))


def captions_of(run: RunData, samples: Iterable[int]) -> list[str]:
    """Prompt of each sample, or its number if unknown: images of one prompt are resampled together."""
    return [run.captions.get(i, str(i)) for i in samples]


def _scores(
    run: RunData, measure: Measure, sites: tuple[Site, ...], probes: pa.Table, images: pa.Table | None
) -> Scores:
    probes = probes.filter(pc.equal(probes["task"], measure.task))
    axes = (run.variants, [s.name for s in sites], sorted(pc.unique(probes["step"]).to_pylist()))
    per_image = images is not None and images.num_rows > 0
    samples = np.zeros(1, np.int64)
    if images is not None and per_image:
        samples = np.sort(pc.unique(images["sample"]).to_numpy()).astype(np.int64)

    def per_sample(column: str) -> np.ndarray:
        if images is not None and per_image:
            return cube(images, (*PROBE_KEYS, "sample"), (*axes, samples.tolist()), column)
        return cube(probes, PROBE_KEYS, axes, column)[..., None]

    return Scores(
        measure=measure,
        variants=run.variants,
        sites=sites,
        steps=tuple(axes[2]),
        samples=samples,
        values=per_sample(measure.score),
        oracle=_mean_over(per_sample(f"oracle_{measure.score}"), (0, 2)),
        floor=_mean_over(cube(probes, PROBE_KEYS, axes, f"floor_{measure.score}"), (0, 2)),
        val=cube(probes, PROBE_KEYS, axes, f"val_{measure.score}"),
        train_loss=cube(probes, PROBE_KEYS, axes, "train_loss"),
        counts=_counts(run, samples),
        per_image=per_image,
    )


def _counts(run: RunData, samples: np.ndarray) -> np.ndarray:
    """float64 (resamples, N): one array for all scores of the same images."""
    key = samples.tobytes()
    if key not in run.resamples:
        counts = statistics.resample_counts(len(samples), groups=captions_of(run, samples.tolist()))
        counts.flags.writeable = False
        run.resamples[key] = counts
    return run.resamples[key]


def _mean_over(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Mean over axes, leaving out undefined values."""
    kept = [i for i in range(values.ndim) if i not in axes]
    moved = values.transpose(*kept, *axes)
    return statistics.mean_defined(moved.reshape(*moved.shape[: len(kept)], -1))


def cube(table: pa.Table, keys: Sequence[str], axes: Sequence[Sequence[str] | Sequence[int]], value: str) -> np.ndarray:
    """float64 array over `axes`: the mean of column `value` over the rows whose `keys` have the values of an entry.

    Rows outside the axes and rows without a finite value are left out; an entry without rows is NaN.
    """
    shape = tuple(len(axis) for axis in axes)
    if value not in table.column_names or not table.num_rows or 0 in shape:
        return np.full(shape, np.nan)
    values = table[value].cast(pa.float64()).to_numpy()
    flat, good = np.zeros(len(values), np.int64), np.isfinite(values)
    for key, axis in zip(keys, axes, strict=True):
        position = _positions(table[key], axis)
        flat = flat * len(axis) + position
        good &= position >= 0
    flat = flat[good]
    size = int(np.prod(shape))
    counts = np.bincount(flat, minlength=size)
    sums = np.bincount(flat, weights=values[good], minlength=size)
    with np.errstate(invalid="ignore"):
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).reshape(shape)


def _positions(column: pa.ChunkedArray, axis: Sequence[str] | Sequence[int]) -> np.ndarray:
    """int (rows): position of each value on an axis, -1 for values that are not on it."""
    coded = column.combine_chunks().dictionary_encode()
    position = {value: i for i, value in enumerate(axis)}
    lookup = np.array([position.get(value, -1) for value in coded.dictionary.to_pylist()] + [-1])
    return lookup[coded.indices.fill_null(len(lookup) - 1).to_numpy(zero_copy_only=False)]
