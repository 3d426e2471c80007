"""The registry of tasks: what a probe learns, its loss on pooled labels and its scores.

A further task is one class like those below and one call of `register`. Shapes: S steps, H heads (the probes
of this task in one batch: one per control), N samples, T cells of K pixels, n = batch samples x T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.probes.config import DTYPES, ProbeConfig
from probing.scoring import floors, losses, metrics
from probing.scoring.targets import DepthTargets, Edges, SaliencyTargets, Targets, pixel_ranks


@dataclass(frozen=True)
class Scores:
    """Scores of S x H probes."""

    images: dict[str, Tensor]
    """name -> (S, H, test samples) float64, NaN where undefined"""
    cells: dict[str, Tensor]
    """name -> (S, H) float64, NaN where undefined"""


class Heads(Protocol):
    """The labels of one task for H heads, on the device."""

    def loss(self, prediction: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss (S, H) over the pixels of `samples`, and the gradient of what is optimised (S, H, n)."""
        ...

    def scores(self, predictions: dict[str, Tensor], parts: dict[str, Tensor]) -> Scores:
        """Scores from predictions {part: (S, H, samples, T)} and the parts' sample numbers."""
        ...


class Task(Protocol):
    """Makes the heads of a task."""

    outputs: int

    def __call__(
        self, targets: Targets, rows: NDArray[np.int64], config: ProbeConfig, device: torch.device, edges: Edges | None
    ) -> Heads:
        """rows: (H, N, T) which pooled label each head's cells are given."""
        ...


class SaliencyHeads:
    """Foreground or background of every pixel: cross-entropy, average precision, Dice."""

    outputs = 2

    def __init__(
        self, targets: Targets, rows: NDArray[np.int64], config: ProbeConfig, device: torch.device, edges: Edges | None
    ) -> None:
        if not isinstance(targets, SaliencyTargets):
            raise ValueError("task saliency needs targets made by pool_saliency")
        self.pixels = targets.pixels
        self.counts = torch.from_numpy(targets.counts.reshape(-1)[rows]).to(device)
        self.fraction = (self.counts.double() / targets.pixels).to(DTYPES[config.dtype])

    def loss(self, prediction: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        fraction = self.fraction.index_select(1, samples).flatten(1)
        value, gradient = losses.crossentropy(prediction, fraction)
        return value.mean(2), gradient.div_(fraction.shape[1])

    def scores(self, predictions: dict[str, Tensor], parts: dict[str, Tensor]) -> Scores:
        counts = {name: self.counts.index_select(1, samples) for name, samples in parts.items()}
        test, truth = predictions["test"], counts["test"]
        threshold = metrics.best_threshold(predictions["train"], counts["train"], self.pixels)
        images = {
            "dice": metrics.dice(test > 0, truth, self.pixels),
            "ap": metrics.average_precision(test, truth, self.pixels),
            "dice_threshold": metrics.dice(test > threshold[..., None, None], truth, self.pixels),
            "dice_background": metrics.dice_background(test > 0, truth, self.pixels),
            "oracle_dice": metrics.oracle_dice(truth, self.pixels).expand(test.shape[:-1]),
        }
        cells = {name: images[name].nanmean(2) for name in images}
        cells["floor_dice"] = self._floor(counts["train"], truth).expand(test.shape[:2])
        if "val" in parts:
            cells["val_dice"] = metrics.dice(predictions["val"] > 0, counts["val"], self.pixels).mean(2)
            cells["ap_val"] = metrics.average_precision(predictions["val"], counts["val"], self.pixels).nanmean(2)
        return Scores(images, cells)

    def _floor(self, train: Tensor, test: Tensor) -> Tensor:
        """(H) the better mean test Dice of mean mask and all foreground."""
        mean_mask = floors.mean_mask_scores(train, test, self.pixels)[2].mean(-1)
        return mean_mask.maximum(floors.all_foreground(test, self.pixels).mean(-1))


class DepthHeads:
    """Standardised depth of every pixel: Huber loss, RMSE, correlations."""

    outputs = 1

    def __init__(
        self, targets: Targets, rows: NDArray[np.int64], config: ProbeConfig, device: torch.device, edges: Edges | None
    ) -> None:
        if not isinstance(targets, DepthTargets):
            raise ValueError("task depth needs targets made by pool_depth")
        dtype, self.config, self.targets = DTYPES[config.dtype], config, targets
        self.pixels = losses.cell_pixels(targets, dtype, device)
        self.rows = torch.from_numpy(rows).to(device)
        low, high = (targets.values[:, :, end].astype(np.float64) - targets.mean for end in (0, -1))
        shape = np.stack([targets.mean, (low + high) / 2, (high - low) / 2, targets.variance / 2])
        self.shape = torch.from_numpy(shape.reshape(4, -1)[:, rows]).to(device, dtype)
        self.edges = None
        if config.smoothness:
            if edges is None:
                raise ValueError("probe.smoothness needs the images of the samples")
            self.edges = [torch.from_numpy(e).to(device, dtype) for e in (edges.across, edges.down)]

    def loss(self, prediction: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        mean, *shape = self.shape.index_select(2, samples).flatten(2)
        rows = self.rows.index_select(1, samples).flatten(1)
        value, gradient = losses.huber(prediction - mean, shape, rows, self.pixels, self.config.huber_delta)
        gradient.div_(mean.shape[1])
        if self.edges is not None:
            maps = prediction.unflatten(2, (len(samples), *self.targets.grid))
            _, pull = losses.smoothness(maps, *(edge.index_select(0, samples) for edge in self.edges))
            gradient.add_(pull.flatten(2), alpha=self.config.smoothness)
        return value.mean(2), gradient

    def _truth(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances (H, samples, T) in float64."""
        rows = self.rows.index_select(1, samples).cpu()
        mean, variance = (torch.from_numpy(a).view(-1)[rows] for a in (self.targets.mean, self.targets.variance))
        return mean.to(samples.device), variance.to(samples.device)

    def scores(self, predictions: dict[str, Tensor], parts: dict[str, Tensor]) -> Scores:
        test, (mean, variance) = predictions["test"], self._truth(parts["test"])
        rows = self.rows.index_select(1, parts["test"]).cpu()
        sums = torch.from_numpy(self.targets.rank_sums).view(-1)[rows].to(test.device)
        squares = torch.from_numpy(self.targets.rank_squares)[rows[..., 0] // test.shape[-1]].to(test.device)
        error = metrics.squared_error(test, mean, variance)
        images = {
            "rmse": error.sqrt(),
            "rmse_aligned": metrics.rmse_aligned(test, mean, variance),
            "spearman": metrics.spearman(test, self.targets.pixels, sums, squares),
            "pearson": metrics.pearson(test, mean, variance),
            "oracle_rmse": variance.mean(-1).sqrt().expand(error.shape),
            **self._regions(test, parts["test"], mean, variance),
            "spearman_residual": self._residual_spearman(test, parts),
        }
        cells = {name: images[name].nanmean(2) for name in images}
        train_mean = self._truth(parts["train"])[0].mean(1, keepdim=True)
        floor = metrics.squared_error(train_mean, mean, variance)
        cells["floor_rmse"] = floor.sqrt().mean(1).expand(test.shape[:2])
        cells["skill"] = torch.where(floor.mean(1) > 0, 1 - error.mean(2) / floor.mean(1), torch.nan)
        if "val" in parts:
            val = metrics.squared_error(predictions["val"], *self._truth(parts["val"]))
            cells["val_rmse"] = val.sqrt().mean(2)
        return Scores(images, cells)

    def _regions(self, test: Tensor, samples: Tensor, mean: Tensor, variance: Tensor) -> dict[str, Tensor]:
        """RMSE (S, H, test samples) over the salient object's pixels and over the others, where masks were given."""
        if self.targets.inside is None:
            return {}
        rows = self.rows.index_select(1, samples).cpu()
        inside = torch.from_numpy(self.targets.inside).flatten(1)[:, rows].to(test.device)
        pixels = self.targets.pixels
        whole = torch.stack([torch.full_like(mean, pixels), mean * pixels, (variance + mean.square()) * pixels])
        parts = {"rmse_object": inside, "rmse_background": whole - inside}
        return {name: metrics.squared_error_inside(test, *part).sqrt() for name, part in parts.items()}

    def _residual_spearman(self, test: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """Spearman (S, H, test samples) of prediction and label, both minus the training samples' mean depth map.

        Only of heads with the images' own labels; NaN for those whose labels were moved about."""
        train, chosen = (parts[name].cpu().numpy() for name in ("train", "test"))
        own = torch.arange(self.rows[0].numel(), device=self.rows.device).view_as(self.rows[0])
        heads = [h for h, rows in enumerate(self.rows) if torch.equal(rows, own)]
        found = torch.full(test.shape[:-1], torch.nan, dtype=torch.float64, device=test.device)
        if heads:
            mean, sums, squares = (a.to(test.device) for a in residual_ranks(self.targets, train, chosen))
            found[:, heads] = metrics.spearman(test[:, heads].double() - mean, self.targets.pixels, sums, squares)
        return found


class ResidualRanks(NamedTuple):
    """The training samples' mean depth map, and ranks of test labels minus it; float64 on the CPU."""

    mean: Tensor
    """(T) the map"""
    sums: Tensor
    """(test, T) rank sums of each cell"""
    squares: Tensor
    """(test) centred squares"""


def residual_ranks(targets: DepthTargets, train: NDArray[np.int64], test: NDArray[np.int64]) -> ResidualRanks:
    """What the residual's rank correlation needs of the labels, made once per targets and split."""
    key = ("residual_ranks", train.tobytes(), test.tobytes())
    if key not in targets.cache:
        mean = targets.mean[train].mean(axis=0)
        ranks = pixel_ranks(targets.values[test] - mean[:, None])
        middle = (ranks[0].size + 1) / 2
        squares = np.square(ranks - middle, dtype=np.float64).sum(axis=(1, 2))
        sums = ranks.sum(axis=2, dtype=np.float64)
        targets.cache[key] = ResidualRanks(*(torch.from_numpy(a) for a in (mean, sums, squares)))
    found = targets.cache[key]
    assert isinstance(found, ResidualRanks)
    return found


TASKS: dict[str, Task] = {}


def register(name: str, task: Task) -> None:
    """Makes a task known by name to fit_site."""
    TASKS[name] = task


register("saliency", SaliencyHeads)
register("depth", DepthHeads)
