"""Answers that ignore the activations, scored on test images: what a probe has to beat. Also label scaling."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from sweeps.analysis.scores import Scores
from sweeps.analysis.tables import RunData, Site
from sweeps.analysis.vocabulary import FLOOR_NOUNS, POSITION_FLOOR


def in_split(run: RunData, part: str) -> list[int]:
    """Kept samples of a part of the split (`train`, `val`, `test`) in ascending order."""
    table = run.table("curation")
    if table is None:
        return []
    kept = pc.and_(table["keep"], pc.equal(table["split"], part))
    return sorted(table.filter(kept)["sample"].to_pylist())


def named_floors(run: RunData, scores: Scores) -> dict[str, np.ndarray]:
    """Mean test scores (S,) by floor, with the position control if it was fitted.

    Depth: the mean depth map of results/probes. Saliency: mean mask and all foreground, from the stored masks; if
    these are gone, only the better one of results/probes.
    """
    floors = {FLOOR_NOUNS["depth"]: scores.stored_floor}
    if scores.measure.task == "saliency":
        floors = _mask_floors(run, scores.sites) or {"best floor": scores.stored_floor}
    return floors if scores.position is None else {**floors, POSITION_FLOOR: scores.position}


def _mask_floors(run: RunData, sites: tuple[Site, ...]) -> dict[str, np.ndarray]:
    train, test = (in_split(run, part) for part in ("train", "test"))
    masks = run.reader.labels("saliency", train + test) if run.reader and train and test else None
    if masks is None:
        return {}
    from probing.dataset.split import Split
    from probing.scoring import floors, targets

    split = Split(np.arange(len(train)), np.empty(0, np.int64), np.arange(len(train), len(masks)))
    masks = (masks > mask_threshold(run)).astype(np.uint8)
    by_grid = {g: floors.mask_floor(targets.pool_saliency(masks, g), split) for g in {s.grid for s in sites}}
    return {
        "mean mask": np.array([by_grid[s.grid].dice.mean() for s in sites]),
        "all foreground": np.array([by_grid[s.grid].all_foreground.mean() for s in sites]),
    }


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
