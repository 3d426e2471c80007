"""The inner optimisation against the plain way: one trial at a time, on full-size pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from interventions.counterfactual import scale_range
from interventions.editing.readout import TargetLabels
from interventions.editing.steer import Adam, make_probes, steer
from sweeps.bench.paired import Row, row, timed_pairs

SPAN = 9.0
"""depth is scaled to plus and minus this"""


def full_size_edit(acts: Tensor, weight: Tensor, target: Tensor, task: str, adam: Adam) -> Tensor:
    """The change (T, C) of one trial as the authors compute it: activations (T, C), probe (O, C), label (H, W)."""
    side = round(len(acts) ** 0.5)
    moved = acts.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([moved], lr=adam.lr, betas=(adam.beta1, adam.beta2), eps=adam.epsilon)
    for _ in range(adam.iterations):
        optimizer.zero_grad()
        maps = (moved @ weight.T).T.reshape(1, len(weight), side, side)
        maps = nn.functional.interpolate(maps, size=target.shape, mode="nearest")
        if task == "saliency":
            loss = nn.functional.cross_entropy(maps, target[None].long())
        else:
            loss = nn.functional.huber_loss(maps[:, 0], target[None].to(maps.dtype))
        loss.backward()
        optimizer.step()
    return moved.detach() - acts


@dataclass(frozen=True, eq=False)
class Problem:
    """A site's activations with a probe and target labels; both ways return the change (trials, T, C)."""

    task: str
    acts: Tensor
    """(trials, T, C)"""
    weight: NDArray[np.float32]
    """(O, C)"""
    labels: NDArray
    """(trials, H, W)"""

    def plain(self, adam: Adam) -> Tensor:
        """One trial at a time on full-size pixels."""
        labels = self.labels if self.task == "saliency" else scale_range(self.labels, SPAN)
        targets, weight = torch.from_numpy(labels), torch.from_numpy(self.weight).to(self.acts)
        pairs = zip(self.acts, targets, strict=True)
        return torch.stack([full_size_edit(acts, weight, target, self.task, adam) for acts, target in pairs])

    def batched(self, adam: Adam) -> Tensor:
        """All trials together on pooled labels."""
        side = round(self.acts.shape[1] ** 0.5)
        objective = (
            TargetLabels(self.task, self.labels, SPAN, self.acts, self.labels[0]).on_grid((side, side)).objective
        )
        probes = make_probes([self.weight], self.acts.shape[-1], self.acts)
        rows = torch.arange(len(self.acts))
        return steer(self.acts, probes, torch.zeros_like(rows), objective, rows, adam)


def _problem(task: str, trials: int, side: int, channels: int, size: int) -> Problem:
    """Noise as activations and probe; discs at random places as labels."""
    random = np.random.default_rng(0)
    acts = torch.from_numpy(random.normal(size=(trials, side * side, channels)).astype(np.float32))
    weight = random.normal(scale=0.2, size=(2 if task == "saliency" else 1, channels)).astype(np.float32)
    rows, columns = np.mgrid[:size, :size] / size
    places = random.uniform(0.3, 0.7, size=(2, trials, 1, 1))
    distance = np.hypot(rows - places[0], columns - places[1])
    labels = distance < 0.2 if task == "saliency" else (rows - distance).astype(np.float32)
    return Problem(task, acts, weight, labels)


def bench_interventions(
    side: int = 16, channels: int = 64, size: int = 128, trials: int = 5, iterations: int = 128, pairs: int = 5
) -> list[Row]:
    """Row `edit_speedup`, both tasks together: seconds of the plain way over the batched way, pooling included.

    `difference` is the largest between the batched activations and those of the plain way in double precision.
    """
    adam = Adam(5e-3, iterations)
    problems = [_problem(task, trials, side, channels, size) for task in ("saliency", "depth")]

    def run(way: str) -> None:
        for problem in problems:
            getattr(problem, way)(adam)

    timed = timed_pairs(lambda: run("plain"), lambda: run("batched"), pairs, warm_up=False)
    exact = [replace(problem, acts=problem.acts.double()).plain(adam) for problem in problems]
    gaps = [(p.batched(adam) - plain).abs().max().item() for p, plain in zip(problems, exact, strict=True)]
    return [row("edit_speedup", "one trial at a time", "all together", timed, difference=max(gaps))]
