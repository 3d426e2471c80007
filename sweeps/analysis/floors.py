"""Answers that ignore the activations, scored on test images: what a probe has to beat. Also label scaling."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc

from probing import statistics
from sweeps.analysis.scores import POSITION, Scores, collect
from sweeps.analysis.tables import RunData
from sweeps.analysis.vocabulary import FLOOR_NOUNS, POSITION_FLOOR

RECORDED = 1e-3
"""largest difference between a floor computed from labels and the recorded one of the same labels"""
CHUNK = 64
"""samples whose labels are read at once"""


def in_split(run: RunData, part: str) -> list[int]:
    """Kept samples of a part of the split (`train`, `val`, `test`) in ascending order."""
    table = run.table("curation")
    if table is None:
        return []
    kept = pc.and_(table["keep"], pc.equal(table["split"], part))
    return sorted(table.filter(kept)["sample"].to_pylist())


def on_images(run: RunData, scores: Scores) -> Scores:
    """Scores with the floor on each test image, from the stored labels and the position control's images.

    Unchanged if the labels are gone or do not give the recorded floor.
    """
    found = _answers(run, scores)
    if not found or not scores.per_image:
        return scores
    means = {name: statistics.mean_defined(values) for name, values in found.items()}
    sign, sites = scores.measure.sign, np.arange(len(scores.sites))
    best = np.argmax(sign * np.stack(list(means.values())), axis=0)
    images = np.stack(list(found.values()))[best, sites]
    if not np.allclose(statistics.mean_defined(images), scores.stored_floor, atol=RECORDED):
        return scores
    if scores.position is not None:
        position = collect(run, control=POSITION)[scores.measure.task]
        with warnings.catch_warnings():  # a site without the control has no mean
            warnings.simplefilter("ignore", RuntimeWarning)
            values = np.nanmean(position.values[position.variant_index("trained")], axis=1)
        if not np.array_equal(position.samples, scores.samples):
            return scores
        images = np.where((scores.floor == scores.position)[:, None], values, images)
    return replace(scores, floor_images=images)


def named_floors(run: RunData, scores: Scores) -> dict[str, np.ndarray]:
    """Mean test scores (S,) by floor, with the position control if it was fitted.

    Depth: the mean depth map of results/probes. Saliency: mean mask and all foreground, from the stored masks; if
    these are gone, only the better one of results/probes.
    """
    floors = {FLOOR_NOUNS["depth"]: scores.stored_floor}
    if scores.measure.task == "saliency":
        found = {name: statistics.mean_defined(values) for name, values in _answers(run, scores).items()}
        floors = found or {"best floor": scores.stored_floor}
    return floors if scores.position is None else {**floors, POSITION_FLOOR: scores.position}


def _answers(run: RunData, scores: Scores) -> dict[str, np.ndarray]:
    """Scores (S, N) of answers without activations on the test images by name; empty if the labels are gone."""
    train, test = in_split(run, "train"), scores.samples.tolist()
    grids = tuple(dict.fromkeys(s.grid for s in scores.sites))
    pooled = _pooled(run, scores.measure.task, (*train, *test), grids) if train else {}
    if not pooled:
        return {}
    from probing.scoring.floors import count_floor

    n, by_grid = len(train), {}
    for grid, (mean, variance, pixels) in pooled.items():
        if scores.measure.task == "saliency":
            counts = np.rint(mean * pixels).astype(np.int32)
            floor = count_floor(counts[:n], counts[n:], pixels)
            by_grid[grid] = {"mean mask": floor.dice, "all foreground": floor.all_foreground}
        else:
            error = np.square(mean[n:] - mean[:n].mean(0)) + variance[n:]
            by_grid[grid] = {FLOOR_NOUNS["depth"]: np.sqrt(error.mean(1))}
    names = next(iter(by_grid.values()))
    return {name: np.stack([by_grid[s.grid][name] for s in scores.sites]) for name in names}


Pooled = dict[tuple[int, int], tuple[np.ndarray, np.ndarray, int]]


def _pooled(run: RunData, task: str, samples: Sequence[int], grids: Sequence[tuple[int, int]]) -> Pooled:
    """Mean and variance (N, T) of the labels in each patch, and pixels of a patch, by grid; empty without labels."""
    from probing.scoring.targets import split_patches

    parts: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray]]] = {g: [] for g in grids}
    pixels = dict.fromkeys(grids, 0)
    centre, std = depth_scale(run) if task == "depth" else (0.0, 1.0)
    for start in range(0, len(samples), CHUNK):
        labels = run.reader.labels(task, samples[start : start + CHUNK]) if run.reader else None
        if labels is None:
            return {}
        values = (labels - centre) / std if task == "depth" else labels > mask_threshold(run)
        for grid in grids:
            patches = split_patches(values.astype(np.float64), grid)
            parts[grid].append((patches.mean(-1), patches.var(-1)))
            pixels[grid] = patches.shape[-1]
    joined = {g: [np.concatenate(column) for column in zip(*own, strict=True)] for g, own in parts.items()}
    return {g: (mean, variance, pixels[g]) for g, (mean, variance) in joined.items()}


def mask_threshold(run: RunData) -> float:
    """Label value above which a pixel is foreground."""
    return float(run.setting("labels.threshold", 0))


def depth_scale(run: RunData) -> tuple[float, float]:
    """Mean and standard deviation that standardise depth: the configured ones, or those of the training split."""
    std = float(run.setting("labels.depth_deviation") or 0)
    if std > 0:
        return float(run.setting("labels.depth_mean") or 0), std
    train = in_split(run, "train")
    depth = run.reader.labels("depth", train) if run.reader and train else None
    if depth is None:
        return 0.0, 1.0
    return float(depth.mean(dtype=np.float64)), max(float(depth.std(dtype=np.float64)), 1e-6)
