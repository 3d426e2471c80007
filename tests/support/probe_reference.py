"""Slow references for the probes: one probe at a time, on full-size pixels, with autograd and library routines.

Written straight from the paper (section 3, appendices A and F). Nothing here is shared with the fast code
except the seed of a probe's start.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

from probing.probes.config import ProbeConfig
from probing.probes.optimiser import initial_seed


@dataclass
class SlowProbe:
    weights: np.ndarray
    hidden: np.ndarray | None
    train_losses: list[float]
    val_losses: list[float]
    scores: dict[str, list[float]] = field(default_factory=dict)


def enlarge(values: torch.Tensor, grid, size) -> torch.Tensor:
    """(n, T, O) -> (n, O, H, W) by nearest neighbour."""
    maps = values.transpose(1, 2).reshape(len(values), -1, *grid)
    return functional.interpolate(maps, size=size, mode="nearest")


def smoothness(maps: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Appendix F on maps (n, 1, H, W) and images (n, 3, H, W) in 0..1."""
    loss = maps.new_zeros(())
    for axis in (2, 3):
        if maps.shape[axis] > 1:
            weight = torch.exp(-images.diff(dim=axis).abs().mean(1, keepdim=True))
            loss = loss + (maps.diff(dim=axis).abs() * weight).mean()
    return loss


def unit_range(images: np.ndarray, dtype) -> torch.Tensor:
    """uint8 (n, H, W, 3) -> (n, 3, H, W), each image scaled to 0..1."""
    x = torch.from_numpy(images).to(dtype).permute(0, 3, 1, 2)
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return (x - low) / torch.where(high > low, high - low, torch.ones_like(low))


def task_loss(task, maps, labels, delta):
    if task == "saliency":
        return functional.cross_entropy(maps, labels)
    return functional.huber_loss(maps[:, 0], labels, delta=delta)


def network(channels, task, config, seed, step, dtype):
    torch.manual_seed(initial_seed(seed, step, task))
    outputs = 2 if task == "saliency" else 1
    if not config.hidden:
        return nn.Sequential(nn.Linear(channels, outputs, bias=config.bias)).to(dtype)
    hidden = nn.Linear(channels, config.hidden, bias=config.bias)
    return nn.Sequential(hidden, nn.ReLU(), nn.Linear(config.hidden, outputs, bias=config.bias)).to(dtype)


def with_bias(layer: nn.Linear, scale: float = 1.0) -> np.ndarray:
    weight = layer.weight.detach() / scale
    if layer.bias is not None:
        weight = torch.cat([weight, layer.bias.detach()[:, None]], 1)
    return weight.numpy()


def fit_one(
    acts: np.ndarray,
    labels: np.ndarray,
    grid,
    task: str,
    split,
    config: ProbeConfig,
    step: int = 1,
    seed: int = 0,
    images: np.ndarray | None = None,
) -> SlowProbe:
    """One probe. acts (N, T, C); labels (N, H, W): 0/1 for saliency, float for depth."""
    dtype = getattr(torch, config.dtype)
    x = torch.from_numpy(acts.astype(np.float64)).to(dtype)
    y = torch.from_numpy(labels.astype(np.int64)) if task == "saliency" else torch.from_numpy(labels).to(dtype)
    pictures = None if images is None else unit_range(images, dtype)
    scale = x[split.train].square().mean().sqrt().item() if config.normalise == "rms" else 1.0
    x = x / scale
    model = network(x.shape[2], task, config, seed, step, dtype)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=config.lr)
    size = labels.shape[1:]
    train_losses, val_losses, best = [], [], None
    random = torch.Generator().manual_seed(config.seed + seed)
    for _ in range(config.epochs):
        order = split.train[torch.randperm(len(split.train), generator=random).numpy()]
        total = 0.0
        for start in range(0, len(order), config.batch):
            samples = order[start : start + config.batch]
            optimizer.zero_grad()
            maps = enlarge(model(x[samples]), grid, size)
            loss = task_loss(task, maps, y[samples], config.huber_delta)
            total += loss.item() * len(samples)
            if config.smoothness and task == "depth":
                loss = loss + config.smoothness * smoothness(maps, pictures[samples])
            loss.backward()
            optimizer.step()
        train_losses.append(total / len(order))
        if len(split.val):
            with torch.no_grad():
                maps = enlarge(model(x[split.val]), grid, size)
                val_losses.append(task_loss(task, maps, y[split.val], config.huber_delta).item())
            if config.selection == "val" and val_losses[-1] == min(val_losses):
                best = {name: value.clone() for name, value in model.state_dict().items()}
    if best is not None:
        model.load_state_dict(best)
    with torch.no_grad():
        maps = enlarge(model(x[split.test]), grid, size)
        test_loss = task_loss(task, maps, y[split.test], config.huber_delta).item()
    last, first = model[-1], model[0]
    probe = SlowProbe(
        with_bias(last, 1.0 if config.hidden else scale),
        with_bias(first, scale) if config.hidden else None,
        train_losses,
        val_losses,
    )
    probe.scores = score_maps(task, maps.double().numpy(), labels[split.test])
    probe.scores["test_loss"] = [test_loss]
    return probe


def score_maps(task, maps, labels) -> dict[str, list[float]]:
    """Per-image scores of full-size maps (n, O, H, W)."""
    if task == "saliency":
        return {
            "dice": [dice(m[1] > m[0], y == 1) for m, y in zip(maps, labels, strict=True)],
            "dice_background": [dice(m[1] <= m[0], y == 0) for m, y in zip(maps, labels, strict=True)],
            "ap": [average_precision(m[1] - m[0], y) for m, y in zip(maps, labels, strict=True)],
        }
    found: dict[str, list[float]] = {"rmse": [], "rmse_aligned": [], "pearson": [], "spearman": []}
    for m, y in zip(maps[:, 0], labels.astype(np.float64), strict=True):
        found["rmse"].append(float(np.sqrt(np.mean((m - y) ** 2))))
        design = np.stack([m.ravel(), np.ones(m.size)], 1)
        fitted = design @ np.linalg.lstsq(design, y.ravel(), rcond=None)[0]
        found["rmse_aligned"].append(float(np.sqrt(np.mean((fitted - y.ravel()) ** 2))))
        flat = np.ptp(m) == 0 or np.ptp(y) == 0
        found["pearson"].append(np.nan if flat else stats.pearsonr(m.ravel(), y.ravel())[0])
        found["spearman"].append(np.nan if flat else stats.spearmanr(m.ravel(), y.ravel())[0])
    return found


def dice(chosen, truth) -> float:
    return float((2 * (chosen & truth).sum() + 1e-8) / (chosen.sum() + truth.sum() + 1e-8))


def average_precision(score, truth) -> float:
    """Sum of (recall step) x precision over distinct thresholds, pixel by pixel."""
    if not truth.any():
        return np.nan
    area, recall = 0.0, 0.0
    for threshold in np.unique(score)[::-1]:
        chosen = score >= threshold
        hits = (chosen & (truth == 1)).sum()
        area += (hits / truth.sum() - recall) * hits / chosen.sum()
        recall = hits / truth.sum()
    return float(area)


def huber_patch(values, prediction, delta=1.0) -> tuple[float, float]:
    """Huber loss of one patch's pixels and its derivative by the prediction."""
    residual = prediction - np.asarray(values, dtype=np.float64)
    small = np.abs(residual) <= delta
    loss = np.where(small, residual**2 / 2, delta * (np.abs(residual) - delta / 2))
    return float(loss.mean()), float(np.clip(residual, -delta, delta).mean())
