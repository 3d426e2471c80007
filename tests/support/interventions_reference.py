"""Slow, simple versions of what interventions compute: full-size pixels, one trial at a time, autograd."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def inner_edit(acts: Tensor, weights: np.ndarray, label: np.ndarray, task: str, lr: float, iterations: int) -> Tensor:
    """Adam on one trial's activations (T, C); probe (O, C [+ 1]); label (H, W). Returns the change."""
    side = round(len(acts) ** 0.5)
    weight = torch.from_numpy(weights).to(acts)
    channels = acts.shape[1]
    moved = acts.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([moved], lr=lr)
    for _ in range(iterations):
        optimizer.zero_grad()
        output = moved @ weight[:, :channels].T
        if weight.shape[1] > channels:
            output = output + weight[:, channels]
        full = output.T.reshape(1, -1, side, side)
        full = full.repeat_interleave(label.shape[0] // side, 2).repeat_interleave(label.shape[1] // side, 3)
        if task == "saliency":
            loss = torch.nn.functional.cross_entropy(full, torch.from_numpy(label)[None].long())
        else:
            loss = torch.nn.functional.huber_loss(full[0, 0], torch.from_numpy(label).to(acts))
        loss.backward()
        optimizer.step()
    return moved.detach() - acts


def authors_shift(depth: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """A depth map moved across, then along, pixel by pixel, with the fills of the authors' code."""
    return _along_rows(_along_rows(depth.T, dx).T, dy)


def _along_rows(depth: np.ndarray, shift: int) -> np.ndarray:
    size, moved = len(depth), np.full_like(depth, np.nan)
    for row in range(size):
        if 0 <= row - shift < size:
            moved[row] = depth[row - shift]
    fill = moved[shift + 1] if shift > 0 else moved[shift - 1]
    for row in range(size):
        if not 0 <= row - shift < size:
            moved[row] = fill
    return moved


def shifted_mask(mask: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """A mask moved pixel by pixel."""
    moved = np.zeros_like(mask)
    for row, column in np.argwhere(mask):
        if 0 <= row + dy < mask.shape[0] and 0 <= column + dx < mask.shape[1]:
            moved[row + dy, column + dx] = True
    return moved
