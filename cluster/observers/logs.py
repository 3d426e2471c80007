"""Structured logs: each event of a run is a record with the fields run, stage and shard, cell or edit.

On a cluster Ray writes the records of `logging` as JSON lines, with job, node, actor and task added:
those of the driver in the job's log, those of the workers in the logs of their nodes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.events import Event, Progress, TaskFailed, TaskStarted, Waiting, WorkerLost

if TYPE_CHECKING:
    import ray

UNIT = {"sample": "shard", "label": "shard", "probe": "cell", "intervene": "edit"}
"""Stage -> field that holds the key of its tasks; for other stages the field is `task`."""
WARNINGS = (TaskFailed, WorkerLost, Waiting)
HIDDEN = ("result", "key", "trace")

logger = logging.getLogger("scenesweep")


@dataclass(frozen=True)
class Logged:
    """Logs the events of one stage of a run."""

    run: str
    stage: str

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            return
        level = logging.WARNING if isinstance(event, WARNINGS) else logging.INFO
        if isinstance(event, TaskStarted):
            level = logging.DEBUG
        words = re.sub(r"(?<!^)(?=[A-Z])", " ", type(event).__name__).lower()  # TaskDone -> task done
        logger.log(level, words, extra=self.fields(event))

    def fields(self, event: Event) -> dict[str, Any]:
        """The fields of an event's record, besides its message."""
        own = {f.name: getattr(event, f.name) for f in dataclasses.fields(event) if f.name not in HIDDEN}
        if hasattr(event, "key"):
            own[UNIT.get(self.stage, "task")] = event.key.removeprefix(f"{self.stage}/")
        result = getattr(event, "result", {})
        numbers = {key: value for key, value in result.items() if isinstance(value, int | float)}
        return {"run": self.run, "stage": self.stage, **own, **numbers}


def config() -> ray.LoggingConfig:
    """Ray's logging on a cluster: JSON lines, for the driver and all workers."""
    import ray

    return ray.LoggingConfig(encoding="JSON", log_level="INFO", additional_log_standard_attrs=["name"])


def readable(lines: Iterable[str]) -> Iterable[str]:
    """The lines of a job's log that are not records."""
    return (line for line in lines if not is_record(line))


def is_record(line: str) -> bool:
    """Whether a line of a job's log is a JSON record."""
    if not line.startswith("{"):
        return False
    try:
        return "levelname" in json.loads(line)
    except ValueError:
        return False
