"""Events of a run and the observers that receive them; nothing here logs or prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

Result = dict[str, Any]
"""What a task returns: plain values by name, at most `cluster.workers.RESULT_BYTES` when pickled."""


@dataclass(frozen=True)
class WorkerReady:
    """A worker has built what it needs, such as its model, and now takes tasks."""

    worker: str
    """Readable name: stage and index, as in Ray's dashboard."""
    seconds: float
    """Duration of the factory's call."""


@dataclass(frozen=True)
class WorkerLost:
    """A worker's process or node is gone; another worker takes its place."""

    worker: str
    reason: str


@dataclass(frozen=True)
class Waiting:
    """No node of the cluster can hold a worker yet; the run waits for one to join."""

    reason: str


@dataclass(frozen=True)
class TaskStarted:
    """A task was handed to a worker."""

    key: str
    attempt: int
    """Number of this start of the task, from 1; every start counts, however the previous one ended."""
    worker: str


@dataclass(frozen=True)
class TaskDone:
    """A task returned."""

    key: str
    attempt: int
    seconds: float
    """Time inside the worker."""
    result: Result = field(hash=False)


@dataclass(frozen=True)
class TaskFailed:
    """One attempt at a task failed."""

    key: str
    attempt: int
    seconds: float
    error: str
    """One line: type and message, or how the worker died."""
    trace: str = ""
    """The worker's traceback, if there is one."""
    final: bool = False
    """Whether the task is given up in this run."""


@dataclass(frozen=True)
class Progress:
    """Counts of tasks, sent after each change."""

    done: int
    failed: int
    running: int
    total: int


Event = WorkerReady | WorkerLost | Waiting | TaskStarted | TaskDone | TaskFailed | Progress


class Observer(Protocol):
    """A callable that takes an event. An exception that it raises ends the run and reaches the caller."""

    def __call__(self, event: Event, /) -> None: ...
