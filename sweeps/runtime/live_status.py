"""Notes in the store how far a stage is, for `scenesweep status` from elsewhere; nothing depends on it."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cluster import Event, Progress, TaskDone, TaskFailed, TaskStarted
from storage import Store

PATH = "progress.json"
EVERY = 2.0
"""seconds between two notes"""


@dataclass
class ProgressNote:
    """An observer that writes the tasks at work, the rate and the time left."""

    store: Store
    stage: str
    running: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    said: float = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, TaskStarted):
            self.running[event.key] = event.worker
        elif isinstance(event, TaskDone | TaskFailed):
            self.running.pop(event.key, None)
        elif isinstance(event, Progress):
            self._say(event)

    def _say(self, event: Progress) -> None:
        now, ended = time.time(), event.done + event.failed == event.total
        if now - self.said < EVERY and not ended:
            return
        self.said = now
        with suppress(OSError):  # a disk that is full fails the shards, which is told; a note may be lost
            self.store.put(PATH, json.dumps(self._note(event, now), indent=1, sort_keys=True).encode())

    def _note(self, event: Progress, now: float) -> dict[str, Any]:
        rate = event.done / max(now - self.started, 1e-9)
        left = event.total - event.done - event.failed
        return {
            "stage": self.stage,
            "running": dict(sorted(self.running.items())),
            "done": event.done,
            "failed": event.failed,
            "total": event.total,
            "rate": rate,
            "seconds_left": left / rate if rate else None,
            "written": now,
        }


def read(store: Store) -> dict[str, Any]:
    """The last note, where a run is at work now; else empty."""
    if not store.exists(PATH) or not store.in_use():
        return {}
    try:
        return json.loads(store.get(PATH))
    except (ValueError, FileNotFoundError):
        return {}
