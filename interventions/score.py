"""Scores edited images: did the scene move where it should, and only there?

Saliency scores are Dice (more is better), depth scores RMSE of standardised depth (less is better),
against the wanted label before its scaling to the optimiser's range. Labels are maps (H, W).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.scoring.floors import SMOOTH


@dataclass(frozen=True, eq=False)
class Seen:
    """An image with its labels."""

    image: NDArray[np.uint8]
    """(H, W, 3)"""
    mask: NDArray[np.bool_]
    """(H, W)"""
    depth: NDArray[np.float32]
    """(H, W), standardised"""
    content: frozenset[str] | None = None
    """what is in the image, such as the colours of its objects; None where nobody looked"""

    def label(self, task: str) -> NDArray:
        """The label of a task."""
        return self.mask if task == "saliency" else self.depth


@dataclass(frozen=True, eq=False)
class Case:
    """What an image's edits are scored against."""

    task: str
    before: Seen
    """the image without an edit"""
    targets: NDArray
    """(trials, H, W) wanted labels"""
    mirrors: list[NDArray | None]
    """for each trial the label of the opposite move; None where there is none"""
    regions: NDArray[np.bool_]
    """(trials, H, W) where the wanted object is"""


def agreement(task: str, left: NDArray, right: NDArray) -> float:
    """Dice of two masks (both empty: 1), or RMSE of two depth maps."""
    if task == "saliency":
        overlap, size = np.count_nonzero(left & right), np.count_nonzero(left) + np.count_nonzero(right)
        return float((2 * overlap + SMOOTH) / (size + SMOOTH))
    return float(np.sqrt(np.square(left.astype(np.float64) - right).mean()))


def constant_like(task: str, label: NDArray) -> NDArray:
    """The map that knows nothing: all foreground, or the mean depth."""
    return np.ones_like(label) if task == "saliency" else np.full_like(label, label.mean())


def pearson(left: NDArray, right: NDArray) -> float | None:
    """Correlation over pixels; None where one of the maps is constant."""
    left, right = (a.astype(np.float64) - a.mean(dtype=np.float64) for a in (left, right))
    size = np.sqrt(np.square(left).sum() * np.square(right).sum())
    return float((left * right).sum() / size) if size > 1e-12 else None


def standardised_rmse(wanted: NDArray, label: NDArray) -> float | None:
    """RMSE of two depth maps, each standardised over its own pixels; None where one of them is constant."""
    together = pearson(wanted, label)
    return None if together is None else float(np.sqrt(max(2 - 2 * together, 0.0)))


def aligned_rmse(wanted: NDArray, label: NDArray) -> float:
    """RMSE to the wanted depth map after the best scale and shift of the other; a constant map fits its mean."""
    together = pearson(wanted, label) or 0.0
    return float(wanted.std(dtype=np.float64) * np.sqrt(max(1 - together**2, 0.0)))


def centre(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean (row, column) of a mask; NaN of an empty one."""
    places = np.argwhere(mask)
    return places.mean(axis=0) if len(places) else np.full(2, np.nan)


def shift_share(before: NDArray, wanted: NDArray, after: NDArray) -> float | None:
    """Share of the wanted shift of the mask's centre that was reached; None where undefined."""
    start, goal, end = (centre(mask) for mask in (before, wanted, after))
    way = goal - start
    share = (end - start) @ way / (way @ way) if way @ way > 0 else np.nan
    return float(share) if np.isfinite(share) else None


def slope(before: NDArray, wanted: NDArray, after: NDArray) -> float | None:
    """Slope over pixels of the change that came on the change that was asked for; None if none was.

    1: all that was asked for; 0: nothing of it. No collapse can feign it: a flat map has no slope of its own.
    """
    asked, came = (label.astype(np.float64) - before for label in (wanted, after))
    asked = asked - asked.mean()
    square = np.square(asked).sum()
    return float((asked * came).sum() / square) if square > 1e-12 else None


def outside(case: Case, trial: int, after: Seen) -> tuple[float | None, float | None]:
    """Mean change of pixels (0..1) and of the label where neither the old nor the wanted object is."""
    free = ~(case.regions[trial] | case.before.mask)
    if not free.any():
        return None, None
    pixels = np.abs(after.image.astype(np.float32) - case.before.image)[free].mean() / 255
    old, new = (seen.label(case.task).astype(np.float32) for seen in (case.before, after))
    return float(pixels), float(np.abs(new - old)[free].mean())


def score_row(case: Case, trial: int, after: Seen) -> dict[str, Any]:
    """The columns of one row that follow from labels and images."""
    task, wanted, mirror = case.task, case.targets[trial], case.mirrors[trial]
    old, new = case.before.label(task), after.label(task)
    constant = constant_like(task, wanted)
    pixels, labels = outside(case, trial, after)
    return {
        "score_before": agreement(task, wanted, old),
        "score_after": agreement(task, wanted, new),
        "mirror_after": None if mirror is None else agreement(task, mirror, new),
        "original_after": agreement(task, old, new),
        "constant_after": agreement(task, constant, new),
        "pearson_after": pearson(wanted, new),
        "area_before": float(case.before.mask.mean()),
        "area_target": float(case.regions[trial].mean()),
        "area_after": float(after.mask.mean()),
        "outside_change": pixels,
        "others_before": _others(case, trial, old),
        "others_after": _others(case, trial, new),
        "floor": agreement(task, wanted, constant),
        "shift_share": shift_share(case.before.mask, case.regions[trial], after.mask),
        "slope": slope(old, wanted, new),
        "outside_label": labels,
        "content_kept": _kept(case.before, after),
        **_object_depths(case, trial, after),
        **_other_scales(task, wanted, old, new),
    }


def _others(case: Case, trial: int, label: NDArray) -> float | None:
    """Mean agreement with the wanted labels of the image's other trials; None where there are none."""
    found = [agreement(case.task, t, label) for i, t in enumerate(case.targets) if i != trial]
    return float(np.mean(found)) if found else None


def _kept(before: Seen, after: Seen) -> float | None:
    """1 where the edited image still holds what the original held, else 0; None where nobody looked."""
    if before.content is None or after.content is None:
        return None
    return float(before.content == after.content)


def _other_scales(task: str, wanted: NDArray, old: NDArray, new: NDArray) -> dict[str, float | None]:
    """Depth scores on other scales, as it is not known which one the paper's 1.02 and 0.63 are on."""
    if task != "depth":
        return dict.fromkeys(("own_scale_before", "own_scale_after", "aligned_before", "aligned_after"))
    return {
        "own_scale_before": standardised_rmse(wanted, old),
        "own_scale_after": standardised_rmse(wanted, new),
        "aligned_before": aligned_rmse(wanted, old),
        "aligned_after": aligned_rmse(wanted, new),
    }


def _object_depths(case: Case, trial: int, after: Seen) -> dict[str, float | None]:
    """Median depth asked for, before and after, where the wanted object covers new ground (appendix E)."""
    names = ("depth_wanted", "depth_before", "depth_after")
    new = case.regions[trial] & ~case.before.mask
    if case.task != "depth" or not new.any():
        return dict.fromkeys(names)
    maps = (case.targets[trial], case.before.depth, after.depth)
    return {name: float(np.median(depth[new])) for name, depth in zip(names, maps, strict=True)}
