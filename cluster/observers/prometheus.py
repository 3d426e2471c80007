"""Prometheus metrics of a run, through Ray's own metrics API: an observer of the executor's events.

Ray exports them on every node's metrics port with `ray_` in front; rates are the dashboard's
business (`cluster/deploy/grafana.json`). Labels: `sweep` (name of the run) and `stage`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cluster.events import Event, Progress, TaskDone, TaskFailed, WorkerLost, WorkerReady

LABELS = ("sweep", "stage")
COUNTERS = {
    "scenesweep_samples": "Samples that finished shards hold",
    "scenesweep_bytes": "Bytes of chunks that finished shards wrote into the store",
    "scenesweep_cells": "Probes that were fitted",
    "scenesweep_tasks": "Tasks (shards, trials, edits) that were finished",
    "scenesweep_failures": "Attempts that failed, whatever came of the next",
    "scenesweep_workers_lost": "Workers whose process or node has gone",
    "scenesweep_workers_ready": "Workers that were built",
}
GAUGES = {
    "scenesweep_queue": "Tasks that wait for a worker",
    "scenesweep_running": "Tasks that a worker is at",
    "scenesweep_given_up": "Tasks that failed for good",
}
SECONDS = "scenesweep_task_seconds"
BOUNDARIES_S = [0.5, 1, 2, 5, 10, 20, 60, 120, 300, 900]
FROM_RESULTS = {"samples": "scenesweep_samples", "bytes": "scenesweep_bytes", "cells": "scenesweep_cells"}
"""Key of a task's result -> counter that it adds to."""
FROM_EVENTS = {
    TaskDone: "scenesweep_tasks",
    TaskFailed: "scenesweep_failures",
    WorkerLost: "scenesweep_workers_lost",
    WorkerReady: "scenesweep_workers_ready",
}


def names() -> set[str]:
    """All metrics as Prometheus knows them."""
    counted = {f"ray_{name}_total" for name in COUNTERS}
    parts = {f"ray_{SECONDS}_{part}" for part in ("bucket", "sum", "count")}
    return counted | {f"ray_{name}" for name in GAUGES} | parts


@dataclass(frozen=True)
class Metrics:
    """Counts what it hears of one stage of a run. Ray must be connected."""

    sweep: str
    stage: str

    def __call__(self, event: Event) -> None:
        if type(event) in FROM_EVENTS:
            self._count(FROM_EVENTS[type(event)], 1)
        if isinstance(event, TaskDone):
            _metric(SECONDS).observe(event.seconds, self._tags())
            for key, name in FROM_RESULTS.items():
                self._count(name, event.result.get(key, 0))
        elif isinstance(event, Progress):
            waiting = event.total - event.done - event.failed - event.running
            found = (waiting, event.running, event.failed)
            for name, value in zip(GAUGES, found, strict=True):
                _metric(name).set(value, self._tags())

    def _count(self, name: str, value: float) -> None:
        if value > 0:
            _metric(name).inc(value, self._tags())

    def _tags(self) -> dict[str, str]:
        return {"sweep": self.sweep, "stage": self.stage}


@lru_cache
def _metric(name: str) -> Any:
    """One object per process and name, as Ray wants it."""
    from ray.util.metrics import Counter, Gauge, Histogram

    if name in COUNTERS:
        return Counter(name, description=COUNTERS[name], tag_keys=LABELS)
    if name in GAUGES:
        return Gauge(name, description=GAUGES[name], tag_keys=LABELS)
    text = "Seconds of a finished task inside its worker"
    return Histogram(name, description=text, boundaries=BOUNDARIES_S, tag_keys=LABELS)
