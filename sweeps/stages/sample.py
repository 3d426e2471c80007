"""Sampling: every shard of every variant, with activations streamed into the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import storage
from cluster import Executor, Observer, Outcome
from probing.diffusion.sites import recorded
from probing.diffusion.variants import forced, noise_seed
from storage import Store
from sweeps.config.schema import Config
from sweeps.runtime.live_status import LiveStatus
from sweeps.runtime.run import Run
from sweeps.stages import base

if TYPE_CHECKING:
    import numpy as np
    import torch

    from probing.diffusion.capture import WriteActivation, WriteLatents
    from probing.diffusion.families.base import LatentDiffusion

INFO = base.StageInfo("sample", verb="sample", doing="sampling", unit="shards", cost="sample", required=True)
STAGE = INFO.name


@dataclass(frozen=True, order=True)
class SampleTask:
    """One shard of one variant."""

    variant: str
    shard: int

    @property
    def key(self) -> str:
        """Readable name, also in Ray's dashboard."""
        return f"{STAGE}/{self.variant}/{self.shard:05d}"


class SampleWorker:
    """Holds the model and its variants; samples one shard per call."""

    def __init__(self, config: Config, stage_hash: str) -> None:
        self.config, self.stage_hash = config, stage_hash
        self.store = storage.open(config.output)
        self.model = base.load_model(config, len(config.sampling.variants))
        self.sites = recorded(self.model.recordable, config.sampling.sites)
        table = self.store.samples().to_pydict()
        self.prompts, self.seeds = table["prompt"], table["seed"]
        self.current = ("trained", self.model)

    def variant(self, name: str) -> LatentDiffusion:
        """Return the network of a variant; at most one copy is kept beside the trained one."""
        from probing.diffusion import model

        if self.current[0] != name:
            self.current = ("trained", self.model)  # frees an earlier copy before the next is made
            self.current = (name, model.variant(self.model, name, self.config.model.random_seed))
        return self.current[1]

    def __call__(self, task: SampleTask) -> dict[str, int]:
        write_latents = partial(self._write_latents, task) if self.store.layout.latent else None
        images = self.compute(task, partial(self._write_activation, task), write_latents)
        self.store.write_images(task.variant, task.shard, images)
        record = self.store.complete(STAGE, task.variant, task.shard, stage_hash=self.stage_hash)
        return {"samples": len(images), "bytes": sum(size for size, _ in record.chunks.values())}

    def compute(
        self, task: SampleTask, write_activation: WriteActivation, write_latents: WriteLatents | None
    ) -> np.ndarray:
        """Sample a shard and pass what is recorded to the writers; return its images, uint8 (n, H, W, 3)."""
        from probing.diffusion.capture import capture

        rows = self.store.layout.shard_samples(task.shard)
        prompts, seeds = (column[rows.start : rows.stop] for column in (self.prompts, self.seeds))
        samples = capture(
            self.variant(task.variant),
            prompts,
            [noise_seed(task.variant, seed) for seed in seeds],
            self.sites,
            write_activation,
            write_latents,
            steps=self.config.sampling.steps,
            recorded_steps=self.config.sampling.recorded_steps,
            guidance=self.config.sampling.guidance,
            forced=self._forced_latents(task),
        )
        return samples.images.numpy()

    def _write_activation(self, task: SampleTask, site: str, step: int, values: np.ndarray) -> None:
        self.store.write_activation(task.variant, site, step, task.shard, values)

    def _write_latents(self, task: SampleTask, step: int, after: np.ndarray, clean: np.ndarray) -> None:
        self.store.write_latents(task.variant, task.shard, step, after, clean)

    def _forced_latents(self, task: SampleTask) -> list[torch.Tensor] | None:
        """Return the trained run's latents before each step if the variant is fed with them, else None."""
        if not forced(task.variant):
            return None
        import torch

        from probing.diffusion.sampling import entering

        rows = self.store.layout.shard_samples(task.shard)
        samples = list(range(rows.start, rows.stop))
        start = entering(self.model, self.seeds[rows.start : rows.stop], self.config.sampling.steps)
        total = self.store.layout.steps
        later = [self.store.read_latents("trained", step, samples)[0] for step in range(1, total)]
        return [start, *(torch.from_numpy(x) for x in later)]


def missing(run: Run) -> list[SampleTask]:
    """Return shards without a valid completion record; forced variants come after the trained one."""
    tasks = []
    for variant in sorted(run.config.sampling.variants, key=forced):
        done = run.store.completed(STAGE, variant)
        tasks += [SampleTask(variant, s) for s in range(run.store.layout.shards) if s not in done]
    return tasks


def execute(run: Run, executor: Executor, observers: Sequence[Observer], tasks: Sequence[SampleTask]) -> Outcome:
    """Sample the given shards and record those that failed."""
    spec = base.network_workers(run.config, partial(SampleWorker, run.config, run.hashes.sample), STAGE)
    outcome = executor.run([task for task in tasks if not forced(task.variant)], spec, observers)
    # Forced variants read the latents of the trained one, so they wait until it is complete.
    if outcome.ok and (later := [task for task in tasks if forced(task.variant)]):
        outcome = outcome.merged(executor.run(later, spec, observers))
    base.record_failures(run, STAGE, outcome, {task.key: (task.variant, task.shard) for task in tasks})
    return outcome


def failed(store: Store, variants: Sequence[str]) -> dict[str, str]:
    """Return task key to reason of the shards that failed for good."""
    return {
        SampleTask(variant, shard).key: reason
        for variant in variants
        for shard, reason in store.failures(STAGE, variant).items()
    }


def status(run: Run, live: LiveStatus) -> base.StageStatus:
    """Return one row per variant."""
    rows, reasons = [], failed(run.store, run.config.sampling.variants)
    for variant in run.config.sampling.variants:
        running = live.count(f"{STAGE}/{variant}/")
        rows.append(
            base.StatusRow(
                f"sampling {variant}",
                "shards",
                done=len(run.store.completed(STAGE, variant)),
                total=run.store.layout.shards,
                failed=sum(key.startswith(f"{STAGE}/{variant}/") for key in reasons),
                running=running,
                pace=live.pace(STAGE) if running else "",
            )
        )
    return base.StageStatus(rows, reasons)


def prices(plan: base.PlanInput) -> list[base.StagePrice]:
    """Return network calls of all samples and variants."""
    variants = len(plan.config.sampling.variants)
    return [base.StagePrice("sampling", f"{plan.samples} samples x {variants} variants", plan.budget.unet_calls)]
