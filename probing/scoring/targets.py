"""Full-size labels pooled to the patches of a site's grid, keeping exactly what losses and scores need (numpy only).

A prediction enlarged by nearest neighbour (section 3.1) repeats one value over all pixels of a patch, so every loss
and score over pixels follows from a few numbers per patch: foreground counts, means, variances, sorted values and rank
sums. Shapes: N samples, images of H x W pixels, a grid of h x w = T patches of K pixels each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

Grid = tuple[int, int]
"""height and width of a site's grid in patches"""
Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class SaliencyTargets:
    """Foreground masks pooled to a grid."""

    grid: Grid
    """height and width in patches"""
    pixels: int
    """K, pixels in one patch"""
    counts: NDArray[np.int32]
    """(N, T) foreground pixels of each patch, patches row by row"""

    def __len__(self) -> int:
        return len(self.counts)


@dataclass(frozen=True, eq=False)
class DepthTargets:
    """Depth maps pooled to a grid."""

    grid: Grid
    """height and width in patches"""
    pixels: int
    """K, pixels in one patch"""
    values: NDArray[np.float32]
    """(N, T, K) pixels of each patch, ascending"""
    mean: NDArray[np.float64]
    """(N, T) mean of each patch"""
    variance: NDArray[np.float64]
    """(N, T) population variance inside each patch"""
    rank_sums: NDArray[np.float64]
    """(N, T) sum over the patch of the pixels' tie-averaged ranks (1 to H*W) within the image"""
    rank_squares: NDArray[np.float64]
    """(N,) sum over the image of the squared centred ranks"""
    object_sums: NDArray[np.float64] | None = None
    """(3, N, T) the object's pixels in each patch, the sum of their depths and of its squares; None without masks"""
    cache: dict[object, object] = field(default_factory=dict, repr=False)
    """see `cached`"""

    def __len__(self) -> int:
        return len(self.mean)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "cache": {}}

    def cached(self, key: object, make: Callable[[], Made]) -> Made:
        """What `make` returns, made once per key, so that every site of this grid shares tensors of these arrays."""
        if key not in self.cache:
            self.cache[key] = make()
        return cast(Made, self.cache[key])


Targets = SaliencyTargets | DepthTargets


def split_patches(maps: NDArray, grid: Grid) -> NDArray:
    """Cut maps (N, H, W) into patches: a view or copy (N, T, K), patches and their pixels row by row.

    Raises ValueError if the image is not a whole multiple of the grid."""
    if maps.ndim != 3:
        raise ValueError(f"expected labels of shape (samples, height, width), got {maps.shape}")
    count, height, width = maps.shape
    rows, columns = grid
    if rows < 1 or columns < 1 or height % rows or width % columns:
        raise ValueError(
            f"labels of {height} x {width} pixels do not divide into a grid of {rows} x {columns} patches:"
            " choose an image size that is a whole multiple of the grid"
        )
    patches = maps.reshape(count, rows, height // rows, columns, width // columns)
    return patches.transpose(0, 1, 3, 2, 4).reshape(count, rows * columns, -1)


def pool_saliency(masks: NDArray[np.uint8], grid: Grid, threshold: int = 0) -> SaliencyTargets:
    """Count each patch's foreground pixels, those of masks (N, H, W) above `threshold` (the paper's is 0).

    Images without any foreground are kept; `metrics` defines their scores. Raises ValueError if the threshold is
    outside 0..254 or the grid does not divide the image."""
    if not 0 <= threshold < 255:
        raise ValueError(f"saliency threshold must be in 0..254, not {threshold}")
    patches = split_patches(np.asarray(masks) > threshold, grid)
    return SaliencyTargets(grid, patches.shape[2], patches.sum(axis=2, dtype=np.int32))


def pixel_ranks(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rank every pixel within its image, ties averaged: (N, H, W) with values 1 to H*W.

    float32 represents these exactly (halves below 2**23). Pass the result to pool_depth for several grids."""
    flat = depth.reshape(len(depth), -1)
    ranks = np.empty(flat.shape, dtype=np.float32)
    # about three times faster than scipy.stats.rankdata, whose ranks these are
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
    """Pool standardised depth maps (N, H, W).

    ranks: pixel_ranks(depth), to save time if it is known. masks: (N, H, W) the salient objects, for the scores of
    object and background alone.
    Raises ValueError if a label is not finite or the masks have another shape."""
    if masks is not None and masks.shape != depth.shape:
        raise ValueError(f"masks of {masks.shape} do not fit depth labels of {depth.shape}: give one mask per label")
    depth = np.ascontiguousarray(depth, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(depth).all(axis=(1, 2)))
    if len(bad):
        raise ValueError(f"depth label of sample {bad[0]} is not finite: label or drop that sample again")
    patches = split_patches(depth, grid)
    ranks = pixel_ranks(depth) if ranks is None else ranks
    middle = (depth[0].size + 1) / 2
    return DepthTargets(
        grid=grid,
        pixels=patches.shape[2],
        values=np.sort(patches, axis=2),
        mean=patches.mean(axis=2, dtype=np.float64),
        # image by image, because a float64 copy of all labels would double the memory
        variance=np.stack([image.astype(np.float64).var(axis=1) for image in patches]),
        rank_sums=split_patches(ranks, grid).sum(axis=2, dtype=np.float64),
        rank_squares=np.square(ranks - middle, dtype=np.float64).sum(axis=(1, 2)),
        object_sums=None if masks is None else _object_sums(patches, split_patches(masks, grid)),
    )


def _object_sums(patches: NDArray[np.float32], masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """`DepthTargets.object_sums` of depth and masks (N, T, K), image by image to save memory."""
    sums = np.empty((3, *patches.shape[:2]))
    for image, (depth, mask) in enumerate(zip(patches, masks, strict=True)):
        inside = np.where(mask, depth, 0).astype(np.float64)
        sums[:, image] = mask.sum(axis=1), inside.sum(axis=1), np.square(inside).sum(axis=1)
    return sums


@dataclass(frozen=True, eq=False)
class Edges:
    """Weights of the smoothness loss (appendix F), summed over the pixels along each border between two patches.

    The enlarged prediction changes only across patch borders, so these sums are all that the loss needs."""

    across: NDArray[np.float64]
    """(N, h, w-1) between a patch and its right neighbour, divided by H (W-1)"""
    down: NDArray[np.float64]
    """(N, h-1, w) between a patch and the one below, divided by (H-1) W"""


def pool_edges(images: NDArray[np.uint8], grid: Grid) -> Edges:
    """Sum exp(-|dI|) along patch borders; I is each image (N, H, W, 3) min-max scaled to 0..1 (appendix F).

    Raises ValueError if the image is not a whole multiple of the grid."""
    count, height, width, _ = images.shape
    rows, columns = grid
    split_patches(images[..., 0], grid)
    low = images.min(axis=(1, 2, 3), keepdims=True).astype(np.float64)
    span = images.max(axis=(1, 2, 3), keepdims=True) - low
    span = np.where(span > 0, span, 1.0)

    def weights(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float64]:
        return np.exp(-np.abs((second - low) / span - (first - low) / span).mean(axis=3))

    right, below = width // columns, height // rows
    across = weights(images[:, :, right - 1 : -1 : right], images[:, :, right::right])
    down = weights(images[:, below - 1 : -1 : below], images[:, below::below])
    across = across.reshape(count, rows, below, columns - 1).sum(axis=2)
    down = down.reshape(count, rows - 1, columns, right).sum(axis=3)
    return Edges(across / max(height * (width - 1), 1), down / max((height - 1) * width, 1))


def standardisation(depth: NDArray) -> tuple[float, float]:
    """Mean and standard deviation of the training images' depth (N, H, W), in which depth is predicted and scored."""
    values = depth.astype(np.float64)
    return float(values.mean()), float(max(values.std(), 1e-6))


def standardised(depth: NDArray, mean: float, std: float) -> NDArray[np.float32]:
    """Depth (N, H, W) in standard deviations from the mean."""
    return ((depth - mean) / std).astype(np.float32)


def pool(
    masks: NDArray[np.uint8], depth: NDArray[np.float32], ranks: NDArray[np.float32], grid: Grid, threshold: int
) -> dict[str, Targets]:
    """The labels of all tasks pooled to a grid, by task.

    masks, depth (standardised) and its `pixel_ranks`: (N, H, W). threshold: masks above it are foreground.
    """
    return {
        "saliency": pool_saliency(masks, grid, threshold),
        "depth": pool_depth(depth, grid, ranks, masks > threshold),
    }
