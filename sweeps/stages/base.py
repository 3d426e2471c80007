"""What a stage is: the protocol that the pipeline, `status` and `plan` loop over, and helpers that stages share.

A stage is a module that defines `INFO`, `missing`, `execute`, `status` and `prices`. `sweeps.stages.STAGES` lists
them in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

import storage
from cluster import Executor, Observer, Outcome, WorkerSpec
from cluster.ledger import Task
from cluster.workers import Worker
from probing.diffusion.sites import SiteSpec, recorded
from storage import Store
from sweeps.config.schema import Config
from sweeps.runtime import failures, inputs
from sweeps.runtime.live_status import LiveStatus
from sweeps.runtime.run import ModelInfo, Run

if TYPE_CHECKING:
    from probing.diffusion.families.base import LatentDiffusion
    from storage.budget import Budget


NOTES = "notes"
"""key of a task's result: lines for the user"""


@dataclass(frozen=True)
class StageInfo:
    """How a stage is named and what it means for the stages after it."""

    name: str
    """unique; prefix of the keys of its tasks"""
    verb: str
    """verb of the command line that runs it"""
    doing: str
    """label of its progress bar"""
    unit: str
    """what its progress bar counts"""
    cost: str
    """key of its wall-clock seconds in costs.json"""
    tasks: str = ""
    """what its tasks are called, if not by `unit`"""
    required: bool = False
    """whether later stages cannot start if one of its tasks failed"""


@dataclass(frozen=True)
class StatusRow:
    """One line of `scenesweep status`."""

    title: str
    unit: str = ""
    done: int = 0
    total: int | None = None
    """None if the number of tasks is not known yet, or if the stage is a single step"""
    failed: int = 0
    running: int = 0
    complete: bool = False
    """of a stage that is a single step"""
    pace: str = ""
    """rate and time left of a running stage"""


@dataclass(frozen=True)
class StageStatus:
    """How far a stage is."""

    rows: list[StatusRow] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """task to reason"""


@dataclass(frozen=True)
class StagePrice:
    """One line of the plan's table."""

    name: str
    work: str
    """amount of work, in words"""
    calls: float = 0.0
    """network calls: one sample at one denoising step, both halves of guidance together; 0.5 without guidance"""
    more: bool = False
    """whether the calls account for only part of the time"""


@dataclass(frozen=True)
class PlanInput:
    """What prices are computed from: the configuration, the model's metadata and counts of samples."""

    config: Config
    model_info: ModelInfo
    samples: int
    test: int
    """upper bound of the number of test samples after curation"""
    budget: Budget

    @property
    def sites(self) -> tuple[SiteSpec, ...]:
        """The recorded sites in order of execution."""
        return recorded(self.model_info.recordable, self.config.sampling.sites)


T = TypeVar("T", bound=Task)


class Stage(Protocol[T]):
    """One stage of a run; each resumes by subtraction: it executes what `missing` returns."""

    @property
    def INFO(self) -> StageInfo: ...  # noqa: N802

    def missing(self, run: Run) -> list[T]:
        """Return the tasks that have no result of the current settings and whose inputs exist."""
        ...

    def execute(self, run: Run, executor: Executor, observers: Sequence[Observer], tasks: Sequence[T]) -> Outcome:
        """Run the given tasks and record which of them failed."""
        ...

    def status(self, run: Run, live: LiveStatus) -> StageStatus:
        """Return counts of finished, running and failed tasks."""
        ...

    def prices(self, plan: PlanInput) -> list[StagePrice]:
        """Return the stage's work before anything runs."""
        ...


def load_model(config: Config, variants: int = 1) -> LatentDiffusion:
    """Return the model under study, for a worker. Raises ValueError if its files here are not those of the run."""
    from probing.diffusion import model

    inputs.verify(storage.open(config.output), config, "sample")
    return model.load(config.model, variants, config.sampling.scheduler, config.sampling.steps)


def network_workers(config: Config, factory: Callable[[], Worker], name: str) -> WorkerSpec:
    """Return workers that hold the diffusion network, with the resources that the configuration gives to sampling."""
    return WorkerSpec(
        factory=factory,
        num_cpus=config.sampling.threads,
        num_gpus=config.ray.sampling_gpus,
        threads=config.sampling.threads,
        count=config.ray.sampling_actors or None,
        name=name,
    )


def label_workers(config: Config, factory: Callable[[], Worker], name: str) -> WorkerSpec:
    """Return workers that hold networks applied to images, with the resources of labelling."""
    return WorkerSpec(
        factory=factory, num_gpus=config.ray.label_gpus, threads=config.sampling.threads, count=None, name=name
    )


def record_failures(run: Run, stage: str, outcome: Outcome, shards: dict[str, tuple[str, int]]) -> None:
    """Write failure records of shards, given as task key to (variant, shard)."""
    for key, reason in outcome.failed.items():
        with suppress(OSError):  # a full disk takes no record either; the outcome still holds the reason
            run.store.fail(stage, *shards[key], reason)


def next_attempt(store: Store, table: str) -> int:
    """Return a number above the attempts of all rows of a table, so that later rows win."""
    attempts = store.table(table, current=False)["attempt"].to_pylist()
    return 1 + max((attempt for attempt in attempts if attempt is not None), default=0)


def status_if_left(run: Run, info: StageInfo, left: Sequence[Task]) -> StageStatus:
    """Return a row with the tasks that are left, or no row if there are none."""
    failed = noted_failures(run, info.name, left)
    rows = [StatusRow(info.doing, info.unit, total=len(left), failed=len(failed))] if left else []
    return StageStatus(rows, failed)


def noted_failures(run: Run, stage: str, left: Sequence[Task]) -> dict[str, str]:
    """Return the reasons that a stage's last execution noted, of tasks that are still missing."""
    keys = {task.key for task in left}
    return {key: reason for key, reason in failures.read(run.store, stage).items() if key in keys}
