"""Activations of the additional site families, read by running the network again on stored latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import storage
from cluster import Executor, Observer, Outcome
from storage import Layout, Store
from sweeps.config.schema import Config
from sweeps.runtime import experiments, side_store
from sweeps.runtime.layout import TRAINED
from sweeps.runtime.live_status import LiveStatus
from sweeps.runtime.run import ModelInfo, Run, site_shape
from sweeps.stages.base import (
    PlanInput,
    StageInfo,
    StagePrice,
    StageStatus,
    load_model,
    network_workers,
    status_if_left,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

INFO = StageInfo("family", verb="probe", doing="reading additional sites", unit="shards", cost="families")
STAGE = INFO.name
FOLDER = "families"
"""a store of its own inside the output, so that the main one never depends on which experiments run"""
FAMILIES = ("vae", "conv")


@dataclass(frozen=True, order=True)
class FamilyTask:
    """The missing steps of one family in one shard."""

    family: str
    shard: int
    steps: tuple[int, ...]

    @property
    def key(self) -> str:
        """Readable name, also in Ray's dashboard."""
        return f"{STAGE}/{self.family}/{self.shard:05d}"


def url(output: str) -> str:
    """Return the URL of the families' activations of a run."""
    return f"{output.rstrip('/')}/{FOLDER}"


def record_stage(family: str, step: int) -> str:
    """Return the stage of a step's completion records."""
    return f"{family}.{step:02d}"


def layout(run: Run) -> Layout:
    """Return the arrays of all families; they are created whole, whatever part of them is filled."""
    main = run.store.layout
    sites = [site for family in FAMILIES for site in run.model_info.families[family]]
    return side_store.layout(main, [site_shape(site) for site in sites], main.latent)


def space(config: Config, model: ModelInfo, samples: int) -> int:
    """Return the bytes of the families' activations that a run records for so many samples."""
    total = 0
    for family in FAMILIES:
        if family in config.experiments.names:
            steps = set(getattr(config.experiments, f"{family}_steps") or config.sweep.steps)
            total += 2 * samples * len(steps) * sum(site.values for site in model.families[family])
    return total


class FamilyWorker:
    """Holds the model; runs the missing steps of one shard again."""

    def __init__(self, config: Config, stage_hash: str) -> None:
        self.stage_hash, self.sampling = stage_hash, config.sampling
        self.source, self.target = storage.open(config.output), storage.open(url(config.output))
        self.model = load_model(config)
        table = self.source.samples().to_pydict()
        self.prompts, self.seeds = table["prompt"], table["seed"]

    def __call__(self, task: FamilyTask) -> dict[str, int]:
        rows = self.source.layout.shard_samples(task.shard)
        replay = self._conv if task.family == "conv" else self._vae
        replay(task, range(rows.start, rows.stop))
        return {"samples": len(rows), "steps": len(task.steps)}

    def _conv(self, task: FamilyTask, rows: range) -> None:
        from probing.diffusion.replay import replay_network
        from probing.diffusion.sampling import entering

        sites, steps = self.model.sites("conv"), self.sampling.steps
        prompts = [self.prompts[i] for i in rows]
        condition = self.model.conditions(prompts, self.sampling.guidance, conditional_only=True)
        for step in task.steps:
            if step == 1:
                latents = entering(self.model, [self.seeds[i] for i in rows], steps)
            else:
                latents = self._latents_after(step - 1, rows)
            replay_network(self.model, condition, latents, step, steps, sites, partial(self._write, step, task.shard))
            self._complete(task, step)

    def _vae(self, task: FamilyTask, rows: range) -> None:
        from probing.diffusion.replay import replay_vae

        (site,) = self.model.sites("vae")
        for step in task.steps:
            replay_vae(self.model, self._latents_after(step, rows), step, site, partial(self._write, step, task.shard))
            self._complete(task, step)

    def _latents_after(self, step: int, rows: range) -> torch.Tensor:
        import torch

        return torch.from_numpy(self.source.read_latents(TRAINED, step, list(rows))[0])

    def _write(self, step: int, shard: int, site: str, values: np.ndarray) -> None:
        self.target.write_activation(TRAINED, site, step, shard, values)

    def _complete(self, task: FamilyTask, step: int) -> None:
        self.target.complete(record_stage(task.family, step), TRAINED, task.shard, stage_hash=self.stage_hash)


def missing(run: Run) -> list[FamilyTask]:
    """Return sampled shards that lack steps at which probes are still to be fitted."""
    probes, tasks = experiments.missing(run), []
    for family in FAMILIES:
        steps = sorted({probe.step for probe in probes if probe.experiment == family})
        records = {step: record_stage(family, step) for step in steps}
        left = side_store.missing_steps(run, url(run.config.output), records)
        tasks += [FamilyTask(family, shard, steps) for shard, steps in left]
    return tasks


def execute(run: Run, executor: Executor, observers: Sequence[Observer], tasks: Sequence[FamilyTask]) -> Outcome:
    """Record the given shards and steps."""
    Store.create(url(run.config.output), layout(run)).remove_partial_files()
    factory = partial(FamilyWorker, run.config, run.hashes.sample)
    return executor.run(tasks, network_workers(run.config, factory, STAGE), observers)


def status(run: Run, live: LiveStatus) -> StageStatus:
    """Return a row only if shards are left."""
    return status_if_left(run, INFO, missing(run))


def prices(plan: PlanInput) -> list[StagePrice]:
    """Return the replayed steps: convolutions need the UNet without guidance, the VAE's attention does not."""
    config, result = plan.config, []
    for family in ("conv", "vae"):
        if family in config.experiments.names:
            steps = len(set(getattr(config.experiments, f"{family}_steps") or config.sweep.steps))
            calls = 0.5 * plan.samples * steps if family == "conv" else 0.0
            result.append(StagePrice(f"additional sites: {family}", f"{plan.samples} samples x {steps} steps", calls))
    return result
