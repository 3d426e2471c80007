"""The depth task: standardised relative inverse depth of every pixel (section 3.1). Shapes: see `heads`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.probes.config import ProbeConfig
from probing.probes.optimiser import dtype_of
from probing.probes.tasks.heads import Scores
from probing.scoring import losses, metrics
from probing.scoring.targets import DepthTargets, Edges, Targets, pixel_ranks


class DepthHeads:
    """Huber loss with the optional smoothness of appendix F, RMSE and correlations of depth."""

    outputs = 1

    def __init__(
        self, targets: Targets, rows: NDArray[np.int64], config: ProbeConfig, device: torch.device, edges: Edges | None
    ) -> None:
        if not isinstance(targets, DepthTargets):
            raise ValueError("task depth needs targets made by pool_depth")
        dtype, self.config, self.targets = dtype_of(config), config, targets
        self.pixels = losses.patch_pixels(targets, dtype, device)
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
            _, slope = losses.smoothness(maps, *(edge.index_select(0, samples) for edge in self.edges))
            gradient.add_(slope.flatten(2), alpha=self.config.smoothness)
        return value.mean(2), gradient

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
            **self._region_errors(test, rows, mean, variance),
            "spearman_residual": self._residual_spearman(test, parts),
        }
        probes = {name: images[name].nanmean(2) for name in images}
        train_mean = self._truth(parts["train"])[0].mean(1, keepdim=True)
        floor = metrics.squared_error(train_mean, mean, variance)
        probes["floor_rmse"] = floor.sqrt().mean(1).expand(test.shape[:2])
        probes["skill"] = torch.where(floor.mean(1) > 0, 1 - error.mean(2) / floor.mean(1), torch.nan)
        if "val" in parts:
            val = metrics.squared_error(predictions["val"], *self._truth(parts["val"]))
            probes["val_rmse"] = val.sqrt().mean(2)
        return Scores(images, probes)

    def _truth(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances (H, samples, T) in float64."""
        rows = self.rows.index_select(1, samples).cpu()
        mean, variance = (torch.from_numpy(a).view(-1)[rows] for a in (self.targets.mean, self.targets.variance))
        return mean.to(samples.device), variance.to(samples.device)

    def _region_errors(self, test: Tensor, rows: Tensor, mean: Tensor, variance: Tensor) -> dict[str, Tensor]:
        """RMSE (S, H, test samples) over the salient object's pixels and over the others, if masks were given."""
        if self.targets.object_sums is None:
            return {}
        inside = torch.from_numpy(self.targets.object_sums).flatten(1)[:, rows].to(test.device)
        pixels = self.targets.pixels
        image = torch.stack([torch.full_like(mean, pixels), mean * pixels, (variance + mean.square()) * pixels])
        regions = {"rmse_object": inside, "rmse_background": image - inside}
        return {name: metrics.squared_error_inside(test, *sums).sqrt() for name, sums in regions.items()}

    def _residual_spearman(self, test: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """Spearman (S, H, test samples) of prediction and label, both minus the training samples' mean depth map.

        Only for heads with the images' own labels; NaN for those whose labels were moved."""
        train, chosen = (parts[name].cpu().numpy() for name in ("train", "test"))
        own = torch.arange(self.rows[0].numel(), device=self.rows.device).view_as(self.rows[0])
        heads = [h for h, rows in enumerate(self.rows) if torch.equal(rows, own)]
        correlations = torch.full(test.shape[:-1], torch.nan, dtype=torch.float64, device=test.device)
        if heads:
            key = ("residual_ranks", train.tobytes(), chosen.tobytes())
            ranks = self.targets.cached(key, lambda: residual_ranks(self.targets, train, chosen))
            mean, sums, squares = (tensor.to(test.device) for tensor in ranks)
            residual = test[:, heads].double() - mean
            correlations[:, heads] = metrics.spearman(residual, self.targets.pixels, sums, squares)
        return correlations


def residual_ranks(
    targets: DepthTargets, train: NDArray[np.int64], test: NDArray[np.int64]
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean depth map (T) of training samples, and rank sums (test, T) and centred squares (test) of test labels
    minus it; float64 on the CPU."""
    mean = targets.mean[train].mean(axis=0)
    ranks = pixel_ranks(targets.values[test] - mean[:, None])
    squares = np.square(ranks - (ranks[0].size + 1) / 2, dtype=np.float64).sum(axis=(1, 2))
    sums = ranks.sum(axis=2, dtype=np.float64)
    return torch.from_numpy(mean), torch.from_numpy(sums), torch.from_numpy(squares)
