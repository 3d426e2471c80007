"""Ray: connections, executors and their in-process counterpart, job submission, deployment files.

The names below are the entrance, together with these modules: `actors` (the executor on Ray),
`session` (connecting), `resources` and `facts` (the connected cluster), `submit` (jobs),
`process` (temporary changes to a process) and `observers`. The package may
import `storage`; only `sweeps` may import it. Only `actors` and `resources` import Ray with the module.
"""

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
    "Event", "Executor", "InProcess", "Observer", "Outcome", "Progress", "Session", "Task", "TaskDone", "TaskFailed",
    "TaskStarted", "Waiting", "WorkerFailed", "WorkerLost", "WorkerReady", "WorkerSpec", "assert_ours", "connect",
]  # fmt: skip
