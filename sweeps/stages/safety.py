"""Safety flags of the trained model's images, shard by shard; curation drops flagged samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import storage
from cluster import Executor, Observer, Outcome
from sweeps.config.hashing import digest
from sweeps.config.schema import Config
from sweeps.runtime.layout import TRAINED
from sweeps.runtime.live_status import LiveStatus
from sweeps.runtime.run import Run
from sweeps.stages.base import PlanInput, StageInfo, StagePrice, StageStatus, label_workers

INFO = StageInfo("safety", verb="curate", doing="safety checker", unit="shards", cost="curate", required=True)
STAGE = INFO.name


@dataclass(frozen=True, order=True)
class SafetyTask:
    """One shard."""

    shard: int

    @property
    def key(self) -> str:
        """Readable name, also in Ray's dashboard."""
        return f"{STAGE}/{self.shard:05d}"


class SafetyWorker:
    """Holds the safety checker; flags one shard's images per call."""

    def __init__(self, config: Config, stage_hash: str) -> None:
        from probing.diffusion.devices import pick_device
        from probing.labelling import safety

        self.stage_hash, self.store = stage_hash, storage.open(config.output)
        self.checker = safety.load(config.curation.safety_weights, pick_device(config.model.device))

    def __call__(self, task: SafetyTask) -> dict[str, int]:
        images = self.store.read_images(TRAINED, list(self.store.layout.shard_samples(task.shard)))
        flags = self.checker(images).tolist()
        note = {"stage_hash": self.stage_hash, "revision": self.checker.revision, "flags": flags}
        self.store.put_document(path(task.shard), note)
        return {"samples": len(flags)}


def path(shard: int) -> str:
    """Return the path of a shard's flags in the store."""
    return f"curation/{STAGE}/{shard:05d}.json"


def stage_hash(run: Run) -> str:
    """Return the hash of the images and the checker that flags depend on."""
    return digest(run.hashes.sample, run.config.curation.safety_weights)


def read(run: Run, shard: int) -> list[bool] | None:
    """Return the flags of a shard's samples, or None if there are none of the current settings."""
    note = run.store.readable_document(path(shard))
    return note.get("flags") if note.get("stage_hash") == stage_hash(run) else None


def missing(run: Run) -> list[SafetyTask]:
    """Return sampled shards without flags; none if curation does not use flags."""
    if not run.config.curation.safety:
        return []
    return [SafetyTask(s) for s in sorted(run.store.completed("sample", TRAINED)) if read(run, s) is None]


def execute(run: Run, executor: Executor, observers: Sequence[Observer], tasks: Sequence[SafetyTask]) -> Outcome:
    """Flag the given shards."""
    spec = label_workers(run.config, partial(SafetyWorker, run.config, stage_hash(run)), STAGE)
    return executor.run(tasks, spec, observers)


def status(run: Run, live: LiveStatus) -> StageStatus:
    """Return nothing: flags are part of curation, which has a row of its own."""
    return StageStatus()


def prices(plan: PlanInput) -> list[StagePrice]:
    """Return nothing: the checker's time is small beside labelling."""
    return []
