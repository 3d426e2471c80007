"""Inputs of the surface controls: linear probes on latents or on decoded pictures, without a network.

A representation of the scene must be predicted better from activations than from these.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from probing.probes.controls import NEIGHBOURHOODS, PICTURE, POINTS

PATCH = 8
"""side in points of the square around a patch: the patch and one and a half patches on every side. With three colours,
row, column and a constant these are 195 inputs, as many as `surface` has (202), so that the two differ in kind alone"""


def feature_count(control: str, channels: int) -> int:
    """Inputs of a probe on latents of `channels`, or on the picture decoded from them."""
    if control == PICTURE:
        return 3 * PATCH**2 + 3
    return 2 * channels * NEIGHBOURHOODS[control] ** 2 + 2


def latent_features(noisy: NDArray, clean: NDArray, grid: tuple[int, int], control: str) -> NDArray[np.float16]:
    """(N, T, features) from x_t after a step and its x0 (N, C, h, w): each patch's neighbourhood, row and column.

    Edges repeat; row and column run from -1 to 1. On a grid coarser than the latents a patch has the mean over
    the latent pixels it covers. Half precision, as recorded activations."""
    reach = NEIGHBOURHOODS[control]
    both = torch.from_numpy(np.concatenate([noisy, clean], 1).astype(np.float32))
    around = functional.unfold(functional.pad(both, [reach // 2] * 4, mode="replicate"), reach)
    maps = around.unflatten(2, both.shape[2:])
    if tuple(grid) != maps.shape[2:]:  # half of the time, for means of one value
        maps = functional.adaptive_avg_pool2d(maps, (grid[0], grid[1]))
    return _by_patch(maps, _coordinates(grid))


def picture_points(images: NDArray[np.uint8], latent: tuple[int, int]) -> NDArray[np.float16]:
    """(N, points, 3) colours in -1..1 of images (N, H, W, 3): POINTS x POINTS means per latent pixel, row by row."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    maps = functional.adaptive_avg_pool2d(pixels, (POINTS * latent[0], POINTS * latent[1]))
    return maps.flatten(2).transpose(1, 2).contiguous().half().numpy()


def picture_features(points: NDArray, latent: tuple[int, int], grid: tuple[int, int]) -> NDArray[np.float16]:
    """(N, T, features) from `picture_points`: the square of points around each patch, its row, column and a constant.

    Edges repeat. On a grid coarser than the latents the points are averaged first, so that a patch has as many.
    The constant takes the place of a bias, which the probes lack: colours, unlike activations, are not centred."""
    maps = torch.from_numpy(np.ascontiguousarray(points, np.float32)).transpose(1, 2)
    maps = maps.unflatten(2, [POINTS * side for side in latent])
    maps = functional.adaptive_avg_pool2d(maps, (POINTS * grid[0], POINTS * grid[1]))
    around = functional.pad(maps, [(PATCH - POINTS) // 2] * 4, mode="replicate")
    squares = functional.unfold(around, PATCH, stride=POINTS).unflatten(2, tuple(grid))
    return _by_patch(squares, torch.cat([_coordinates(grid), torch.ones(1, *grid)]))


def _coordinates(grid: tuple[int, int]) -> Tensor:
    """Row and column from -1 to 1, (2, rows, columns)."""
    return torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, side) for side in grid), indexing="ij"))


def _by_patch(maps: Tensor, shared: Tensor) -> NDArray[np.float16]:
    """(N, T, features) of maps (N, F, rows, columns) and of maps that all images share, (G, rows, columns)."""
    both = torch.cat([maps, shared.expand(len(maps), -1, -1, -1)], 1)
    return both.flatten(2).transpose(1, 2).contiguous().half().numpy()
