"""The state of one run: the queue of tasks, the attempts at each, and how each ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cluster.events import Event, Observer, Progress, Result, TaskDone, TaskFailed, TaskStarted
from cluster.workers import Report

FREE_LOSSES = 8
"""How often a task may be lost with its node before a loss counts as its own failure."""


class Task(Protocol):
    """A unit of work: immutable, hashable, picklable, identified by its key."""

    @property
    def key(self) -> str: ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended, by task key."""

    done: dict[str, Result]
    """The dict that each finished task returned."""
    failed: dict[str, str]
    """The last error, on one line, of each task that was given up."""
    attempts: dict[str, int]
    """Number of starts of each task."""

    @property
    def ok(self) -> bool:
        return not self.failed

    def merged(self, later: Outcome) -> Outcome:
        """Return the outcome of this run followed by another one with other tasks."""
        return Outcome(self.done | later.done, self.failed | later.failed, self.attempts | later.attempts)


@dataclass
class Ledger:
    """Queue and counts of one run, for both executors.

    A failed task goes to the end of the queue, so that it does not hold up the others, and is given
    up after `retries` further attempts. The loss of its node is not the task's fault, so
    `FREE_LOSSES` of them do not count.
    """

    tasks: Sequence[Task]
    retries: int
    observers: Iterable[Observer] = ()
    queue: deque[Task] = field(init=False)
    running: set[str] = field(init=False, default_factory=set)
    attempts: dict[str, int] = field(init=False, default_factory=dict)
    failures: dict[str, int] = field(init=False, default_factory=dict)
    """Failed attempts that count, by task."""
    losses: dict[str, int] = field(init=False, default_factory=dict)
    """Attempts lost with their node, by task."""
    done: dict[str, Result] = field(init=False, default_factory=dict)
    failed: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise ValueError(f"retries: {self.retries} is below 0; 0 means a single attempt")
        keys = [task.key for task in self.tasks]
        assert len(set(keys)) == len(keys), "two tasks have the same key"
        self.observers = tuple(self.observers)
        self.queue = deque(self.tasks)

    @property
    def open(self) -> int:
        """Number of tasks that are neither done nor given up."""
        return len(self.queue) + len(self.running)

    def take(self, worker: str) -> Task:
        """Remove the next task from the queue and record that `worker` started it."""
        task = self.queue.popleft()
        self.attempts[task.key] = self.attempts.get(task.key, 0) + 1
        self.running.add(task.key)
        self.emit(TaskStarted(task.key, self.attempts[task.key], worker))
        return task

    def settle(self, task: Task, report: Report) -> None:
        """Record a worker's report on a task."""
        if report.error is None:
            assert report.result is not None
            self.running.remove(task.key)
            self.done[task.key] = report.result
            self.emit(TaskDone(task.key, self.attempts[task.key], report.seconds, report.result))
            self._progress()
        else:
            self._record_failure(task, report.error, report.seconds, report.trace, counts=True)

    def lost(self, task: Task, reason: str, *, node: bool, seconds: float = 0.0) -> None:
        """Record that a task's worker died; `node`: together with its node, which is not the task's fault."""
        losses = self.losses[task.key] = self.losses.get(task.key, 0) + int(node)
        self._record_failure(task, reason, seconds, "", counts=not node or losses > FREE_LOSSES)

    def emit(self, event: Event) -> None:
        for observer in self.observers:
            observer(event)

    def outcome(self) -> Outcome:
        assert not self.open, "the run has not ended"
        return Outcome(dict(self.done), dict(self.failed), dict(self.attempts))

    def _record_failure(self, task: Task, error: str, seconds: float, trace: str, *, counts: bool) -> None:
        failures = self.failures[task.key] = self.failures.get(task.key, 0) + int(counts)
        final = failures > self.retries
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
