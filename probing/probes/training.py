"""The training loop of a batch of probes: many steps, tasks and controls over the same activations at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from probing.probes.batched import Probes
from probing.probes.config import ProbeConfig
from probing.probes.features import Activations, Features
from probing.probes.optimiser import Optimizer, sample_orders
from probing.probes.tasks.heads import Heads

BLOCK = 1 << 18
"""cells of all steps for which a pass without training predicts at once"""


@dataclass(frozen=True)
class Bank:
    """The labels of all heads of a batch: consecutive runs of heads, one run per task."""

    runs: tuple[tuple[slice, Heads], ...]
    """heads of each task, in order"""

    def loss(self, prediction: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (S, K) and gradients (S, K, n) of predictions (S, K, n) for `samples`."""
        found = [heads.loss(prediction[:, run], samples) for run, heads in self.runs]
        if len(found) == 1:
            return found[0]
        return torch.cat([f[0] for f in found], 1), torch.cat([f[1] for f in found], 1)


@dataclass(frozen=True)
class History:
    """Losses of every epoch, E of them."""

    train: Tensor
    """(E, S, K) mean over the epoch's batches while training"""
    val: Tensor | None
    """(E, S, K) after each epoch, NaN where it was not taken; None without validation samples"""
    chosen: Tensor
    """(S, K) the epoch that counts, from 0"""


def train(
    probes: Probes, features: Features, bank: Bank, parts: dict[str, Tensor], order_seed: int, config: ProbeConfig
) -> History:
    """Trains the probes in place and leaves them at the epoch that `config.selection` picks.

    parts: sample numbers of `train` and, where there are any, `val`."""
    optimizer = Optimizer(config, probes.parameters, probes.factors)
    keeper = _Keeper(probes) if config.selection == "val" else None
    train_losses, val_losses = [], []
    for epoch, order in enumerate(sample_orders(order_seed, len(parts["train"]), config.epochs)):
        samples = parts["train"][order.to(parts["train"].device)]
        train_losses.append(_train_epoch(probes, features, bank, samples, optimizer, config.batch))
        if "val" in parts and _is_checked(epoch, config):
            val_losses.append(mean_loss(probes, features, bank, parts["val"]))
            if keeper is not None:
                keeper.offer(val_losses[-1], epoch)
        elif "val" in parts:
            val_losses.append(torch.full_like(train_losses[-1], torch.nan))
    last = torch.full_like(train_losses[0], config.epochs - 1, dtype=torch.long)
    chosen = last if keeper is None else keeper.restore()
    return History(torch.stack(train_losses), torch.stack(val_losses) if val_losses else None, chosen)


def _train_epoch(
    probes: Probes, features: Features, bank: Bank, samples: Tensor, optimizer: Optimizer, batch: int
) -> Tensor:
    """One pass over `samples` in their order; the mean loss (S, K) over its batches."""
    total: Tensor | float = 0.0
    for part in samples.split(batch):
        x = features.batch(part)
        loss, gradient = bank.loss(probes.forward(x), part)
        optimizer.step(probes.backward(x, gradient))
        total = total + loss * len(part)
    assert isinstance(total, Tensor)
    return total / len(samples)


def _is_checked(epoch: int, config: ProbeConfig) -> bool:
    """Whether the validation loss is taken after this epoch: every so many, and always the last."""
    return (epoch + 1) % config.val_every == 0 or epoch + 1 == config.epochs


class _Keeper:
    """Remembers each probe's parameters at its lowest validation loss."""

    def __init__(self, probes: Probes) -> None:
        self.probes = probes
        self.kept = [p.clone() for p in probes.parameters]
        self.lowest: Tensor | None = None

    def offer(self, loss: Tensor, epoch: int) -> None:
        """Keeps the parameters of those probes whose loss (S, K) is the lowest so far."""
        if self.lowest is None:
            self.lowest = torch.full_like(loss, torch.inf)
            self.chosen = torch.zeros_like(loss, dtype=torch.long)
        better = loss < self.lowest
        self.lowest = torch.where(better, loss, self.lowest)
        self.chosen = torch.where(better, epoch, self.chosen)
        for kept, now in zip(self.kept, self.probes.parameters, strict=True):
            kept.copy_(torch.where(better.view(*better.shape, *[1] * (now.ndim - 2)), now, kept))

    def restore(self) -> Tensor:
        """Puts the kept parameters back; the epoch (S, K) each came from."""
        for kept, now in zip(self.kept, self.probes.parameters, strict=True):
            now.copy_(kept)
        return self.chosen


def blocks(features: Features, samples: Tensor) -> Iterator[Tensor]:
    """Runs of samples small enough for one pass."""
    return iter(samples.split(max(1, BLOCK // (features.steps * features.cells))))


def mean_loss(probes: Probes, features: Features, bank: Bank, samples: Tensor) -> Tensor:
    """Mean loss (S, K) over `samples`, nothing trained."""
    found = [bank.loss(probes.forward(features.batch(part)), part)[0] * len(part) for part in blocks(features, samples)]
    return torch.stack(found).sum(0) / len(samples)


def predictions(probes: Probes, features: Features, samples: Tensor) -> Tensor:
    """Predictions (S, K, samples, T); of two outputs their difference."""
    found = [probes.forward(features.batch(part)) for part in blocks(features, samples)]
    return torch.cat(found, 2).unflatten(2, (-1, features.cells))


def root_mean_squares(features: Activations, samples: Tensor) -> Tensor:
    """(S) root mean square of the activations of `samples`; not finite where they are not."""
    norms = [torch.linalg.vector_norm(x, dim=(1, 2)) for _, x in features.batch(samples).slabs()]
    total = torch.stack(norms).double().square().sum(0)
    values = len(samples) * features.cells * features.channels
    return (total / values).sqrt().to(features.dtype)
