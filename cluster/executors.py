"""One interface for running tasks on workers, and its simplest form, in this process."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.events import Observer, WorkerReady
from cluster.ledger import Ledger, Outcome, Task
from cluster.process import pinned_threads
from cluster.workers import Worker, WorkerSpec, assert_ours, attempt, one_line


class Executor(Protocol):
    """Runs tasks on workers; the forms differ in where, not in what comes out."""

    @property
    def retries(self) -> int:
        """Further attempts at a task after its first failure."""
        ...

    def run(self, tasks: Sequence[Task], worker: WorkerSpec, observers: Iterable[Observer] = ()) -> Outcome:
        """Run every task to success or to its last failure.

        Raises what the factory raises (a ValueError at once, anything else after `retries` further
        tries in a row), what an observer raises, and KeyboardInterrupt; workers are gone by then.
        """
        ...


@dataclass(frozen=True)
class InProcess:
    """Runs the tasks one after another here: the reference that the Ray form is tested against.

    It makes one worker whatever `WorkerSpec.count` says, and cannot survive a task that kills its
    process.
    """

    retries: int = 2

    def run(self, tasks: Sequence[Task], worker: WorkerSpec, observers: Iterable[Observer] = ()) -> Outcome:
        ledger = Ledger(tasks, self.retries, observers)
        if not ledger.open:
            return ledger.outcome()
        with pinned_threads(worker.threads):
            name = f"{worker.name}.0"
            work = self._build(worker, name, ledger)
            while ledger.queue:
                task = ledger.take(name)
                ledger.settle(task, attempt(work, task))
        return ledger.outcome()

    def _build(self, worker: WorkerSpec, name: str, ledger: Ledger) -> Worker:
        assert_ours()
        start = time.perf_counter()
        work = build_with_retries(worker, self.retries)
        ledger.emit(WorkerReady(name, time.perf_counter() - start))
        return work


def build_with_retries(worker: WorkerSpec, retries: int) -> Worker:
    """Call the factory; a ValueError is the user's to mend, anything else may pass on a retry."""
    for tries_left in range(retries, -1, -1):
        try:
            return worker.factory()
        except ValueError:
            raise
        except Exception as error:
            if not tries_left:
                raise WorkerFailed(f"no worker for {worker.name}: {one_line(error)}") from error
    raise AssertionError("unreachable")


class WorkerFailed(RuntimeError):
    """Workers could not be made, or not be kept alive long enough to take a task."""
