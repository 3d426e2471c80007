"""The saliency task: foreground or background of every pixel (section 3.1). Shapes: see `heads`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.probes.config import ProbeConfig
from probing.probes.optimiser import dtype_of
from probing.probes.tasks.heads import Scores
from probing.scoring import floors, losses, metrics
from probing.scoring.targets import Edges, SaliencyTargets, Targets


class SaliencyHeads:
    """Cross-entropy, Dice and average precision of foreground masks."""

    outputs = 2

    def __init__(
        self, targets: Targets, rows: NDArray[np.int64], config: ProbeConfig, device: torch.device, edges: Edges | None
    ) -> None:
        if not isinstance(targets, SaliencyTargets):
            raise ValueError("task saliency needs targets made by pool_saliency")
        self.pixels = targets.pixels
        self.counts = torch.from_numpy(targets.counts.reshape(-1)[rows]).to(device)
        self.fraction = (self.counts.double() / targets.pixels).to(dtype_of(config))

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
        probes = {name: images[name].nanmean(2) for name in images}
        heads = zip(counts["train"].cpu().numpy(), truth.cpu().numpy(), strict=True)
        best = [floors.count_floor(train, test_counts, self.pixels).best_dice for train, test_counts in heads]
        probes["floor_dice"] = torch.tensor(best, dtype=torch.float64, device=test.device).expand(test.shape[:2])
        if "val" in parts:
            probes["val_dice"] = metrics.dice(predictions["val"] > 0, counts["val"], self.pixels).mean(2)
            probes["ap_val"] = metrics.average_precision(predictions["val"], counts["val"], self.pixels).nanmean(2)
        return Scores(images, probes)
