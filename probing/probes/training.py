"""The training loop of a batch of probes: many steps, tasks and controls over the same activations at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from probing.probes.batched import Probes
from probing.probes.config import ProbeConfig
from probing.probes.features import Activations
from probing.probes.optimiser import Optimizer, sample_orders
from probing.probes.tasks.heads import Heads

BLOCK = 1 << 18
"""patches of all steps that a pass without training predicts at once"""


@dataclass(frozen=True)
class HeadRuns:
    """The labels of all heads of a batch: consecutive runs of heads, one run per task."""

    runs: tuple[tuple[slice, Heads], ...]
    """heads of each task, in order"""

    def loss(self, prediction: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (S, K) and gradients (S, K, n) of predictions (S, K, n) for `samples`."""
        parts = [heads.loss(prediction[:, run], samples) for run, heads in self.runs]
        if len(parts) == 1:
            return parts[0]
        return torch.cat([loss for loss, _ in parts], 1), torch.cat([gradient for _, gradient in parts], 1)


@dataclass(frozen=True)
class History:
    """Losses of every epoch, E of them."""

    train: Tensor
    """(E, S, K) mean over the epoch's batches while training"""
    val: Tensor | None
    """(E, S, K) after each epoch, NaN if it was not computed; None without validation samples"""
    chosen: Tensor
    """(S, K) the epoch whose weights are kept, from 0"""


def train(
    probes: Probes,
    features: Activations,
    labels: HeadRuns,
    parts: dict[str, Tensor],
    order_seed: int,
    config: ProbeConfig,
) -> History:
    """Train the probes in place and leave them at the epoch that `config.selection` chooses.

    parts: sample numbers of `train` and, if there are any, `val`."""
    optimizer = Optimizer(config, probes.parameters, probes.factors)
    best = BestParameters(probes) if config.selection == "val" else None
    train_losses, val_losses = [], []
    for epoch, order in enumerate(sample_orders(order_seed, len(parts["train"]), config.epochs)):
        samples = parts["train"][order.to(parts["train"].device)]
        train_losses.append(_train_epoch(probes, features, labels, samples, optimizer, config.batch))
        if "val" not in parts:
            continue
        if (epoch + 1) % config.val_every == 0 or epoch + 1 == config.epochs:
            val_losses.append(mean_loss(probes, features, labels, parts["val"]))
            if best is not None:
                best.update(val_losses[-1], epoch)
        else:
            val_losses.append(torch.full_like(train_losses[-1], torch.nan))
    last = torch.full_like(train_losses[0], config.epochs - 1, dtype=torch.long)
    chosen = last if best is None else best.restore()
    return History(torch.stack(train_losses), torch.stack(val_losses) if val_losses else None, chosen)


def _train_epoch(
    probes: Probes, features: Activations, labels: HeadRuns, samples: Tensor, optimizer: Optimizer, batch: int
) -> Tensor:
    """One pass over `samples` in their order; the mean loss (S, K) over its batches."""
    total: Tensor | float = 0.0
    for part in samples.split(batch):
        x = features.batch(part)
        loss, gradient = labels.loss(probes.forward(x), part)
        optimizer.step(probes.backward(x, gradient))
        total = total + loss * len(part)
    assert isinstance(total, Tensor)
    return total / len(samples)


class BestParameters:
    """Each probe's parameters at its lowest validation loss so far."""

    def __init__(self, probes: Probes) -> None:
        self.parameters = probes.parameters
        self.best = [p.clone() for p in probes.parameters]
        self.lowest: Tensor | None = None

    def update(self, loss: Tensor, epoch: int) -> None:
        """Keep the present parameters of those probes whose loss (S, K) is the lowest so far."""
        if self.lowest is None:
            self.lowest = torch.full_like(loss, torch.inf)
            self.chosen = torch.zeros_like(loss, dtype=torch.long)
        better = loss < self.lowest
        self.lowest = torch.where(better, loss, self.lowest)
        self.chosen = torch.where(better, epoch, self.chosen)
        for best, now in zip(self.best, self.parameters, strict=True):
            best.copy_(torch.where(better.view(*better.shape, *[1] * (now.ndim - 2)), now, best))

    def restore(self) -> Tensor:
        """Put the best parameters back; returns the epoch (S, K) that each comes from."""
        for best, now in zip(self.best, self.parameters, strict=True):
            now.copy_(best)
        return self.chosen


def blocks(features: Activations, samples: Tensor) -> Iterator[Tensor]:
    """Runs of samples small enough for one pass."""
    return iter(samples.split(max(1, BLOCK // (features.steps * features.patches))))


def mean_loss(probes: Probes, features: Activations, labels: HeadRuns, samples: Tensor) -> Tensor:
    """Mean loss (S, K) over `samples`, without training."""
    sums = [
        labels.loss(probes.forward(features.batch(part)), part)[0] * len(part) for part in blocks(features, samples)
    ]
    return torch.stack(sums).sum(0) / len(samples)


def predictions(probes: Probes, features: Activations, samples: Tensor) -> Tensor:
    """Predictions (S, K, samples, T); of two outputs their difference."""
    parts = [probes.forward(features.batch(part)) for part in blocks(features, samples)]
    return torch.cat(parts, 2).unflatten(2, (-1, features.patches))


def root_mean_squares(features: Activations, samples: Tensor) -> Tensor:
    """(S) root mean square of the activations of `samples`; not finite if one of them is not."""
    # a card converts a batch as one slab: of all samples at once it would be larger than what is recorded
    parts = blocks(features, samples) if features.acts.is_cuda else (samples,)
    norms = [torch.linalg.vector_norm(x, dim=(1, 2)) for part in parts for _, x in features.batch(part).slabs()]
    total = torch.stack(norms).double().square().sum(0)
    values = len(samples) * features.patches * features.channels
    return (total / values).sqrt().to(features.dtype)
