"""Pools full-size labels to a site's grid of cells, keeping exactly what losses and scores need (numpy only).

A prediction enlarged by nearest neighbour repeats one value over all pixels of a cell, so every loss and
score over pixels follows from a few numbers per cell: foreground counts, means, variances, sorted values
and rank sums. Notation: N samples, an image of H x W pixels, a grid of h x w = T cells of K pixels each.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Grid = tuple[int, int]
"""height and width of a site's grid in cells"""


@dataclass(frozen=True, eq=False)
class SaliencyTargets:
    """Foreground masks pooled to a grid."""

    grid: Grid
    """height and width in cells"""
    pixels: int
    """K, pixels in one cell"""
    counts: NDArray[np.int32]
    """(N, T) foreground pixels of each cell, cells row by row"""
    task: str = "saliency"
    """name in the task registry"""

    def __len__(self) -> int:
        return len(self.counts)


@dataclass(frozen=True, eq=False)
class DepthTargets:
    """Depth maps pooled to a grid."""

    grid: Grid
    """height and width in cells"""
    pixels: int
    """K, pixels in one cell"""
    values: NDArray[np.float32]
    """(N, T, K) every cell's pixels, ascending"""
    mean: NDArray[np.float64]
    """(N, T) mean of each cell"""
    variance: NDArray[np.float64]
    """(N, T) population variance inside each cell"""
    rank_sums: NDArray[np.float64]
    """(N, T) sum over the cell of the pixels' tie-averaged ranks (1 to H*W) within the image"""
    rank_squares: NDArray[np.float64]
    """(N,) sum over the image of the squared centred ranks"""
    inside: NDArray[np.float64] | None = None
    """(3, N, T) pixels of the object in each cell, the sum of their depths and of its squares; None without masks"""
    task: str = "depth"
    """name in the task registry"""
    cache: dict[object, object] = field(default_factory=dict, repr=False)
    """tensors made from these arrays, by kind and device, so that every site of this grid shares them"""

    def __len__(self) -> int:
        return len(self.mean)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "cache": {}}


Targets = SaliencyTargets | DepthTargets


def split_cells(maps: NDArray, grid: Grid) -> NDArray:
    """Cuts maps (N, H, W) into cells: a view or copy (N, T, K), cells and their pixels row by row.

    Raises ValueError where the image is no whole multiple of the grid."""
    if maps.ndim != 3:
        raise ValueError(f"labels must be (samples, height, width), not {maps.shape}")
    count, height, width = maps.shape
    rows, columns = grid
    if rows < 1 or columns < 1 or height % rows or width % columns:
        raise ValueError(
            f"labels of {height} x {width} pixels do not divide into a grid of {rows} x {columns} cells:"
            " choose an image size that is a whole multiple of the grid"
        )
    cells = maps.reshape(count, rows, height // rows, columns, width // columns)
    return cells.transpose(0, 1, 3, 2, 4).reshape(count, rows * columns, -1)


def pool_saliency(masks: NDArray[np.uint8], grid: Grid, threshold: int = 0) -> SaliencyTargets:
    """Counts each cell's foreground pixels, those above `threshold` (0 to 254; the paper's is 0).

    masks: (N, H, W). Images without any foreground are kept: see metrics.py for what they score."""
    if not 0 <= threshold < 255:
        raise ValueError(f"saliency threshold must be in 0..254, not {threshold}")
    cells = split_cells(np.asarray(masks) > threshold, grid)
    return SaliencyTargets(grid, cells.shape[2], cells.sum(axis=2, dtype=np.int32))


def pixel_ranks(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Ranks every pixel within its image, ties averaged: (N, H, W) with values 1 to H*W.

    float32 holds these exactly (halves below 2**23). Give the result to pool_depth for several grids."""
    flat = depth.reshape(len(depth), -1)
    ranks = np.empty(flat.shape, dtype=np.float32)
    for image, out in zip(flat, ranks, strict=True):
        order = np.argsort(image)
        ordered = image[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        ends = np.append(starts[1:], len(ordered))
        out[order] = np.repeat((starts + ends + 1) / 2, ends - starts)
    return ranks.reshape(depth.shape)


def pool_depth(
    depth: NDArray[np.float32],
    grid: Grid,
    ranks: NDArray[np.float32] | None = None,
    masks: NDArray[np.bool_] | None = None,
) -> DepthTargets:
    """Pools standardised depth maps (N, H, W); `ranks` as pixel_ranks(depth) gives them, to save time.

    masks: (N, H, W) the salient objects, for the scores of object and background alone.
    Raises ValueError where a label is not finite or the masks are of another shape."""
    if masks is not None and masks.shape != depth.shape:
        raise ValueError(f"masks of {masks.shape} do not fit depth labels of {depth.shape}: give one mask per label")
    depth = np.ascontiguousarray(depth, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(depth).all(axis=(1, 2)))
    if len(bad):
        raise ValueError(f"depth label of sample {bad[0]} is not finite: label or drop that sample again")
    cells = split_cells(depth, grid)
    ranks = pixel_ranks(depth) if ranks is None else ranks
    middle = (depth[0].size + 1) / 2
    return DepthTargets(
        grid=grid,
        pixels=cells.shape[2],
        values=np.sort(cells, axis=2),
        mean=cells.mean(axis=2, dtype=np.float64),
        variance=_variance(cells),
        rank_sums=split_cells(ranks, grid).sum(axis=2, dtype=np.float64),
        rank_squares=np.square(ranks - middle, dtype=np.float64).sum(axis=(1, 2)),
        inside=None if masks is None else _inside(cells, split_cells(masks, grid)),
    )


def _inside(cells: NDArray[np.float32], masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Pixels, sum and sum of squares of what the masks choose in each cell, image by image to stay small in memory."""
    found = np.empty((3, *cells.shape[:2]))
    for image, (depth, mask) in enumerate(zip(cells, masks, strict=True)):
        chosen = np.where(mask, depth, 0).astype(np.float64)
        found[:, image] = mask.sum(axis=1), chosen.sum(axis=1), np.square(chosen).sum(axis=1)
    return found


def _variance(cells: NDArray[np.float32]) -> NDArray[np.float64]:
    """Population variance of each cell in float64, image by image to stay small in memory."""
    return np.stack([image.astype(np.float64).var(axis=1) for image in cells])


@dataclass(frozen=True, eq=False)
class Edges:
    """Weights of the smoothness loss, summed over the pixels along each border between two cells.

    The enlarged prediction changes only across cell borders, so these sums are all the loss needs."""

    grid: Grid
    """height and width in cells"""
    across: NDArray[np.float64]
    """(N, h, w-1) between a cell and its right neighbour, divided by H (W-1)"""
    down: NDArray[np.float64]
    """(N, h-1, w) between a cell and the one below, divided by (H-1) W"""


def pool_edges(images: NDArray[np.uint8], grid: Grid) -> Edges:
    """Sums exp(-|dI|) along cell borders; I is each image (N, H, W, 3) min-max scaled to 0..1 (appendix F)."""
    count, height, width, _ = images.shape
    rows, columns = grid
    split_cells(images[..., 0], grid)
    scaled = _unit_range(images)
    right, below = width // columns, height // rows
    across = np.exp(-np.abs(np.diff(scaled, axis=2)).mean(axis=3))[:, :, right - 1 :: right]
    down = np.exp(-np.abs(np.diff(scaled, axis=1)).mean(axis=3))[:, below - 1 :: below]
    across = across.reshape(count, rows, below, columns - 1).sum(axis=2)
    down = down.reshape(count, rows - 1, columns, right).sum(axis=3)
    return Edges(grid, across / max(height * (width - 1), 1), down / max((height - 1) * width, 1))


def _unit_range(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Each image scaled to 0..1 by its own minimum and maximum; a flat image becomes all zero."""
    low = images.min(axis=(1, 2, 3), keepdims=True).astype(np.float64)
    span = images.max(axis=(1, 2, 3), keepdims=True) - low
    return (images - low) / np.where(span > 0, span, 1.0)
