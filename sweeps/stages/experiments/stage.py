"""The experiments that follow the probes, such as emergence, run by one set of workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from cluster import Executor, Observer, Outcome
from cluster.ledger import Task
from sweeps.runtime.live_status import LiveStatus
from sweeps.runtime.run import Run
from sweeps.stages import curate
from sweeps.stages.base import PlanInput, StageInfo, StagePrice, StageStatus, StatusRow, network_workers, noted_failures
from sweeps.stages.experiments import converged, emergence, renders, transfer

INFO = StageInfo("experiments", verb="experiments", doing="experiments", unit="tasks", cost="experiments")
T = TypeVar("T", bound=Task)
Results = dict[str, int]


class Experiment(Protocol[T]):
    """One experiment of the stage."""

    @property
    def NAME(self) -> str: ...  # noqa: N802

    def tasks(self, run: Run) -> list[T]:
        """Return all tasks of the configuration. Raises ValueError if it needs curated samples and there are none."""
        ...

    def missing(self, run: Run) -> list[T]:
        """Return the tasks without rows of the current settings."""
        ...

    def worker(self, run: Run) -> Callable[[], Callable[[T], Results]]:
        """Return a factory of the worker, which is called in the worker's process."""
        ...

    def prices(self, plan: PlanInput) -> list[StagePrice]:
        """Return the experiment's work before anything runs."""
        ...


EXPERIMENTS: tuple[Experiment[Any], ...] = (emergence, transfer, converged, renders)


class ExperimentsWorker:
    """Builds an experiment's worker when its first task comes, so that each process loads a model at most once."""

    def __init__(self, factories: Mapping[str, Callable[[], Callable[[Any], Results]]]) -> None:
        self.factories = factories
        self.workers: dict[str, Callable[[Any], Results]] = {}

    def __call__(self, task: Task) -> Results:
        name = task.key.partition("/")[0]
        if name not in self.workers:
            self.workers[name] = self.factories[name]()
        return self.workers[name](task)


def missing(run: Run) -> list[Task]:
    """Return the tasks of all experiments without rows of the current settings."""
    return [task for experiment in EXPERIMENTS for task in experiment.missing(run)]


def execute(run: Run, executor: Executor, observers: Sequence[Observer], tasks: Sequence[Task]) -> Outcome:
    """Run the given tasks."""
    names = {task.key.partition("/")[0] for task in tasks}
    factories = {one.NAME: one.worker(run) for one in EXPERIMENTS if one.NAME in names}
    spec = network_workers(run.config, partial(ExperimentsWorker, factories), INFO.name)
    return executor.run(tasks, spec, observers)


def status(run: Run, live: LiveStatus) -> StageStatus:
    """Return one row for all experiments; before curation their number is unknown."""
    if not curate.done(run):
        return StageStatus()
    left = missing(run)
    total = sum(len(experiment.tasks(run)) for experiment in EXPERIMENTS)
    failed = noted_failures(run, INFO.name, left)
    row = StatusRow("other experiments", "tasks", done=total - len(left), total=total, failed=len(failed))
    return StageStatus([row], failed)


def prices(plan: PlanInput) -> list[StagePrice]:
    """Return the work of each experiment."""
    return [price for experiment in EXPERIMENTS for price in experiment.prices(plan)]
