"""Labelling: saliency and depth of the trained model's images, shard by shard (section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import storage
from cluster import Executor, Observer, Outcome
from sweeps.config.schema import Config
from sweeps.runtime import inputs
from sweeps.runtime.layout import TRAINED
from sweeps.runtime.live_status import LiveStatus
from sweeps.runtime.run import Run
from sweeps.stages.base import PlanInput, StageInfo, StagePrice, StageStatus, StatusRow, label_workers, record_failures

INFO = StageInfo("label", verb="label", doing="labelling", unit="shards", cost="label", required=True)
STAGE = INFO.name


@dataclass(frozen=True, order=True)
class LabelTask:
    """One shard."""

    shard: int

    @property
    def key(self) -> str:
        """Readable name, also in Ray's dashboard."""
        return f"{STAGE}/{self.shard:05d}"


class LabelWorker:
    """Holds the labellers; labels one shard per call."""

    def __init__(self, config: Config, stage_hash: str) -> None:
        from probing.diffusion.devices import pick_device
        from probing.labelling import registry

        self.stage_hash = stage_hash
        self.store = storage.open(config.output)
        inputs.verify(self.store, config, STAGE)
        device = pick_device(config.model.device)
        self.labellers = {
            task: registry.build(task, getattr(config.labels, task), getattr(config.labels, f"{task}_weights"), device)
            for task in self.store.layout.tasks
        }

    def __call__(self, task: LabelTask) -> dict[str, int]:
        images = self.store.read_images(TRAINED, list(self.store.layout.shard_samples(task.shard)))
        for name, labeller in self.labellers.items():
            self.store.write_labels(name, task.shard, labeller(images))
        self.store.complete(STAGE, TRAINED, task.shard, stage_hash=self.stage_hash)
        return {"samples": len(images)}


def _completed(run: Run) -> set[int]:
    return run.store.completed(STAGE, TRAINED, stage_hash=run.hashes.label)


def missing(run: Run) -> list[LabelTask]:
    """Return sampled shards without labels of the current settings."""
    return [LabelTask(shard) for shard in sorted(run.store.completed("sample", TRAINED) - _completed(run))]


def complete(run: Run) -> bool:
    """Return whether every shard has labels of the current settings."""
    return len(_completed(run)) == run.store.layout.shards


def execute(run: Run, executor: Executor, observers: Sequence[Observer], tasks: Sequence[LabelTask]) -> Outcome:
    """Label the given shards and record those that failed."""
    spec = label_workers(run.config, partial(LabelWorker, run.config, run.hashes.label), STAGE)
    outcome = executor.run(tasks, spec, observers)
    record_failures(run, STAGE, outcome, {task.key: (TRAINED, task.shard) for task in tasks})
    return outcome


def status(run: Run, live: LiveStatus) -> StageStatus:
    """Return one row for all shards."""
    failed = {LabelTask(shard).key: reason for shard, reason in run.store.failures(STAGE, TRAINED).items()}
    running = live.count(f"{STAGE}/")
    row = StatusRow(
        "labelling",
        "shards",
        done=len(_completed(run)),
        total=run.store.layout.shards,
        failed=len(failed),
        running=running,
        pace=live.pace(STAGE) if running else "",
    )
    return StageStatus([row], failed)


def prices(plan: PlanInput) -> list[StagePrice]:
    """Return the number of labelled samples."""
    return [StagePrice("labelling", f"{plan.samples} samples")]
