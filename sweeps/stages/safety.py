"""The safety checker's flags of the trained model's images, shard by shard, for curation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import storage
from cluster import Executor, Observer, Outcome, WorkerSpec
from probing.diffusion.model import pick_device
from sweeps.config.hashing import digest
from sweeps.config.schema import Config
from sweeps.runtime.run import Run

STAGE = "safety"
VARIANT = "trained"


@dataclass(frozen=True, order=True)
class SafetyTask:
    """One shard."""

    shard: int

    @property
    def key(self) -> str:
        """Readable name, also in Ray's dashboard."""
        return f"{STAGE}/{self.shard:05d}"


class SafetyWorker:
    """Holds the checker; flags one shard's images a call."""

    def __init__(self, config: Config, stage_hash: str) -> None:
        from probing.labelling import safety

        self.stage_hash, self.store = stage_hash, storage.open(config.output)
        self.checker = safety.load(config.curation.safety_weights, pick_device(config.model.device))

    def __call__(self, task: SafetyTask) -> dict[str, Any]:
        images = self.store.read_images(VARIANT, list(self.store.layout.shard_samples(task.shard)))
        flags = self.checker(images).tolist()
        note = {"stage_hash": self.stage_hash, "revision": self.checker.revision, "flags": flags}
        self.store.put(path(task.shard), json.dumps(note).encode())
        return {"samples": len(flags)}


def path(shard: int) -> str:
    """Where a shard's flags are kept."""
    return f"curation/{STAGE}/{shard:05d}.json"


def stage_hash(run: Run) -> str:
    """Names the images and the checker that flags speak of."""
    return digest(run.hashes.sample, run.config.curation.safety_weights)


def read(run: Run, shard: int) -> list[bool] | None:
    """Flags of a shard's samples of the present settings; None where there are none."""
    if not run.store.exists(path(shard)):
        return None
    try:
        note = json.loads(run.store.get(path(shard)))
        return note["flags"] if note["stage_hash"] == stage_hash(run) else None
    except (ValueError, KeyError, TypeError):
        return None


def missing(run: Run) -> list[SafetyTask]:
    """Sampled shards without flags; none where curation does not ask for flags."""
    if not run.config.curation.safety:
        return []
    return [SafetyTask(s) for s in sorted(run.store.completed("sample", VARIANT)) if read(run, s) is None]


def work(run: Run, executor: Executor, observers: Sequence[Observer], tasks: Sequence[SafetyTask]) -> Outcome:
    """Flags the given shards."""
    spec = WorkerSpec(
        factory=partial(SafetyWorker, run.config, stage_hash(run)),
        num_gpus=run.config.ray.label_gpus,
        threads=run.config.sampling.threads,
        count=None,
        name=STAGE,
    )
    return executor.run(tasks, spec, observers)
