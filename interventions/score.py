"""Scores of edited images: did the scene move to its target, and did the rest stay?

Saliency scores are Dice (more is better), depth scores RMSE of standardised depth (less is better), against the target
label before its scaling to the optimiser's range. Labels are maps (H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from interventions.counterfactual import FromFile, Move, TargetSpec, target_label
from probing.scoring.floors import SMOOTH


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """An image with its labels."""

    image: NDArray[np.uint8]
    """(H, W, 3)"""
    mask: NDArray[np.bool_]
    """(H, W)"""
    depth: NDArray[np.float32]
    """(H, W), standardised"""
    content: frozenset[str] | None = None
    """what the image shows, such as the colours of its objects; None if unknown"""

    def label(self, task: str) -> NDArray:
        """The label (H, W) of a task."""
        return self.mask if task == "saliency" else self.depth


@dataclass(frozen=True, eq=False)
class Case:
    """What an image's edits are scored against."""

    task: str
    before: LabelledImage
    """the unedited image"""
    targets: NDArray
    """(trials, H, W) target labels"""
    mirrors: list[NDArray | None]
    """for each trial the label of the opposite move; None if there is none"""
    regions: NDArray[np.bool_]
    """(trials, H, W) where the object is in the target"""


def make_case(task: str, before: LabelledImage, targets: Sequence[TargetSpec]) -> Case:
    """Target labels, opposite moves and target regions of an image."""
    labels = (before.mask, before.depth)
    opposite = [Move(-t.dx, -t.dy) if isinstance(t, Move) else None for t in targets]
    mirrors = [target_label(move, task, *labels) if move else None for move in opposite]
    target_labels = np.stack([target_label(t, task, *labels) for t in targets])
    if task == "saliency":
        return Case(task, before, target_labels, mirrors, target_labels)
    # a depth map from a file does not show where its object is: take the original place
    moved = [target_label(t, "saliency", *labels) if not isinstance(t, FromFile) else before.mask for t in targets]
    return Case(task, before, target_labels, mirrors, np.stack(moved))


def agreement(task: str, left: NDArray, right: NDArray) -> float:
    """Dice of two masks (1 if both are empty), or RMSE of two depth maps."""
    if task == "saliency":
        overlap, size = np.count_nonzero(left & right), np.count_nonzero(left) + np.count_nonzero(right)
        return float((2 * overlap + SMOOTH) / (size + SMOOTH))
    return float(np.sqrt(np.square(left.astype(np.float64) - right).mean()))


def constant_like(task: str, label: NDArray) -> NDArray:
    """The constant map of a label's shape: all foreground, or the label's mean depth."""
    return np.ones_like(label) if task == "saliency" else np.full_like(label, label.mean())


def pearson(left: NDArray, right: NDArray) -> float | None:
    """Correlation over pixels; None if one of the maps is constant."""
    left, right = (a.astype(np.float64) - a.mean(dtype=np.float64) for a in (left, right))
    size = np.sqrt(np.square(left).sum() * np.square(right).sum())
    return float((left * right).sum() / size) if size > 1e-12 else None


def standardised_rmse(target: NDArray, label: NDArray) -> float | None:
    """RMSE of two depth maps, each standardised over its own pixels; None if one of them is constant."""
    correlation = pearson(target, label)
    return None if correlation is None else float(np.sqrt(max(2 - 2 * correlation, 0.0)))


def aligned_rmse(target: NDArray, label: NDArray) -> float:
    """RMSE to the target depth map after the best scale and shift; a constant map gives the target's std."""
    correlation = pearson(target, label) or 0.0
    return float(target.std(dtype=np.float64) * np.sqrt(max(1 - correlation**2, 0.0)))


def centre(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean (row, column) of a mask; NaN if it is empty."""
    pixels = np.argwhere(mask)
    return pixels.mean(axis=0) if len(pixels) else np.full(2, np.nan)


def shift_share(before: NDArray, target: NDArray, after: NDArray) -> float | None:
    """Share of the intended shift of the mask's centre that was reached; None if undefined."""
    start, intended, reached = (centre(mask) for mask in (before, target, after))
    way = intended - start
    share = (reached - start) @ way / (way @ way) if way @ way > 0 else np.nan
    return float(share) if np.isfinite(share) else None


def slope(before: NDArray, target: NDArray, after: NDArray) -> float | None:
    """Slope over pixels of the measured on the intended change of a label; None if no change was intended.

    1: the whole change; 0: none of it. Constant maps cannot score well.
    """
    intended, measured = (label.astype(np.float64) - before for label in (target, after))
    intended = intended - intended.mean()
    square = np.square(intended).sum()
    return float((intended * measured).sum() / square) if square > 1e-12 else None


def outside(case: Case, trial: int, after: LabelledImage) -> tuple[float | None, float | None]:
    """Mean change of pixels (0..1) and of the label outside both the original and the target object."""
    free = ~(case.regions[trial] | case.before.mask)
    if not free.any():
        return None, None
    pixels = np.abs(after.image.astype(np.float32) - case.before.image)[free].mean() / 255
    old, new = (labelled.label(case.task).astype(np.float32) for labelled in (case.before, after))
    return float(pixels), float(np.abs(new - old)[free].mean())


def score_row(case: Case, trial: int, after: LabelledImage) -> dict[str, float | None]:
    """The columns of a row of the results that follow from labels and images; None if undefined."""
    task, before, target, mirror = case.task, case.before, case.targets[trial], case.mirrors[trial]
    old, new = before.label(task), after.label(task)
    constant = constant_like(task, target)
    outside_change, outside_label = outside(case, trial, after)
    depth, known = task == "depth", before.content is not None and after.content is not None
    return {
        "score_before": agreement(task, target, old),
        "score_after": agreement(task, target, new),
        "mirror_after": None if mirror is None else agreement(task, mirror, new),
        "original_after": agreement(task, old, new),
        "constant_after": agreement(task, constant, new),
        "pearson_after": pearson(target, new),
        "area_before": float(before.mask.mean()),
        "area_target": float(case.regions[trial].mean()),
        "area_after": float(after.mask.mean()),
        "outside_change": outside_change,
        "others_before": _others(case, trial, old),
        "others_after": _others(case, trial, new),
        "floor": agreement(task, target, constant),
        "shift_share": shift_share(before.mask, case.regions[trial], after.mask),
        "slope": slope(old, target, new),
        "outside_label": outside_label,
        "content_kept": float(before.content == after.content) if known else None,
        **_object_depths(case, trial, after),
        # the paper does not state the scale of its depth scores (1.02 and 0.63)
        "own_scale_before": standardised_rmse(target, old) if depth else None,
        "own_scale_after": standardised_rmse(target, new) if depth else None,
        "aligned_before": aligned_rmse(target, old) if depth else None,
        "aligned_after": aligned_rmse(target, new) if depth else None,
    }


def _others(case: Case, trial: int, label: NDArray) -> float | None:
    """Mean agreement with the target labels of the image's other trials; None if there are none."""
    scores = [agreement(case.task, target, label) for i, target in enumerate(case.targets) if i != trial]
    return float(np.mean(scores)) if scores else None


def _object_depths(case: Case, trial: int, after: LabelledImage) -> dict[str, float | None]:
    """Median target depth, depth before and depth after where only the target has an object (appendix E)."""
    new = case.regions[trial] & ~case.before.mask
    maps = {"depth_wanted": case.targets[trial], "depth_before": case.before.depth, "depth_after": after.depth}
    if case.task != "depth" or not new.any():
        return dict.fromkeys(maps)
    return {name: float(np.median(depth[new])) for name, depth in maps.items()}
