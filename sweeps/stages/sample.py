"""The sampling stage: every shard of every variant, activations streamed into the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

import storage
from cluster import Executor, Observer, Outcome, WorkerSpec
from probing.diffusion import model, sites
from probing.diffusion.capture import WriteActivation, WriteLatents, capture
from probing.diffusion.variants import forced, noise_seed
from storage import Store
from sweeps.config.schema import STEPS, Config
from sweeps.runtime.run import Run

STAGE = "sample"


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
    """Holds the model and its variants; samples one shard a call."""

    def __init__(self, config: Config, stage_hash: str) -> None:
        self.config, self.stage_hash = config, stage_hash
        self.store = storage.open(config.output)
        self.model = model.load(config.model, len(config.sampling.variants))
        self.sites = sites.choose(self.model.sites(), config.sampling.sites)
        self.keeps_latents = bool(self.store.layout.latent)
        table = self.store.samples().to_pydict()
        self.prompts, self.seeds = table["prompt"], table["seed"]
        self.held = ("trained", self.model)

    def variant(self, name: str) -> model.LatentDiffusion:
        """The network of a variant; at most one copy is held beside the trained one."""
        if self.held[0] != name:
            self.held = ("trained", self.model)  # lets an earlier copy go before the next is made
            self.held = (name, model.variant(self.model, name, self.config.model.random_seed))
        return self.held[1]

    def __call__(self, task: SampleTask) -> dict[str, Any]:
        latents = partial(self._write_latents, task) if self.keeps_latents else None
        images = self.compute(task, partial(self._write_activation, task), latents)
        self.store.write_images(task.variant, task.shard, images)
        record = self.store.complete(STAGE, task.variant, task.shard, stage_hash=self.stage_hash)
        return {"samples": len(images), "bytes": sum(size for size, _ in record.chunks.values())}

    def compute(
        self, task: SampleTask, write_activation: WriteActivation, write_latents: WriteLatents | None
    ) -> np.ndarray:
        """Samples a shard, handing on what is recorded; its images, uint8 (n, H, W, 3)."""
        rows = self.store.layout.shard_samples(task.shard)
        prompts, seeds = (part[rows.start : rows.stop] for part in (self.prompts, self.seeds))
        samples = capture(
            self.variant(task.variant),
            prompts,
            [noise_seed(task.variant, seed) for seed in seeds],
            self.sites,
            write_activation,
            write_latents,
            steps=STEPS,
            guidance=self.config.sampling.guidance,
            forced=self._forced(task),
        )
        return samples.images.numpy()

    def _write_activation(self, task: SampleTask, site: str, step: int, values: Any) -> None:
        self.store.write_activation(task.variant, site, step, task.shard, values)

    def _write_latents(self, task: SampleTask, step: int, after: Any, clean: Any) -> None:
        self.store.write_latents(task.variant, task.shard, step, after, clean)

    def _forced(self, task: SampleTask) -> list[torch.Tensor] | None:
        """The trained run's latents before each step, for the variant that is fed with them."""
        if not forced(task.variant):
            return None
        from probing.diffusion.sampling import initial_noise, schedule

        rows = self.store.layout.shard_samples(task.shard)
        samples = list(range(rows.start, rows.stop))
        start = initial_noise(self.model, self.seeds[rows.start : rows.stop])
        start = start * schedule(self.model, STEPS).init_noise_sigma
        later = [self.store.read_latents("trained", step, samples)[0] for step in range(1, STEPS)]
        return [start, *(torch.from_numpy(x) for x in later)]


def missing(run: Run) -> list[SampleTask]:
    """Shards without a valid completion record; forced variants come after the trained one."""
    tasks = []
    for variant in sorted(run.config.sampling.variants, key=forced):
        done = run.store.completed(STAGE, variant)
        tasks += [SampleTask(variant, s) for s in range(run.store.layout.shards) if s not in done]
    return tasks


def work(run: Run, executor: Executor, observers: Sequence[Observer], tasks: Sequence[SampleTask]) -> Outcome:
    """Samples the given shards; a shard that fails for good is recorded with its reason."""
    first = [task for task in tasks if not forced(task.variant)]
    outcome = _run(run, executor, observers, first)
    later = [task for task in tasks if forced(task.variant)]
    if later and outcome.ok:
        outcome = _run(run, executor, observers, later)
    failed = [task for task in tasks if task.key in outcome.failed]
    for task in failed:
        with suppress(OSError):  # a full or vanished disk takes no note either; the outcome tells the reason
            run.store.fail(STAGE, task.variant, task.shard, outcome.failed[task.key])
    return outcome


def _run(run: Run, executor: Executor, observers: Sequence[Observer], tasks: Sequence[SampleTask]) -> Outcome:
    factory = partial(SampleWorker, run.config, run.hashes.sample)
    return executor.run(tasks, network_workers(run.config, factory, STAGE), observers)


def network_workers(config: Config, factory: Callable[[], Any], name: str) -> WorkerSpec:
    """Workers that hold the diffusion network, with the resources that the configuration gives to sampling."""
    return WorkerSpec(
        factory=factory,
        num_cpus=config.sampling.threads,
        num_gpus=config.ray.sampling_gpus,
        threads=config.sampling.threads,
        count=config.ray.sampling_actors or None,
        name=name,
    )


def failed(store: Store, variants: Sequence[str]) -> dict[str, str]:
    """Key to reason of the shards that failed for good."""
    return {
        SampleTask(variant, shard).key: reason
        for variant in variants
        for shard, reason in store.failures(STAGE, variant).items()
    }
