"""Colours of pictures decoded from the clean estimates, for the control surface_rgb: a store of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import storage
from cluster import Executor, Observer, Outcome
from probing.diffusion import model
from probing.probes.controls import PICTURE, PICTURE_SITE, POINTS
from probing.probes.surface import picture_points
from storage import Layout, SiteShape, Store
from sweeps.config.schema import GRID, Config
from sweeps.runtime import grid, side_store
from sweeps.runtime.layout import VARIANT
from sweeps.runtime.run import ModelInfo, Run
from sweeps.stages.sample import network_workers

STAGE = "decoded"
FOLDER = "decoded"
"""inside the output; beside the main store, which so does not depend on which controls are fitted"""


@dataclass(frozen=True, order=True)
class DecodeTask:
    """The missing steps of one shard."""

    shard: int
    steps: tuple[int, ...]

    @property
    def key(self) -> str:
        """Readable name, also in Ray's dashboard."""
        return f"{STAGE}/{self.shard:05d}"


def url(output: str) -> str:
    """Where the decoded colours of a run are."""
    return f"{output.rstrip('/')}/{FOLDER}"


def record_stage(step: int) -> str:
    """Each step has completion records of its own, so that more steps can be added later."""
    return f"{PICTURE_SITE}.{step:02d}"


def layout(run: Run) -> Layout:
    """The one array of the store. Raises ValueError where the run has no latents to decode."""
    main = run.store.layout
    if not main.latent:
        raise ValueError(
            f"sweep.controls={PICTURE}: {run.config.output} holds no latents, and it is these that are decoded; "
            f"leave {PICTURE} out, or sample into another output"
        )
    return side_store.layout(main, [SiteShape(PICTURE_SITE, POINTS**2 * main.latent[1] * main.latent[2], 3)], ())


def space(config: Config, found: ModelInfo, samples: int) -> int:
    """Bytes of the colours that a run of so many samples stores."""
    _, height, width = found.latent
    return 2 * samples * len(grid.picture_steps(config.sweep)) * POINTS**2 * height * width * 3


class DecodeWorker:
    """Holds the decoder; treats the missing steps of one shard a call."""

    def __init__(self, config: Config, stage_hash: str) -> None:
        self.stage_hash = stage_hash
        self.source, self.target = storage.open(config.output), storage.open(url(config.output))
        self.model = model.load(config.model)

    def __call__(self, task: DecodeTask) -> dict[str, Any]:
        rows, latent = self.source.layout.shard_samples(task.shard), self.source.layout.latent
        for step in task.steps:
            _, clean_ = self.source.read_latents(VARIANT, step, list(rows))
            images = self.model.decode(torch.from_numpy(clean_).to(self.model.device)).numpy()
            points = picture_points(images, (latent[1], latent[2]))
            self.target.write_activation(VARIANT, PICTURE_SITE, step, task.shard, points)
            self.target.complete(record_stage(step), VARIANT, task.shard, stage_hash=self.stage_hash)
        return {"samples": len(rows), "steps": len(task.steps)}


def missing(run: Run) -> list[DecodeTask]:
    """Sampled shards that lack steps at which probes of the control are still to be fitted."""
    sweep = run.config.sweep
    wanted = [c for c in grid.cells(sweep, (VARIANT,), run.sites) if c.control == PICTURE]
    if not wanted:
        return []
    steps = sorted({cell.step for cell in set(wanted) - grid.finished(run.store, GRID, run.hashes.probe)})
    store, found = side_store.opened(url(run.config.output)), []
    have = {step: _done(run, store, step) for step in steps}
    for shard in sorted(run.store.completed("sample", VARIANT)) if steps else ():
        if todo := tuple(step for step in steps if shard not in have[step]):
            found.append(DecodeTask(shard, todo))
    return found


def _done(run: Run, store: Store | None, step: int) -> set[int]:
    return set() if store is None else store.completed(record_stage(step), VARIANT, stage_hash=run.hashes.sample)


def work(run: Run, executor: Executor, observers: Sequence[Observer], tasks: Sequence[DecodeTask]) -> Outcome:
    """Fills the given parts of the store."""
    Store.create(url(run.config.output), layout(run)).remove_partial_files()
    factory = partial(DecodeWorker, run.config, run.hashes.sample)
    return executor.run(tasks, network_workers(run.config, factory, STAGE), observers)
