"""Measures the inner optimisation against the plain way: one trial at a time, on full-size pixels."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from interventions.counterfactual import scale_range
from interventions.readout import Goals
from interventions.steer import Adam, make_readers, steer
from sweeps.bench.paired import row

PAIRS = 5
SPAN = 9.0
"""depth is scaled to plus and minus this"""


def full_size_edit(acts: Tensor, weight: Tensor, target: Tensor, task: str, adam: Adam) -> Tensor:
    """The authors' way on one trial: activations (T, C), probe (O, C), label (H, W); returns the change."""
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
    """A site's activations with a probe and wanted labels."""

    task: str
    acts: Tensor
    """(trials, T, C)"""
    weight: NDArray[np.float32]
    """(O, C)"""
    labels: NDArray
    """(trials, H, W)"""


def _problem(task: str, trials: int, side: int, channels: int, size: int, device: str) -> Problem:
    """Noise as activations and probe; discs at random places as labels."""
    random = np.random.default_rng(0)
    acts = torch.from_numpy(random.normal(size=(trials, side * side, channels)).astype(np.float32))
    weight = random.normal(scale=0.2, size=(2 if task == "saliency" else 1, channels)).astype(np.float32)
    rows, columns = np.mgrid[:size, :size] / size
    places = random.uniform(0.3, 0.7, size=(2, trials, 1, 1))
    distance = np.hypot(rows - places[0], columns - places[1])
    labels = distance < 0.2 if task == "saliency" else (rows - distance).astype(np.float32)
    return Problem(task, acts.to(device), weight, labels)


def _seconds(way: Callable[[Problem, Adam], Tensor], problems: Sequence[Problem], adam: Adam) -> float:
    started = time.perf_counter()
    for problem in problems:
        way(problem, adam)
    if problems[0].acts.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def bench_interventions(
    side: int = 16, channels: int = 64, size: int = 128, trials: int = 5, iterations: int = 128,
    pairs: int = PAIRS, device: str = "cpu",
) -> list[dict[str, Any]]:  # fmt: skip
    """Row `edit_speedup` (both tasks together, see `storage.paired`): plain seconds over ours.

    Ours includes pooling the labels. `difference` is the largest between our activations and those of the
    plain way in double precision. The default is the widest site of the scenes model.
    """
    adam = Adam(5e-3, iterations)
    problems = [_problem(task, trials, side, channels, size, device) for task in ("saliency", "depth")]
    spans = [(_seconds(_plain, problems, adam), _seconds(_batched, problems, adam)) for _ in range(pairs)]
    exact = [_plain(replace(p, acts=p.acts.double()), adam) for p in problems]
    gaps = [_batched(p, adam) - plain for p, plain in zip(problems, exact, strict=True)]
    furthest = max(float(gap.abs().max()) for gap in gaps)
    return [row("edit_speedup", "one trial at a time", "all together", spans, difference=furthest)]


def _batched(problem: Problem, adam: Adam) -> Tensor:
    acts, side = problem.acts, round(problem.acts.shape[1] ** 0.5)
    goals = Goals(problem.task, problem.labels, SPAN, acts)
    readers = make_readers([problem.weight], acts.shape[-1], acts)
    rows = torch.arange(len(acts), device=acts.device)
    return steer(acts, readers, torch.zeros_like(rows), goals.on((side, side)).objective, rows, adam)


def _plain(problem: Problem, adam: Adam) -> Tensor:
    probe = torch.from_numpy(problem.weight).to(problem.acts)
    wanted = problem.labels if problem.task == "saliency" else scale_range(problem.labels, SPAN)
    targets = torch.from_numpy(wanted).to(problem.acts.device)
    pairs = zip(problem.acts, targets, strict=True)
    return torch.stack([full_size_edit(acts, probe, target, problem.task, adam) for acts, target in pairs])
