"""The stage of the experiments that follow the probes, such as emergence, with one set of workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from cluster import Executor, Observer, Outcome, WorkerSpec
from sweeps.runtime.run import Run
from sweeps.stages.experiments import converged, emergence, renders, transfer
from sweeps.stages.experiments.converged import ConvergedTask
from sweeps.stages.experiments.emergence import EmergenceTask
from sweeps.stages.experiments.renders import TruthTask
from sweeps.stages.experiments.transfer import TransferTask

STAGE = "experiments"
Task = EmergenceTask | TransferTask | ConvergedTask | TruthTask
PARTS: Mapping[type, Any] = {
    EmergenceTask: emergence,
    TransferTask: transfer,
    ConvergedTask: converged,
    TruthTask: renders,
}


class ExperimentsWorker:
    """Makes a part's worker when its first task comes, so that each process loads a model at most once."""

    def __init__(self, makers: Mapping[type, Callable[[], Callable[[Any], dict[str, Any]]]]) -> None:
        self.makers = makers
        self.made: dict[type, Callable[[Any], dict[str, Any]]] = {}

    def __call__(self, task: Task) -> dict[str, Any]:
        kind = type(task)
        if kind not in self.made:
            self.made[kind] = self.makers[kind]()
        return self.made[kind](task)


def missing(run: Run) -> list[Task]:
    """Tasks of all parts without rows of the present settings."""
    return [task for part in PARTS.values() for task in part.missing(run)]


def total(run: Run) -> int:
    """How many tasks all parts have, finished or not; samples are curated."""
    return sum(len(part.tasks(run)) for part in PARTS.values())


def work(run: Run, executor: Executor, observers: Sequence[Observer], tasks: Sequence[Task]) -> Outcome:
    """Carries out the given tasks."""
    config = run.config
    spec = WorkerSpec(
        factory=partial(ExperimentsWorker, {kind: PARTS[kind].worker(run) for kind in {type(t) for t in tasks}}),
        num_cpus=config.sampling.threads,
        num_gpus=config.ray.sampling_gpus,
        threads=config.sampling.threads,
        count=config.ray.sampling_actors or None,
        name=STAGE,
    )
    return executor.run(tasks, spec, observers)
