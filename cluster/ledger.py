"""The books of one run: which task is tried when, how often, and how each of them ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cluster.events import Event, Observer, Progress, TaskDone, TaskFailed, TaskStarted
from cluster.workers import Report

FREE_LOSSES = 8
"""How often a task may go down with its node before that counts against the task itself."""


class Task(Protocol):
    """A unit of work: frozen, hashable, picklable, named by its key."""

    @property
    def key(self) -> str: ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended, by task key."""

    done: dict[str, dict[str, Any]]
    """The dict each finished task returned."""
    failed: dict[str, str]
    """The last error, one line, of each task that was given up."""
    attempts: dict[str, int]
    """How often each task was started."""

    @property
    def ok(self) -> bool:
        return not self.failed

    def merged(self, later: Outcome) -> Outcome:
        """Return the outcome of this run followed by another one with other tasks."""
        return Outcome(self.done | later.done, self.failed | later.failed, self.attempts | later.attempts)


@dataclass
class Ledger:
    """Queue and counts of one run; both executors keep their books here.

    A task that fails goes to the end of the queue, so that it does not hold up the others, and is
    given up after `retries` further attempts. Losing the node it ran on is not its own fault and
    is forgiven `FREE_LOSSES` times.
    """

    tasks: Sequence[Task]
    retries: int
    observers: Iterable[Observer] = ()
    queue: deque[Task] = field(init=False)
    running: set[str] = field(init=False, default_factory=set)
    attempts: dict[str, int] = field(init=False, default_factory=dict)
    charged: dict[str, int] = field(init=False, default_factory=dict)
    losses: dict[str, int] = field(init=False, default_factory=dict)
    done: dict[str, dict[str, Any]] = field(init=False, default_factory=dict)
    failed: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise ValueError(f"retries: {self.retries} is below 0; 0 means one attempt, no more")
        keys = [task.key for task in self.tasks]
        assert len(set(keys)) == len(keys), "two tasks with one key"
        self.observers = tuple(self.observers)
        self.queue = deque(self.tasks)

    @property
    def open(self) -> int:
        """Number of tasks that are neither done nor failed."""
        return len(self.queue) + len(self.running)

    def take(self, worker: str) -> Task:
        """The next task, counted as started by `worker`."""
        task = self.queue.popleft()
        self.attempts[task.key] = self.attempts.get(task.key, 0) + 1
        self.running.add(task.key)
        self.emit(TaskStarted(task.key, self.attempts[task.key], worker))
        return task

    def settle(self, task: Task, report: Report) -> None:
        """Book what a worker reported of a task."""
        if report.error is None:
            assert report.result is not None
            self.running.remove(task.key)
            self.done[task.key] = report.result
            self.emit(TaskDone(task.key, self.attempts[task.key], report.seconds, report.result))
            self._progress()
        else:
            self._fault(task, report.error, report.seconds, report.trace, charge=True)

    def lost(self, task: Task, reason: str, *, node: bool, seconds: float = 0.0) -> None:
        """Book a task whose worker died; `node`: with the whole node, which is not its fault."""
        losses = self.losses[task.key] = self.losses.get(task.key, 0) + int(node)
        self._fault(task, reason, seconds, "", charge=not node or losses > FREE_LOSSES)

    def emit(self, event: Event) -> None:
        for observer in self.observers:
            observer(event)

    def outcome(self) -> Outcome:
        assert not self.open, "asked for the outcome of a run that goes on"
        return Outcome(dict(self.done), dict(self.failed), dict(self.attempts))

    def _fault(self, task: Task, error: str, seconds: float, trace: str, *, charge: bool) -> None:
        charged = self.charged[task.key] = self.charged.get(task.key, 0) + int(charge)
        final = charged > self.retries
        self.running.remove(task.key)
        if final:
            self.failed[task.key] = error
        else:
            self.queue.append(task)
        attempt = self.attempts[task.key]
        self.emit(TaskFailed(task.key, attempt, seconds, error, trace, final))
        self._progress()

    def _progress(self) -> None:
        running, total = len(self.running), len(self.tasks)
        self.emit(Progress(len(self.done), len(self.failed), running, total))
