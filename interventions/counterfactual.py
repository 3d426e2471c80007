"""Counterfactual labels: what the scene would look like had the object been moved (numpy only).

A move (dx, dy) is in whole pixels, +dx to the right and +dy down. Labels are maps (H, W).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    """The whole scene shifted (section 5.1)."""

    dx: int
    """pixels to the right"""
    dy: int
    """pixels down"""

    @property
    def mirrored(self) -> Move:
        """The opposite move."""
        return Move(-self.dx, -self.dy)


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
    """the file; `.npy` depth is taken as standardised inverse depth"""
    sha256: str = ""
    """checksum that the file must have; empty means any"""


Goal = Move | SecondObject | FromFile
_KINDS: dict[str, type] = {"move": Move, "second_object": SecondObject, "file": FromFile}


def goal_values(goal: Goal) -> dict[str, dict[str, Any]]:
    """A goal as plain values, such as {"move": {"dx": 24, "dy": -25}}."""
    name = next(name for name, kind in _KINDS.items() if isinstance(goal, kind))
    return {name: asdict(goal)}


def goal_from(values: Any) -> Goal:
    """A goal from plain values. Raises ValueError for unknown kinds and keys."""
    if not isinstance(values, Mapping) or len(values) != 1 or next(iter(values)) not in _KINDS:
        raise ValueError(f"goal {values!r}: write one of {', '.join(_KINDS)} with its keys")
    (name, inner), *_ = values.items()
    try:
        return _KINDS[name](**inner)
    except TypeError:
        keys = ", ".join(f.name for f in fields(_KINDS[name]))
        raise ValueError(f"goal {name}: {inner!r} does not fit; its keys are {keys}") from None


def sealed(goal: Goal) -> Goal:
    """The goal with its file's checksum filled in."""
    if not isinstance(goal, FromFile) or goal.sha256:
        return goal
    return replace(goal, sha256=_checksum(Path(goal.path)))


def _checksum(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


@dataclass(frozen=True, eq=False)
class Labels:
    """What the labellers say of one image."""

    mask: NDArray[np.bool_]
    """(H, W) salient object"""
    depth: NDArray[np.float32]
    """(H, W) standardised inverse depth"""


def target(goal: Goal, task: str, labels: Labels) -> NDArray:
    """The wanted label (H, W): bool for saliency, float32 standardised depth for depth."""
    if isinstance(goal, FromFile):
        if goal.sha256 and goal.sha256 != _checksum(Path(goal.path)):
            raise ValueError(f"{goal.path}: is not the file that the intervention was made with")
        read = read_mask if task == "saliency" else read_depth
        return read(Path(goal.path), labels.mask.shape)
    if isinstance(goal, SecondObject):
        mask, depth = second_object(labels, goal)
        return mask if task == "saliency" else depth
    if task == "saliency":
        return shift_mask(labels.mask, goal)
    return shift_depth(labels.depth, goal)


def shift_mask(mask: NDArray, move: Move) -> NDArray:
    """The mask moved; what comes into view is background."""
    rows, columns = (_source(n, d) for n, d in zip(mask.shape, (move.dy, move.dx), strict=True))
    moved = mask[np.clip(rows, 0, mask.shape[0] - 1)][:, np.clip(columns, 0, mask.shape[1] - 1)]
    inside = ((rows >= 0) & (rows < mask.shape[0]))[:, None] & (columns >= 0) & (columns < mask.shape[1])
    return np.where(inside, moved, np.zeros((), mask.dtype))


def shift_depth(depth: NDArray[np.float32], move: Move) -> NDArray[np.float32]:
    """The depth map moved; what comes into view repeats the edge (section 5.1).

    As in the authors' code, a positive move fills from row or column shift + 1 of the moved map (the
    second of the original), a negative one from shift - 1 (the last of the original).
    """
    rows, columns = (_filled(n, d) for n, d in zip(depth.shape, (move.dy, move.dx), strict=True))
    return depth[rows][:, columns]


def _source(size: int, shift: int) -> NDArray[np.int64]:
    """Where each row of a moved map comes from; outside 0..size-1 where it comes into view."""
    return np.arange(size) - shift


def _filled(size: int, shift: int) -> NDArray[np.int64]:
    if abs(shift) > size - 2:
        raise ValueError(f"a move of {shift} pixels leaves nothing of a depth map of {size} pixels")
    source = _source(size, shift)
    return np.where(source < 0, 1, np.minimum(source, size - 1))


def scale_range(depth: NDArray[np.float32], span: float = 9.0) -> NDArray[np.float32]:
    """Each map (..., H, W) min-max scaled to -span..span; span 0 leaves it as it is; a flat map is 0."""
    if span == 0:
        return depth
    low, high = (f(depth, axis=(-2, -1), keepdims=True).astype(np.float64) for f in (np.min, np.max))
    width = np.where(high > low, high - low, 1.0)
    scaled = (depth - low) / width * (2 * span) - span
    return np.where(high > low, scaled, 0.0).astype(np.float32)


def second_object(labels: Labels, goal: SecondObject) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Mask of both objects and depth with a copy pasted in; the nearer of the two hides the other.

    The copy is the object enlarged by nearest neighbour about the middle of its box, then moved.
    Raises ValueError where there is no object or the copy lies outside the image.
    """
    rows, columns = np.nonzero(labels.mask)
    if not len(rows):
        raise ValueError("second object: the image has no salient object to copy")
    inside, values = _resized(labels, goal, rows, columns)
    if not inside.any():
        raise ValueError(f"second object: dx {goal.dx}, dy {goal.dy} put it outside the image")
    hidden = labels.mask & (labels.depth > values)
    depth = np.where(inside & ~hidden, values, labels.depth)
    return labels.mask | inside, depth.astype(np.float32)


def _resized(
    labels: Labels, goal: SecondObject, rows: NDArray, columns: NDArray
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Where the copy is, and its depth there."""
    if not 0 < goal.scale < np.inf:
        raise ValueError(f"second object: scale {goal.scale} must be a positive number")
    found = []
    for axis, (places, move) in enumerate(((rows, goal.dy), (columns, goal.dx))):
        middle = (places.min() + places.max()) / 2
        wanted = np.arange(labels.mask.shape[axis]) - middle - move
        found.append(np.rint(wanted / goal.scale + middle).astype(np.int64))
    inside = np.ones(labels.mask.shape, dtype=bool)
    for axis, source in enumerate(found):
        within = (source >= 0) & (source < labels.mask.shape[axis])
        inside &= within[:, None] if axis == 0 else within
    y, x = (np.clip(s, 0, n - 1) for s, n in zip(found, labels.mask.shape, strict=True))
    return inside & labels.mask[y][:, x], labels.depth[y][:, x] - np.float32(goal.back)


def read_mask(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask from a picture or `.npy`: above half of its range is foreground."""
    values = _read(path, size)
    limit = 0 if values.dtype == bool else 127 if values.dtype == np.uint8 else 0.5
    return values > limit


def read_depth(path: Path, size: tuple[int, int]) -> NDArray[np.float32]:
    """Depth from `.npy` as it is, or from a picture standardised over its pixels."""
    values = _read(path, size).astype(np.float32)
    if path.suffix != ".npy":
        values = (values - values.mean()) / max(float(values.std()), 1e-6)
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: depth is not finite; give finite numbers")
    return values


def _read(path: Path, size: tuple[int, int]) -> NDArray:
    """Grey values (H, W) of a file. Raises ValueError where it is unreadable or has another size."""
    from PIL import Image

    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            values = np.asarray(Image.open(path).convert("L"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no readable picture or .npy file: {error}") from error
    if values.shape != tuple(size):
        have, need = (" x ".join(map(str, shape)) for shape in (values.shape, size))
        raise ValueError(f"{path}: is {have} pixels, the image {need}; give a label of that size")
    return values


def move_range(size: int) -> NDArray[np.int64]:
    """Allowed moves along an axis of `size` pixels: [-120,-90) and [90,120) of 512, scaled."""
    low, high = LOW * size / REFERENCE, HIGH * size / REFERENCE
    down = np.arange(np.ceil(-high), np.ceil(-low), dtype=np.int64)
    return np.concatenate([down, np.arange(np.ceil(low), np.ceil(high), dtype=np.int64)])


def authors_moves(task: str, images: int, moves: int, size: tuple[int, int]) -> list[list[Move]]:
    """The authors' own draws for the first `images` test images, in order of their test CSV.

    One stream for all images: dx then dy, pairs that an image has already are drawn again.
    """
    stream = np.random.RandomState(AUTHORS_SEEDS[task])
    across, along = move_range(size[1]), move_range(size[0])
    found: list[list[Move]] = [[] for _ in range(images)]
    for mine in found:
        while len(mine) < moves:
            move = Move(int(stream.choice(across)), int(stream.choice(along)))
            if move not in mine:
                mine.append(move)
    return found


def visible_share(mask: NDArray[np.bool_], moves: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of the mask that stays inside the image after each move (M, 2) of (dx, dy); shape (M)."""
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    total[1:, 1:] = mask.cumsum(0).cumsum(1)
    height, width = mask.shape
    left, right = (np.clip(e - moves[:, 0], 0, width) for e in (0, width))
    top, bottom = (np.clip(e - moves[:, 1], 0, height) for e in (0, height))
    seen = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    return seen / max(total[-1, -1], 1)


def draw_moves(mask: NDArray[np.bool_], count: int, seed: Sequence[int]) -> list[Move]:
    """Different moves, uniform among those that keep at least half of the mask visible.

    Where there are too few, the most visible of the others are added; moves that push the whole mask
    out of the image never are. Raises ValueError where not enough are left.
    """
    height, width = mask.shape
    grid = np.stack(np.meshgrid(move_range(width), move_range(height), indexing="ij"), -1)
    pairs = grid.reshape(-1, 2)
    share = visible_share(mask, pairs)
    order = np.random.default_rng(list(seed)).permutation(len(pairs))
    order = order[np.argsort(-np.minimum(share[order], VISIBLE), kind="stable")]
    chosen = [i for i in order[:count] if share[i] > 0]
    if len(chosen) < count:
        raise ValueError(f"{len(chosen)} moves keep the object in the image, {count} are wanted")
    return [Move(int(dx), int(dy)) for dx, dy in pairs[chosen]]


def second_objects(mask: NDArray[np.bool_]) -> list[SecondObject]:
    """A copy beside the object, on the side with more room, at ever greater depth (appendix E).

    Raises ValueError where there is no object.
    """
    columns, width = np.flatnonzero(mask.any(axis=0)), mask.shape[1]
    if not len(columns):
        raise ValueError("second object: the image has no salient object to copy")
    first, last = int(columns[0]), int(columns[-1])
    aside = min(last - first + 1 + width // 32, 3 * width // 8)
    to_right = width - 1 - last >= first
    return [SecondObject(aside if to_right else -aside, 0, scale, back) for scale, back in SERIES]


def path_across(extent: float, frames: int, size: tuple[int, int]) -> list[Move]:
    """Moves from left to right through the original place, `extent` of the width to either side."""
    reach = extent * size[1]
    return [Move(round(dx), 0) for dx in np.linspace(-reach, reach, frames)]
