"""A small seeded training loop: AdamW, cosine schedule, moving average, resumable checkpoints."""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Schedule:
    """How one network is trained."""

    steps: int
    """optimiser steps"""
    rate: float = 1.5e-3
    """peak learning rate"""
    warmup: int = 100
    """steps of linear warm-up"""
    floor: float = 0.02
    """share of the peak rate that is left at the end of the cosine"""
    decay: float = 1e-4
    """AdamW's weight decay"""
    average: float = 0.0
    """decay of the exponential moving average of the weights; 0 keeps none"""
    save_every: float = 120.0
    """seconds between checkpoints"""
    minutes: float = 0.0
    """if not 0, train for this long instead of `steps`; the time before a resumption counts"""

    def done(self, step: int, seconds: float) -> float:
        """Share of the training that is done after `step` steps, which took `seconds`."""
        return seconds / (60 * self.minutes) if self.minutes else step / self.steps

    def rate_at(self, step: int, seconds: float = 0.0) -> float:
        """Learning rate of a step (0-based) that begins after `seconds` of training."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        if self.minutes:
            done = min(1.0, self.done(step, seconds))
        return self.rate * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2)


class Loop:
    """A training loop to the end of a schedule that can be stopped and resumed at any step.

    The random generator of a step is seeded from the step alone, so a resumed training draws the same numbers as an
    uninterrupted one.
    """

    def __init__(
        self, model: nn.Module, schedule: Schedule, folder: Path, seed: int, shares: Mapping[str, float] | None = None
    ) -> None:
        """shares: of the learning rate, by names of parameters; 1 for those that it does not name."""
        self.model, self.schedule, self.seed = model, schedule, seed
        self.path = folder / "checkpoint.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        shares = shares or {}
        learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        # in the order of the optimiser's groups, by which checkpoints name its state
        self.learning = dict(sorted(learning, key=lambda named: -shares.get(named[0], 1.0)))
        groups = [
            {"params": [p for _, p in named], "share": share}
            for share, named in itertools.groupby(self.learning.items(), lambda named: shares.get(named[0], 1.0))
        ]
        self.optimiser = torch.optim.AdamW(
            groups, lr=schedule.rate, betas=(0.9, 0.99), weight_decay=schedule.decay, fused=True
        )
        self.averaged = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.device = next(model.parameters()).device
        self.step, self.seconds = 0, 0.0
        self.history: list[tuple[int, float]] = []

    def generator(self, step: int) -> torch.Generator:
        """The generator of a step, on the device of the network."""
        return torch.Generator(self.device).manual_seed((self.seed * 1_000_003 + step) * 64)

    def resume(self) -> None:
        """Load the last checkpoint, if there is one."""
        if not self.path.exists():
            return
        tensors = load_file(self.path, device=str(self.device))
        self.step = int(tensors.pop("step"))
        # absent from the checkpoints of earlier versions
        self.seconds = float(tensors.pop("seconds", torch.tensor(0.0)))
        self.model.load_state_dict(_with_prefix(tensors, "model."))
        self.averaged = _with_prefix(tensors, "average.")
        state = {
            i: {key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq", "step")}
            for i, name in enumerate(self.learning)
            if f"step.{name}" in tensors  # not those that were kept as they are until now
        }
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        self.history = json.loads(self.path.with_suffix(".json").read_text())

    def save(self) -> None:
        """Write a checkpoint atomically."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.averaged.items()}
        for name, parameter in self.learning.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        tensors["step"] = torch.tensor(self.step)
        tensors["seconds"] = torch.tensor(self.seconds, dtype=torch.float64)
        copies = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        partial = self.path.with_suffix(".partial")
        save_file(copies, partial)
        self.path.with_suffix(".json").write_text(json.dumps(self.history))
        os.replace(partial, self.path)

    def run(
        self,
        loss: Callable[[int, torch.Generator], Tensor],
        progress: Callable[[str], None],
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train to the end; `loss(step, generator)` returns a scalar. `stopped()` after a step ends it before."""
        self.model.train()
        saved = last = time.monotonic()
        first, before, recent = self.step, self.seconds, []
        finished = self.schedule.done(self.step, self.seconds) >= 1
        while not finished:
            recent.append(self.advance(loss))
            now = time.monotonic()
            self.seconds += now - last
            last = now
            done = self.schedule.done(self.step, self.seconds)
            finished = done >= 1 or stopped()
            if len(recent) == 50 or finished:
                self.history.append((self.step, float(torch.stack(recent).mean())))
                pace = (self.seconds - before) / (self.step - first)
                of = f"/{self.schedule.steps}" if not self.schedule.minutes else ""
                left = self.seconds * (1 / done - 1)
                progress(
                    f"step {self.step}{of} loss {self.history[-1][1]:.4f} "
                    f"{pace:.2f} s/step {max(0.0, left) / 60:.0f} min left"
                )
                recent = []
            if now - saved > self.schedule.save_every:
                self.save()
                saved = now
        self.save()

    def advance(self, loss: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        """Take one step; returns its loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = group["share"] * self.schedule.rate_at(self.step, self.seconds)
        value = loss(self.step, self.generator(self.step))
        value.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self._average()
        return value.detach()

    def _average(self) -> None:
        """Update the moving average of the weights; early on its decay is smaller, so that the start fades."""
        keep = min(self.schedule.average, (1 + self.step) / (10 + self.step))
        state = self.model.state_dict()
        moving = [name for name, value in state.items() if self.schedule.average and value.is_floating_point()]
        for name in state.keys() - moving:
            self.averaged[name].copy_(state[name])
        if moving:
            torch._foreach_lerp_([self.averaged[n] for n in moving], [state[n] for n in moving], 1 - keep)


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
