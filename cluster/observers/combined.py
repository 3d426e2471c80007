"""An executor whose runs are also measured and logged: metrics for Prometheus, records for logs."""

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
    """What hears every event of a stage on Ray, besides the user's progress."""
    return [Metrics(run, stage), Logged(run, stage)]


@dataclass(frozen=True)
class Observed:
    """Passes tasks on to another executor and adds observers of its own."""

    executor: Executor
    name: str
    """of the run"""
    further: Callable[[str], Sequence[Observer]] | None = None
    """stage -> observers of the caller's own"""

    @property
    def retries(self) -> int:
        return self.executor.retries

    def run(self, tasks: Sequence[Task], worker: WorkerSpec, observers: Iterable[Observer] = ()) -> Outcome:
        """As `Executor.run`."""
        further = self.further(worker.name) if self.further else ()
        return self.executor.run(tasks, worker, [*observers, *watchers(self.name, worker.name), *further])
