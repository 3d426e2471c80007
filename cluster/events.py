"""Events of a run and the observers that hear them; nothing here logs or prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class WorkerReady:
    """A worker has built what it works with (its model) and takes tasks from now on."""

    worker: str
    """Readable name: stage and index, as in Ray's dashboard."""
    seconds: float
    """Time the factory took."""


@dataclass(frozen=True)
class WorkerLost:
    """A worker's process or its node has gone; another takes its place."""

    worker: str
    reason: str


@dataclass(frozen=True)
class Waiting:
    """No node of the cluster holds a worker yet; the run waits for one to join."""

    reason: str


@dataclass(frozen=True)
class TaskStarted:
    """A task was handed to a worker."""

    key: str
    attempt: int
    """1 for the first start of this task; every start counts, whatever ended the one before."""
    worker: str


@dataclass(frozen=True)
class TaskDone:
    """A task returned."""

    key: str
    attempt: int
    seconds: float
    """Time inside the worker."""
    result: dict[str, Any] = field(hash=False)
    """What the worker returned; small, see `cluster.workers.RESULT_BYTES`."""


@dataclass(frozen=True)
class TaskFailed:
    """One attempt at a task failed."""

    key: str
    attempt: int
    seconds: float
    error: str
    """One line: type and message, or how the worker died."""
    trace: str = ""
    """The worker's traceback, where there is one."""
    final: bool = False
    """True when the task will not be tried again in this run."""


@dataclass(frozen=True)
class Progress:
    """Counts of tasks, sent after each change."""

    done: int
    failed: int
    running: int
    total: int


Event = WorkerReady | WorkerLost | Waiting | TaskStarted | TaskDone | TaskFailed | Progress


class Observer(Protocol):
    """Anything callable with an event. What it raises ends the run and reaches the caller."""

    def __call__(self, event: Event, /) -> None: ...
