"""Counterfactual labels: the label of the scene if the object had been moved (section 5.1; numpy only).

A move (dx, dy) is in whole pixels, +dx to the right and +dy down. Labels are maps (H, W).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from storage.backends import local_path

LOW, HIGH, REFERENCE = 90, 120, 512
"""moves are at least LOW and less than HIGH pixels in an image of REFERENCE pixels (section 5.1)"""
AUTHORS_SEEDS = {"saliency": 123, "depth": 1}
"""seeds of the authors' draws of moves"""
SERIES = ((1.0, 0.0), (0.85, 0.5), (0.7, 1.0), (0.55, 1.5))
"""(scale, back) of a second object that moves away: smaller as it gets farther (appendix E)"""
VISIBLE = 0.5
"""share of the mask that a drawn move must leave inside the image"""


@dataclass(frozen=True, order=True)
class Move:
    """A shift of the whole scene (section 5.1)."""

    dx: int
    """pixels to the right"""
    dy: int
    """pixels down"""


@dataclass(frozen=True)
class SecondObject:
    """A copy of the salient object beside it (appendix E)."""

    dx: int
    """pixels to the right of the first"""
    dy: int
    """pixels below the first"""
    scale: float = 1.0
    """size of the copy relative to the first"""
    back: float = 0.0
    """how much farther away it is, in standardised inverse depth"""


@dataclass(frozen=True)
class FromFile:
    """A user's own label: a grey picture (mask: white is the object; depth: white is near) or `.npy`."""

    path: str
    """the file; depth in `.npy` is standardised inverse depth"""
    sha256: str = ""
    """checksum that the file must have; empty means any"""


TargetSpec = Move | SecondObject | FromFile
"""what a target label is made from"""
_KINDS: dict[str, type[TargetSpec]] = {"move": Move, "second_object": SecondObject, "file": FromFile}


def target_values(target: TargetSpec) -> dict[str, dict[str, object]]:
    """A target as plain values, such as {"move": {"dx": 24, "dy": -25}}."""
    return {next(name for name, kind in _KINDS.items() if isinstance(target, kind)): asdict(target)}


def target_from_values(values: object) -> TargetSpec:
    """A target from plain values. Raises ValueError for unknown kinds and keys."""
    if not isinstance(values, Mapping) or len(values) != 1 or next(iter(values)) not in _KINDS:
        raise ValueError(f"goals: {values!r} is no target; use one of {', '.join(_KINDS)} with its keys")
    ((name, inner),) = values.items()
    try:
        return _KINDS[name](**inner)
    except TypeError:
        keys = ", ".join(field.name for field in fields(_KINDS[name]))
        raise ValueError(f"goals: {name} has no values {inner!r}; its keys are {keys}") from None


def sealed(target: TargetSpec) -> TargetSpec:
    """The target with the checksum of its file. Raises ValueError if the file cannot be read."""
    if not isinstance(target, FromFile) or target.sha256:
        return target
    return replace(target, sha256=_checksum(local_path(target.path, "label")))


def _checksum(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


def target_label(target: TargetSpec, task: str, mask: NDArray[np.bool_], depth: NDArray[np.float32]) -> NDArray:
    """The target label (H, W) of an image with a mask and standardised inverse depth (H, W): bool, or float32 depth.

    Raises ValueError if the target does not fit the image, or its file is unreadable, changed, or of another size.
    """
    if isinstance(target, FromFile):
        if target.sha256 and target.sha256 != _checksum(local_path(target.path, "label")):
            raise ValueError(f"{target.path}: is not the file that the intervention was made with")
        return read_label(local_path(target.path, "label"), task, mask.shape)
    if isinstance(target, SecondObject):
        return second_object(mask, depth, target)[0 if task == "saliency" else 1]
    return shift_mask(mask, target) if task == "saliency" else shift_depth(depth, target)


def shift_mask(mask: NDArray[np.bool_], move: Move) -> NDArray[np.bool_]:
    """The moved mask (H, W); uncovered area is background."""
    rows, columns = (np.arange(size) - shift for size, shift in zip(mask.shape, (move.dy, move.dx), strict=True))
    inside = ((rows >= 0) & (rows < mask.shape[0]))[:, None] & (columns >= 0) & (columns < mask.shape[1])
    return inside & mask.take(rows, axis=0, mode="clip").take(columns, axis=1, mode="clip")


def shift_depth(depth: NDArray[np.float32], move: Move) -> NDArray[np.float32]:
    """The moved depth map (H, W); uncovered area repeats the edge (section 5.1).

    As in the authors' code, a positive move fills from row or column shift + 1 of the moved map (the
    second of the original), a negative one from shift - 1 (the last of the original).
    Raises ValueError if a move leaves fewer than two rows or columns of the map.
    """
    sources = []
    for size, shift in zip(depth.shape, (move.dy, move.dx), strict=True):
        if abs(shift) > size - 2:
            raise ValueError(f"a move of {shift} pixels leaves nothing of a depth map of {size} pixels")
        source = np.arange(size) - shift
        sources.append(np.where(source < 0, 1, np.minimum(source, size - 1)))
    return depth[sources[0]][:, sources[1]]


def scale_range(depth: NDArray[np.float32], span: float = 9.0) -> NDArray[np.float32]:
    """Scale each map (..., H, W) to -span..span (section 5.1); span 0 changes nothing, a flat map becomes 0."""
    if span == 0:
        return depth
    low, high = (f(depth, axis=(-2, -1), keepdims=True).astype(np.float64) for f in (np.min, np.max))
    width = np.where(high > low, high - low, 1.0)
    scaled = (depth - low) / width * (2 * span) - span
    return np.where(high > low, scaled, 0.0).astype(np.float32)


def second_object(
    mask: NDArray[np.bool_], depth: NDArray[np.float32], target: SecondObject
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Mask of both objects and depth with the copy pasted in (H, W); the nearer object hides the other (appendix E).

    The copy is the object scaled by nearest neighbour about the middle of its bounding box, then moved.
    Raises ValueError if there is no object, the copy lies outside the image, or the scale is not positive.
    """
    object_rows, object_columns = np.nonzero(mask)
    if not len(object_rows):
        raise ValueError("second object: the image has no salient object to copy")
    if not 0 < target.scale < np.inf:
        raise ValueError(f"second object: scale {target.scale} must be a positive number")
    height, width = mask.shape
    rows = _source(object_rows, target.dy, target.scale, height)
    columns = _source(object_columns, target.dx, target.scale, width)
    within = ((rows >= 0) & (rows < height))[:, None] & (columns >= 0) & (columns < width)
    pixels = np.ix_(rows.clip(0, height - 1), columns.clip(0, width - 1))
    copied, values = within & mask[pixels], depth[pixels] - np.float32(target.back)
    if not copied.any():
        raise ValueError(f"second object: dx {target.dx}, dy {target.dy} put it outside the image")
    hidden = mask & (depth > values)
    return mask | copied, np.where(copied & ~hidden, values, depth).astype(np.float32)


def _source(occupied: NDArray[np.int64], shift: int, scale: float, size: int) -> NDArray[np.int64]:
    """Index of the original that each of `size` indices of the copy comes from; outside 0..size-1 there is none."""
    middle = (occupied.min() + occupied.max()) / 2
    return np.rint((np.arange(size) - middle - shift) / scale + middle).astype(np.int64)


def read_label(path: Path, task: str, size: tuple[int, int]) -> NDArray:
    """A label (H, W) of a user's file. Raises ValueError if it is unreadable, not finite, or of another size.

    Saliency: values above half of the range are foreground. Depth: `.npy` is taken unchanged, a picture is
    standardised over its pixels.
    """
    try:
        if path.suffix.lower() == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            values = np.asarray(Image.open(path).convert("L"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no readable picture or .npy file: {error}") from error
    if values.shape != tuple(size):
        found, expected = (" x ".join(map(str, shape)) for shape in (values.shape, size))
        raise ValueError(f"{path}: expected {expected} pixels, got {found}; give a label of the image's size")
    if task == "saliency":
        return values > (0 if values.dtype == bool else 127 if values.dtype == np.uint8 else 0.5)
    values = values.astype(np.float32)
    if path.suffix.lower() != ".npy":
        values = (values - values.mean()) / max(float(values.std()), 1e-6)
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: depth is not finite; give finite numbers")
    return values


def move_range(size: int) -> NDArray[np.int64]:
    """Allowed moves along an axis of `size` pixels: [-120,-90) and [90,120) of 512, scaled (section 5.1)."""
    low, high = LOW * size / REFERENCE, HIGH * size / REFERENCE
    negative = np.arange(np.ceil(-high), np.ceil(-low), dtype=np.int64)
    return np.concatenate([negative, np.arange(np.ceil(low), np.ceil(high), dtype=np.int64)])


def authors_moves(task: str, images: int, moves: int, size: tuple[int, int]) -> list[list[Move]]:
    """The authors' own draws for the first `images` test images, in order of their test CSV.

    One stream for all images: dx then dy; a pair that the image already has is drawn again.
    """
    stream = np.random.RandomState(AUTHORS_SEEDS[task])
    horizontal, vertical = move_range(size[1]), move_range(size[0])
    drawn: list[list[Move]] = [[] for _ in range(images)]
    for image_moves in drawn:
        while len(image_moves) < moves:
            move = Move(int(stream.choice(horizontal)), int(stream.choice(vertical)))
            if move not in image_moves:
                image_moves.append(move)
    return drawn


def visible_share(mask: NDArray[np.bool_], moves: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of the mask that stays inside the image after each move (M, 2) of (dx, dy); shape (M)."""
    # summed-area table: the sum over any rectangle of the mask from its four corners
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    total[1:, 1:] = mask.cumsum(0).cumsum(1)
    height, width = mask.shape
    left, right = (np.clip(edge - moves[:, 0], 0, width) for edge in (0, width))
    top, bottom = (np.clip(edge - moves[:, 1], 0, height) for edge in (0, height))
    visible = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    return visible / max(total[-1, -1], 1)


def draw_moves(mask: NDArray[np.bool_], count: int, seed: Sequence[int]) -> list[Move]:
    """Draw different moves, uniform among those that keep at least half of the mask (H, W) visible.

    If these are too few, the most visible of the others are added, but none that pushes the whole mask out of the
    image. Raises ValueError if fewer than `count` remain.
    """
    height, width = mask.shape
    pairs = np.stack(np.meshgrid(move_range(width), move_range(height), indexing="ij"), -1).reshape(-1, 2)
    share = visible_share(mask, pairs)
    order = np.random.default_rng(list(seed)).permutation(len(pairs))
    order = order[np.argsort(-np.minimum(share[order], VISIBLE), kind="stable")]
    chosen = [i for i in order[:count] if share[i] > 0]
    if len(chosen) < count:
        raise ValueError(f"interventions.moves={count}: only {len(chosen)} moves keep the object in the image")
    return [Move(int(dx), int(dy)) for dx, dy in pairs[chosen]]


def second_objects(mask: NDArray[np.bool_]) -> list[SecondObject]:
    """Copies beside the object, on the side with more room, farther and farther away (SERIES, appendix E).

    Raises ValueError if there is no object.
    """
    columns, width = np.flatnonzero(mask.any(axis=0)), mask.shape[1]
    if not len(columns):
        raise ValueError("second object: the image has no salient object to copy")
    first, last = int(columns[0]), int(columns[-1])
    distance = min(last - first + 1 + width // 32, 3 * width // 8)
    to_right = width - 1 - last >= first
    return [SecondObject(distance if to_right else -distance, 0, scale, back) for scale, back in SERIES]


def path_across(extent: float, frames: int, size: tuple[int, int]) -> list[Move]:
    """Moves from left to right through the original place, by up to `extent` of the width of an image (H, W)."""
    reach = extent * size[1]
    return [Move(round(dx), 0) for dx in np.linspace(-reach, reach, frames)]
