"""Structured logs: each event of a run as a record with the fields run, stage and shard, cell or edit.

On a cluster Ray writes records as JSON lines (`logging`, with job, node, actor and task added), in
the job's log those of the driver, in the nodes' logs those of the workers.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cluster.events import Event, Progress, TaskFailed, TaskStarted, Waiting, WorkerLost

UNIT = {"sample": "shard", "label": "shard", "probe": "cell", "intervene": "edit"}
"""Stage -> what one of its tasks is; other stages' are called task."""
WARNINGS = (TaskFailed, WorkerLost, Waiting)
HIDDEN = ("result", "key", "trace")

logger = logging.getLogger("scenesweep")


@dataclass(frozen=True)
class Logged:
    """Logs what it hears of one stage of a run."""

    run: str
    stage: str

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            return
        level = logging.WARNING if isinstance(event, WARNINGS) else logging.INFO
        if isinstance(event, TaskStarted):
            level = logging.DEBUG
        logger.log(level, _words(type(event).__name__), extra=self.fields(event))

    def fields(self, event: Event) -> dict[str, Any]:
        """What the record of an event holds beside its message."""
        own = {f.name: getattr(event, f.name) for f in dataclasses.fields(event) if f.name not in HIDDEN}
        if hasattr(event, "key"):
            own[UNIT.get(self.stage, "task")] = event.key.removeprefix(f"{self.stage}/")
        result = getattr(event, "result", {})
        numbers = {key: value for key, value in result.items() if isinstance(value, int | float)}
        return {"run": self.run, "stage": self.stage, **own, **numbers}


def config() -> Any:
    """How Ray is to log on a cluster: JSON lines, of the driver and of all workers."""
    import ray

    return ray.LoggingConfig(encoding="JSON", log_level="INFO", additional_log_standard_attrs=["name"])


def readable(lines: Iterable[str]) -> Iterable[str]:
    """The lines of a job's log that are not JSON records."""
    return (line for line in lines if not is_record(line))


def is_record(line: str) -> bool:
    """Whether a line of a job's log is one of these records."""
    if not line.startswith("{"):
        return False
    try:
        return "levelname" in json.loads(line)
    except ValueError:
        return False


def _words(name: str) -> str:
    """TaskDone -> task done."""
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()
