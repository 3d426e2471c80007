"""How long a run takes, and what it costs, on several numbers of GPUs: a simulation from rates.

A stage consists of equal tasks. As many as there are workers run at once; all share one storage, so a round of w
tasks takes the longer of one task's computation and the transfer of w tasks' bytes. `rates` has what a worker does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.planning.rates import Rates
from sweeps.stages import intervene
from sweeps.stages.base import PlanInput


@dataclass(frozen=True)
class GpuStage:
    """Equal tasks of one stage that uses GPUs."""

    name: str
    tasks: int
    seconds: float
    """computation of one task"""
    bytes: float
    """written or read by one task"""
    gpu: float
    """GPUs, or a fraction of one, per worker"""

    def wall_seconds(self, gpus: int, storage: float, start: float) -> float:
        """Return the duration of the stage; `storage` in bytes per second, `start` in seconds."""
        if not self.tasks:
            return 0.0
        workers = max(1, math.floor(gpus / self.gpu + 1e-9))
        full, rest = divmod(self.tasks, workers)
        rounds = [workers] * full + [rest] * bool(rest)
        return start + sum(max(self.seconds, tasks * self.bytes / storage) for tasks in rounds)

    def gpu_limit(self, storage: float) -> float:
        """Return the number of GPUs above which the storage limits the speed."""
        return self.seconds * storage / self.bytes * self.gpu if self.bytes else math.inf


def stages(plan: PlanInput, trials: int, probes: int, rates: Rates) -> list[GpuStage]:
    """Return the stages of a run that use GPUs; `rates` must be filled."""
    sampling, ray = plan.config.sampling, plan.config.ray
    shards = math.ceil(plan.samples / sampling.shard)
    tasks = shards * len(sampling.variants)
    families = plan.budget.families()
    activations = families.get("activations.zarr", 0)
    labels = families.get("labels.zarr", 0)
    written = sum(size for name, size in families.items() if not name.startswith("labels"))
    trial_seconds, trial_bytes = probes / max(trials, 1) / rates.probing, activations / max(trials, 1)
    edits = math.ceil(intervene.edit_count(plan.config, plan.test))
    return [
        GpuStage("sampling", tasks, sampling.shard / rates.sampling, written / tasks, ray.sampling_gpus or 1),
        GpuStage("labelling", shards, sampling.shard / rates.labelling, labels / shards, ray.label_gpus or 1),
        GpuStage("probing", trials, trial_seconds, trial_bytes, ray.probe_gpus or 1),
        GpuStage("editing", edits, edit_seconds(plan, edits, rates), 0, ray.sampling_gpus or 1),
    ]


def edit_seconds(plan: PlanInput, edits: int, rates: Rates) -> float:
    """Return the duration of one edit of a test image with its controls.

    Its images are sampled from the first step on, so that it costs its network calls at the rate of sampling; the inner
    optimisation, labels and scores are the overhead. A rate of edits that is given replaces this.
    """
    if rates.editing or not edits:
        return 3600 / rates.editing if edits else 0.0
    calls = sum(price.calls for price in intervene.prices(plan))
    return rates.overhead * calls / plan.config.total_steps / rates.sampling / edits


def table(work: Sequence[GpuStage], gpus: Sequence[int], rates: Rates) -> list[str]:
    """Return one line per number of GPUs: hours of each stage, GPU hours and price; and where storage is the limit."""
    storage = rates.storage * 1e9
    lines = [f"{'GPUs':>5} " + "".join(f"{stage.name + ' h':>13}" for stage in work) + "      all h   GPU h   price"]
    for count in gpus:
        hours = [stage.wall_seconds(count, storage, rates.start) / 3600 for stage in work]
        marks = ["*" if count > stage.gpu_limit(storage) else " " for stage in work]
        gpu_hours = sum(hours) * count
        columns = "".join(f"{hour:>12.2f}{mark}" for hour, mark in zip(hours, marks, strict=True))
        lines.append(f"{count:>5} {columns}{sum(hours):>11.2f}{gpu_hours:>8.1f}{gpu_hours * rates.price:>8.0f}")
    limits = {stage.name: stage.gpu_limit(storage) for stage in work}
    limited = [f"{name} above {limit:.1f} GPUs" for name, limit in limits.items() if math.isfinite(limit)]
    lines.append(f"* limited by the storage: {', '.join(limited)}")
    return lines


def counts(gpus: int) -> list[int]:
    """Return the numbers of GPUs that are shown beside the requested one."""
    return sorted({count for count in (1, 8) if count < gpus} | {gpus})
