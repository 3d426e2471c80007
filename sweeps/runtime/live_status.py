"""The progress of the running stage, kept in the store for `scenesweep status` on another machine.

Nothing else depends on it, so a write that fails is ignored.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from cluster import Event, Progress, TaskDone, TaskFailed, TaskStarted
from storage import Store
from sweeps.runtime.progress import Pace
from sweeps.runtime.units import format_duration

PATH = "progress.json"
EVERY = 2.0
"""seconds between two writes"""


@dataclass
class LiveStatusWriter:
    """Observer that writes the running tasks, the rate and the time left."""

    store: Store
    stage: str
    running: dict[str, str] = field(default_factory=dict)
    """task to worker"""
    pace: Pace = field(default_factory=Pace)
    written: float = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, TaskStarted):
            self.running[event.key] = event.worker
        elif isinstance(event, TaskDone | TaskFailed):
            self.running.pop(event.key, None)
        elif isinstance(event, Progress):
            self._write(event)

    def _write(self, event: Progress) -> None:
        now, left = time.time(), event.total - event.done - event.failed
        self.pace.update(event.done + event.failed, now)
        if now - self.written < EVERY and left:
            return
        self.written = now
        seconds = self.pace.seconds(now)
        status = {
            "stage": self.stage,
            "running": dict(sorted(self.running.items())),
            "done": event.done,
            "failed": event.failed,
            "total": event.total,
            "rate": 1 / seconds if seconds else 0.0,
            "seconds_left": left * seconds if seconds else None if left else 0.0,
            "written": now,
        }
        with suppress(OSError):  # a full disk also fails the shards, and that is reported
            self.store.put(PATH, json.dumps(status, indent=1, sort_keys=True).encode())


@dataclass(frozen=True)
class LiveStatus:
    """What a running command wrote last; empty if nothing runs."""

    stage: str = ""
    running: Mapping[str, str] = field(default_factory=dict)
    rate: float = 0.0
    """tasks per second"""
    seconds_left: float | None = None

    def count(self, prefix: str) -> int:
        """Return the number of running tasks whose key starts with `prefix`."""
        return sum(key.startswith(prefix) for key in self.running)

    def pace(self, stage: str) -> str:
        """Return rate and time left of a stage as text; empty if it is not running."""
        if self.stage != stage or not self.rate:
            return ""
        left = f", {format_duration(self.seconds_left)} left" if self.seconds_left else ""
        return f"{60 * self.rate:.3g} a minute{left}"


def read(store: Store) -> LiveStatus:
    """Return the status of the command that works on the store now; empty if there is none."""
    if not store.exists(PATH) or not store.in_use():
        return LiveStatus()
    try:
        status = json.loads(store.get(PATH))
        return LiveStatus(status["stage"], status.get("running", {}), status["rate"], status["seconds_left"])
    except (ValueError, KeyError, TypeError, FileNotFoundError):
        return LiveStatus()
