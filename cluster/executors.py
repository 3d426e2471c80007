"""The interface for running tasks on workers, and its simplest implementation, in this process."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.events import Observer, WorkerReady
from cluster.ledger import Ledger, Outcome, Task
from cluster.process import pinned_threads
from cluster.workers import Worker, WorkerSpec, assert_ours, attempt, one_line
from storage.errors import Unavailable


class Executor(Protocol):
    """Runs tasks on workers. Implementations differ in where the tasks run, not in their results."""

    @property
    def retries(self) -> int:
        """Number of further attempts at a task after its first failure."""
        ...

    def run(self, tasks: Sequence[Task], worker: WorkerSpec, observers: Iterable[Observer] = ()) -> Outcome:
        """Run every task to success or to its last failure.

        Raises ValueError if the factory does, WorkerFailed if it raises anything else `retries` + 1
        times in a row, and passes on what an observer raises and KeyboardInterrupt. The workers
        have ended by then.
        """
        ...


@dataclass(frozen=True)
class InProcess:
    """Runs the tasks one after another in this process: the reference for tests of the executor on Ray.

    It makes one worker whatever `WorkerSpec.count` is, and does not survive a task that kills its
    process.
    """

    retries: int = 2

    def run(self, tasks: Sequence[Task], worker: WorkerSpec, observers: Iterable[Observer] = ()) -> Outcome:
        ledger = Ledger(tasks, self.retries, observers)
        if not ledger.open:
            return ledger.outcome()
        with pinned_threads(worker.threads):
            name = f"{worker.name}.0"
            assert_ours()
            start = time.perf_counter()
            work = build_with_retries(worker, self.retries)
            ledger.emit(WorkerReady(name, time.perf_counter() - start))
            while ledger.queue:
                task = ledger.take(name)
                ledger.settle(task, attempt(work, task))
        return ledger.outcome()


def build_with_retries(worker: WorkerSpec, retries: int) -> Worker:
    """Call the factory, again if it raises anything but ValueError, which the user has to fix.

    Raises WorkerFailed after `retries` + 1 failures.
    """
    for tries_left in range(retries, -1, -1):
        try:
            return worker.factory()
        except ValueError:
            raise
        except Exception as error:
            if not tries_left:
                raise WorkerFailed(f"no worker for {worker.name}: {one_line(error)}") from error
    raise AssertionError("unreachable")


class WorkerFailed(Unavailable):
    """Workers could not be built, or died before they took a task."""
