"""What the picture's surface tells: inputs for linear probes made of the latents alone, without the network.

A representation of the scene must be read better from activations than from these.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

SURFACE_CONTROLS = {"surface_point": 1, "surface": 5}
"""control -> side in latent cells of the neighbourhood that a probe sees in x_t and in x0"""


def feature_count(control: str, channels: int) -> int:
    """Inputs of a probe on latents of `channels`."""
    return 2 * channels * SURFACE_CONTROLS[control] ** 2 + 2


def latent_features(noisy: NDArray, clean: NDArray, grid: tuple[int, int], control: str) -> NDArray[np.float16]:
    """(N, T, features) from x_t after a step and its x0 (N, C, h, w): each cell's neighbourhood, row and column.

    Edges repeat; row and column run from -1 to 1. On a grid coarser than the latents a cell holds the mean over
    the latent cells it covers. Half precision, as recorded activations."""
    reach = SURFACE_CONTROLS[control]
    both = torch.from_numpy(np.concatenate([noisy, clean], 1).astype(np.float32))
    around = functional.unfold(functional.pad(both, [reach // 2] * 4, mode="replicate"), reach)
    maps = functional.adaptive_avg_pool2d(around.unflatten(2, both.shape[2:]), (grid[0], grid[1]))
    rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in grid), indexing="ij")
    place = torch.stack([rows, columns]).expand(len(both), -1, -1, -1)
    return torch.cat([maps, place], 1).flatten(2).transpose(1, 2).contiguous().half().numpy()
