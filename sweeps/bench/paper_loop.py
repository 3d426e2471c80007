"""The paper's probe training as its authors run it: one probe at a time on full-size pixels.

Slow on purpose: the baseline of `bench probes`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

TEST_BATCH = 32
"""samples in one batch of the test pass"""


@dataclass(frozen=True, eq=False)
class PaperProbe:
    """A probe trained the paper's way."""

    weights: NDArray[np.float32]
    """(O, C)"""
    train_losses: list[float]
    """mean over pixels, per epoch"""
    scores: list[float]
    """mean Dice (saliency) or RMSE (depth) over test samples, after every epoch"""


def paper_probe(
    acts: Tensor,
    labels: Tensor,
    grid: tuple[int, int],
    task: str,
    train: Tensor,
    test: Tensor,
    orders: list[Tensor],
    start: int,
    lr: float = 1e-3,
    batch: int = 4,
) -> PaperProbe:
    """Train one bias-free linear probe (section 3.1, appendix A) and score the test split after every epoch.

    acts: (N, T, C) float. labels: (N, H, W), int64 0 or 1 for saliency, float for depth. orders: permutations
    of the training samples, one per epoch. All of them are on one device. start: seed of nn.Linear's default
    initialisation.
    """
    torch.manual_seed(start)
    probe = nn.Linear(acts.shape[2], 2 if task == "saliency" else 1, bias=False).to(acts.device)
    optimizer = torch.optim.Adam(probe.parameters(), lr=lr)

    def predict(samples: Tensor) -> Tensor:
        """Outputs (n, O, H, W), enlarged by nearest neighbour."""
        maps = probe(acts[samples]).transpose(1, 2).unflatten(2, grid)
        return functional.interpolate(maps, size=tuple(labels.shape[1:]), mode="nearest")

    losses, scores = [], []
    for order in orders:
        total = 0.0
        for samples in train[order].split(batch):
            optimizer.zero_grad()
            prediction = predict(samples)
            if task == "saliency":
                loss = functional.cross_entropy(prediction, labels[samples])
            else:
                loss = functional.huber_loss(prediction[:, 0], labels[samples])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(samples)
        losses.append(total / len(train))
        with torch.no_grad():
            parts = [_score(task, predict(samples), labels[samples]) for samples in test.split(TEST_BATCH)]
        scores.append(torch.cat(parts).mean().item())
    return PaperProbe(probe.weight.detach().cpu().numpy(), losses, scores)


def _score(task: str, prediction: Tensor, label: Tensor) -> Tensor:
    """Dice or RMSE of each image (n)."""
    if task == "saliency":
        chosen = prediction.argmax(1)
        overlap = (chosen * label).sum((1, 2))
        return (2 * overlap + 1e-8) / (chosen.sum((1, 2)) + label.sum((1, 2)) + 1e-8)
    return (prediction[:, 0] - label).square().mean((1, 2)).sqrt()
