"""Measures the inner optimisation against the plain way: one trial at a time, on full-size pixels."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from interventions.readout import Goals
from interventions.steer import Adam, make_readers, steer

PAIRS = 5


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
            loss = nn.functional.huber_loss(maps[:, 0], target[None])
        loss.backward()
        optimizer.step()
    return moved.detach() - acts


def _problem(task: str, trials: int, side: int, channels: int, size: int) -> tuple[Tensor, NDArray, NDArray]:
    """Activations (trials, T, C), a probe and labels (trials, H, W)."""
    random = np.random.default_rng(0)
    acts = torch.from_numpy(random.normal(size=(trials, side * side, channels)).astype(np.float32))
    weight = random.normal(scale=0.2, size=(2 if task == "saliency" else 1, channels)).astype(np.float32)
    rows, columns = np.mgrid[:size, :size] / size
    places = random.uniform(0.3, 0.7, size=(trials, 2))
    distance = np.hypot(*(axis - p[..., None, None] for axis, p in zip((rows, columns), places.T, strict=True)))
    return acts, weight, distance < 0.2 if task == "saliency" else (rows - distance).astype(np.float32)


def _seconds(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    started = time.perf_counter()
    found = work()
    if found.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started, found


def bench_interventions(
    side: int = 16, channels: int = 64, size: int = 128, trials: int = 5, iterations: int = 128,
    pairs: int = PAIRS, device: str = "cpu",
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows `edit_speedup` (both tasks together): plain seconds over ours, and the largest difference.

    Ours includes pooling the labels. The default is the widest site of the scenes model.
    """
    spans, differences, adam = [], [], Adam(5e-3, iterations)
    problems = [(task, *_problem(task, trials, side, channels, size)) for task in ("saliency", "depth")]
    for _ in range(pairs):
        slow, fast = 0.0, 0.0
        for task, acts, weight, labels in problems:
            acts = acts.to(device)
            ours, change = _seconds(lambda: _batched(task, acts, weight, labels, adam))  # noqa: B023
            plain, reference = _seconds(lambda: _plain(task, acts, weight, labels, adam))  # noqa: B023
            slow, fast = slow + plain, fast + ours
            differences.append(float((change - reference).abs().max()))
        spans.append((slow, fast))
    return [{
        "what": "edit_speedup",
        "ratio": median(slow / fast for slow, fast in spans),
        "of": median(fast for _, fast in spans),
        "to": median(slow for slow, _ in spans),
        "seconds": sum(slow + fast for slow, fast in spans),
        "difference": max(differences),
    }]  # fmt: skip


def _batched(task: str, acts: Tensor, weight: NDArray, labels: NDArray, adam: Adam) -> Tensor:
    side = round(acts.shape[1] ** 0.5)
    goals = Goals(task, labels, 9.0, acts)
    readers = make_readers([weight], acts.shape[-1], acts)
    rows = torch.arange(len(acts), device=acts.device)
    return steer(acts, readers, torch.zeros_like(rows), goals.on((side, side)).objective, rows, adam)


def _plain(task: str, acts: Tensor, weight: NDArray, labels: NDArray, adam: Adam) -> Tensor:
    probe = torch.from_numpy(weight).to(acts)
    wanted = labels if task == "saliency" else Goals(task, labels, 9.0, acts).scaled
    targets = torch.from_numpy(wanted).to(acts.device)
    return torch.stack([full_size_edit(a, probe, t, task, adam) for a, t in zip(acts, targets, strict=True)])
