"""Colours of images decoded from the clean estimates, for the control `surface_rgb`; kept in a store of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import storage
from cluster import Executor, Observer, Outcome
from probing.probes.controls import PICTURE, PICTURE_SITE, POINTS
from storage import Layout, SiteShape, Store
from sweeps.config.schema import GRID, Config
from sweeps.runtime import grid, side_store
from sweeps.runtime.layout import TRAINED
from sweeps.runtime.live_status import LiveStatus
from sweeps.runtime.run import ModelInfo, Run
from sweeps.stages.base import (
    PlanInput,
    StageInfo,
    StagePrice,
    StageStatus,
    load_model,
    network_workers,
    status_if_left,
)

INFO = StageInfo("decoded", verb="probe", doing="decoding clean estimates", unit="shards", cost="decoded")
STAGE = INFO.name
FOLDER = "decoded"
"""inside the output; beside the main store, which therefore does not depend on which controls are fitted"""


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
    """Return the URL of a run's decoded colours."""
    return f"{output.rstrip('/')}/{FOLDER}"


def record_stage(step: int) -> str:
    """Return the stage of a step's completion records."""
    return f"{PICTURE_SITE}.{step:02d}"


def layout(run: Run) -> Layout:
    """Return the one array of the store. Raises ValueError if the run has no latents to decode."""
    main = run.store.layout
    if not main.latent:
        raise ValueError(
            f"sweep.controls={PICTURE}: {run.config.output} holds no latents to decode; "
            f"leave {PICTURE} out, or sample into another output"
        )
    return side_store.layout(main, [SiteShape(PICTURE_SITE, POINTS**2 * main.latent[1] * main.latent[2], 3)], ())


def space(config: Config, model: ModelInfo, samples: int) -> int:
    """Return the bytes of the colours that a run stores for so many samples."""
    _, height, width = model.latent
    return 2 * samples * len(grid.picture_steps(config.sweep)) * POINTS**2 * height * width * 3


class DecodeWorker:
    """Holds the decoder; decodes the missing steps of one shard per call."""

    def __init__(self, config: Config, stage_hash: str) -> None:
        self.stage_hash = stage_hash
        self.source, self.target = storage.open(config.output), storage.open(url(config.output))
        self.model = load_model(config)

    def __call__(self, task: DecodeTask) -> dict[str, int]:
        import torch

        from probing.probes.surface import picture_points

        rows, latent = self.source.layout.shard_samples(task.shard), self.source.layout.latent
        for step in task.steps:
            _, clean = self.source.read_latents(TRAINED, step, list(rows))
            images = self.model.decode(torch.from_numpy(clean).to(self.model.device)).numpy()
            points = picture_points(images, (latent[1], latent[2]))
            self.target.write_activation(TRAINED, PICTURE_SITE, step, task.shard, points)
            self.target.complete(record_stage(step), TRAINED, task.shard, stage_hash=self.stage_hash)
        return {"samples": len(rows), "steps": len(task.steps)}


def missing(run: Run) -> list[DecodeTask]:
    """Return sampled shards that lack steps at which probes of the control are still to be fitted."""
    probes = {p for p in grid.probe_specs(run.config.sweep, (TRAINED,), run.sites) if p.control == PICTURE}
    if not probes:
        return []
    steps = sorted({probe.step for probe in probes - grid.finished(run.store, GRID, run.hashes.probe)})
    records = {step: record_stage(step) for step in steps}
    left = side_store.missing_steps(run, url(run.config.output), records)
    return [DecodeTask(shard, steps) for shard, steps in left]


def execute(run: Run, executor: Executor, observers: Sequence[Observer], tasks: Sequence[DecodeTask]) -> Outcome:
    """Decode the given shards and steps."""
    Store.create(url(run.config.output), layout(run)).remove_partial_files()
    factory = partial(DecodeWorker, run.config, run.hashes.sample)
    return executor.run(tasks, network_workers(run.config, factory, STAGE), observers)


def status(run: Run, live: LiveStatus) -> StageStatus:
    """Return a row only if shards are left."""
    return status_if_left(run, INFO, missing(run))


def prices(plan: PlanInput) -> list[StagePrice]:
    """Return the number of decoded clean estimates."""
    steps = len(grid.picture_steps(plan.config.sweep))
    return [StagePrice("decoding", f"{plan.samples * steps} clean estimates, for {PICTURE}")] if steps else []
