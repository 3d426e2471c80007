"""The labelling stage: saliency and depth of the trained model's images, shard by shard."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import storage
from cluster import Executor, Observer, Outcome, WorkerSpec
from probing.diffusion.model import pick_device
from probing.labelling import registry
from sweeps.config.schema import Config
from sweeps.runtime.run import Run

STAGE = "label"
VARIANT = "trained"
"""labels always come from the trained model's image (protocol)"""


@dataclass(frozen=True, order=True)
class LabelTask:
    """One shard."""

    shard: int

    @property
    def key(self) -> str:
        """Readable name, also in Ray's dashboard."""
        return f"{STAGE}/{self.shard:05d}"


class LabelWorker:
    """Holds the labellers; labels one shard a call."""

    def __init__(self, config: Config, stage_hash: str) -> None:
        self.stage_hash = stage_hash
        self.store = storage.open(config.output)
        device = pick_device(config.model.device)
        self.labellers = {
            task: registry.build(task, getattr(config.labels, task), getattr(config.labels, f"{task}_weights"), device)
            for task in self.store.layout.tasks
        }

    def __call__(self, task: LabelTask) -> dict[str, Any]:
        rows = self.store.layout.shard_samples(task.shard)
        images = self.store.read_images(VARIANT, list(rows))
        for name, labeller in self.labellers.items():
            self.store.write_labels(name, task.shard, labeller(images))
        self.store.complete(STAGE, VARIANT, task.shard, stage_hash=self.stage_hash)
        return {"samples": len(images)}


def missing(run: Run) -> list[LabelTask]:
    """Sampled shards without labels of the present settings."""
    done = run.store.completed(STAGE, VARIANT, stage_hash=run.hashes.label)
    sampled = run.store.completed("sample", VARIANT)
    return [LabelTask(shard) for shard in sorted(sampled - done)]


def work(run: Run, executor: Executor, observers: Sequence[Observer], tasks: Sequence[LabelTask]) -> Outcome:
    """Labels the given shards."""
    spec = WorkerSpec(
        factory=partial(LabelWorker, run.config, run.hashes.label),
        num_gpus=run.config.ray.label_gpus,
        threads=run.config.sampling.threads,
        count=None,
        name=STAGE,
    )
    outcome = executor.run(tasks, spec, observers)
    failed = [task for task in tasks if task.key in outcome.failed]
    for task in failed:
        with suppress(OSError):  # a full or vanished disk takes no note either; the outcome tells the reason
            run.store.fail(STAGE, VARIANT, task.shard, outcome.failed[task.key])
    return outcome
