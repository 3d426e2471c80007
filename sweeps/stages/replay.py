"""Activations of the further families of sites, read by running the network again on stored latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import storage
from cluster import Executor, Observer, Outcome
from probing.diffusion import model
from probing.diffusion.conditioning import conditions
from probing.diffusion.replay import entering, replay_unet, replay_vae
from storage import Layout, SiteShape, Store
from sweeps.config.schema import STEPS, Config
from sweeps.runtime import side_store
from sweeps.runtime.layout import VARIANT
from sweeps.runtime.run import ModelInfo, Run
from sweeps.stages.experiments import registry
from sweeps.stages.sample import network_workers

STAGE = "family"
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
    """Where the families' activations of a run are."""
    return f"{output.rstrip('/')}/{FOLDER}"


def record_stage(family: str, step: int) -> str:
    """Each step has completion records of its own, so that more steps can be added later."""
    return f"{family}.{step:02d}"


def layout(run: Run) -> Layout:
    """The arrays of the families; they are made whole, whatever part of them is filled."""
    main = run.store.layout
    sites = [site for family in FAMILIES for site in run.facts.families[family]]
    return side_store.layout(main, [SiteShape(site.name, site.tokens, site.channels) for site in sites], main.latent)


def space(config: Config, found: ModelInfo, samples: int) -> int:
    """Bytes of the families' activations that a run of so many samples records."""
    total = 0
    for family in FAMILIES:
        if family in config.experiments.names:
            steps = set(getattr(config.experiments, f"{family}_steps") or config.sweep.steps)
            total += 2 * samples * len(steps) * sum(site.values for site in found.families[family])
    return total


class FamilyWorker:
    """Holds the model; runs the missing steps of one shard again."""

    def __init__(self, config: Config, stage_hash: str) -> None:
        self.stage_hash = stage_hash
        self.source, self.target = storage.open(config.output), storage.open(url(config.output))
        self.model = model.load(config.model)
        table = self.source.samples().to_pydict()
        self.prompts, self.seeds = table["prompt"], table["seed"]

    def __call__(self, task: FamilyTask) -> dict[str, Any]:
        rows = self.source.layout.shard_samples(task.shard)
        run = self._conv if task.family == "conv" else self._vae
        run(task, range(rows.start, rows.stop))
        return {"samples": len(rows), "steps": len(task.steps)}

    def _conv(self, task: FamilyTask, rows: range) -> None:
        sites = self.model.sites("conv")
        told = conditions(self.model, [self.prompts[i] for i in rows], guided=False)
        for step in task.steps:
            latents = self._before(step, rows)
            write = partial(self._write, step, task.shard)
            replay_unet(self.model, told, latents, step, STEPS, sites, write)
            self._complete(task, step)

    def _vae(self, task: FamilyTask, rows: range) -> None:
        (site,) = self.model.sites("vae")
        for step in task.steps:
            write = partial(self._write, step, task.shard)
            replay_vae(self.model, self._after(step, rows), step, site, write)
            self._complete(task, step)

    def _after(self, step: int, rows: range) -> torch.Tensor:
        return torch.from_numpy(self.source.read_latents(VARIANT, step, list(rows))[0])

    def _before(self, step: int, rows: range) -> torch.Tensor:
        if step == 1:
            return entering(self.model, [self.seeds[i] for i in rows], STEPS)
        return self._after(step - 1, rows)

    def _write(self, step: int, shard: int, site: str, values: Any) -> None:
        self.target.write_activation(VARIANT, site, step, shard, values)

    def _complete(self, task: FamilyTask, step: int) -> None:
        stage = record_stage(task.family, step)
        self.target.complete(stage, VARIANT, task.shard, stage_hash=self.stage_hash)


def missing(run: Run) -> list[FamilyTask]:
    """Sampled shards that lack steps which probes are still to be fitted at."""
    left = registry.missing(run)
    wanted = {f: sorted({cell.step for cell in left.get(f, ())}) for f in FAMILIES}
    if not any(wanted.values()):
        return []
    store = side_store.opened(url(run.config.output))
    sampled = sorted(run.store.completed("sample", VARIANT))
    found = []
    for family, steps in wanted.items():
        have = {step: _done(run, store, family, step) for step in steps}
        for shard in sampled:
            if todo := tuple(step for step in steps if shard not in have[step]):
                found.append(FamilyTask(family, shard, todo))
    return found


def _done(run: Run, store: Store | None, family: str, step: int) -> set[int]:
    if store is None:
        return set()
    return store.completed(record_stage(family, step), VARIANT, stage_hash=run.hashes.sample)


def work(run: Run, executor: Executor, observers: Sequence[Observer], tasks: Sequence[FamilyTask]) -> Outcome:
    """Fills the given parts of the families' store."""
    Store.create(url(run.config.output), layout(run)).remove_partial_files()
    factory = partial(FamilyWorker, run.config, run.hashes.sample)
    return executor.run(tasks, network_workers(run.config, factory, STAGE), observers)
