"""An executor whose runs are also observed: metrics for Prometheus, records for the logs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cluster.events import Observer
from cluster.executors import Executor
from cluster.ledger import Outcome, Task
from cluster.observers.logs import Logged
from cluster.observers.prometheus import Metrics
from cluster.workers import WorkerSpec


def watchers(run: str, stage: str) -> list[Observer]:
    """The observers of every stage on Ray, in addition to the user's progress display."""
    return [Metrics(run, stage), Logged(run, stage)]


@dataclass(frozen=True)
class Observed:
    """Passes tasks to another executor and adds observers."""

    executor: Executor
    name: str
    """Name of the run."""
    further: Callable[[str], Sequence[Observer]] | None = None
    """Stage -> additional observers."""

    @property
    def retries(self) -> int:
        return self.executor.retries

    def run(self, tasks: Sequence[Task], worker: WorkerSpec, observers: Iterable[Observer] = ()) -> Outcome:
        """As `Executor.run`."""
        further = self.further(worker.name) if self.further else ()
        return self.executor.run(tasks, worker, [*observers, *watchers(self.name, worker.name), *further])
