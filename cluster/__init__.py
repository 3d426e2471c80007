"""Ray: connecting, executors and their in-process twin, job submission, deployment files."""

from cluster.events import (
    Event,
    Observer,
    Progress,
    TaskDone,
    TaskFailed,
    TaskStarted,
    Waiting,
    WorkerLost,
    WorkerReady,
)
from cluster.executors import Executor, InProcess, WorkerFailed
from cluster.ledger import Outcome, Task
from cluster.session import Session, connect
from cluster.workers import WorkerSpec, assert_ours

__all__ = [
    "Event",
    "Executor",
    "InProcess",
    "Observer",
    "Outcome",
    "Progress",
    "Session",
    "Task",
    "TaskDone",
    "TaskFailed",
    "TaskStarted",
    "Waiting",
    "WorkerFailed",
    "WorkerLost",
    "WorkerReady",
    "WorkerSpec",
    "assert_ours",
    "connect",
]
