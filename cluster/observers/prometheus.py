"""Prometheus metrics of a run, through Ray's metrics API: an observer of the executor's events.

Ray exports them on every node's metrics port with the prefix `ray_`; the dashboard
(`cluster/deploy/grafana.json`) derives rates. Labels: `sweep` (name of the run) and `stage`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cluster.events import Event, Progress, TaskDone, TaskFailed, WorkerLost, WorkerReady

LABELS = ("sweep", "stage")
COUNTERS = {
    "scenesweep_samples": "Samples in finished shards",
    "scenesweep_bytes": "Bytes of chunks that finished shards wrote to the store",
    "scenesweep_cells": "Probes fitted",
    "scenesweep_tasks": "Tasks (shards, trials, edits) finished",
    "scenesweep_failures": "Failed attempts, whether or not a later one succeeded",
    "scenesweep_workers_lost": "Workers whose process or node was lost",
    "scenesweep_workers_ready": "Workers built",
}
GAUGES = {
    "scenesweep_queue": "Tasks waiting for a worker",
    "scenesweep_running": "Tasks running on a worker",
    "scenesweep_given_up": "Tasks given up",
}
SECONDS = "scenesweep_task_seconds"
BOUNDARIES_S = [0.5, 1, 2, 5, 10, 20, 60, 120, 300, 900]
FROM_RESULTS = {"samples": "scenesweep_samples", "bytes": "scenesweep_bytes", "cells": "scenesweep_cells"}
"""Key of a task's result -> counter that its value is added to."""
FROM_EVENTS = {
    TaskDone: "scenesweep_tasks",
    TaskFailed: "scenesweep_failures",
    WorkerLost: "scenesweep_workers_lost",
    WorkerReady: "scenesweep_workers_ready",
}


def names() -> set[str]:
    """Names of all metrics in Prometheus."""
    counted = {f"ray_{name}_total" for name in COUNTERS}
    parts = {f"ray_{SECONDS}_{part}" for part in ("bucket", "sum", "count")}
    return counted | {f"ray_{name}" for name in GAUGES} | parts


@dataclass(frozen=True)
class Metrics:
    """Counts the events of one stage of a run. Ray must be connected."""

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
            for name, value in zip(GAUGES, (waiting, event.running, event.failed), strict=True):
                _metric(name).set(value, self._tags())

    def _count(self, name: str, value: float) -> None:
        if value > 0:
            _metric(name).inc(value, self._tags())

    def _tags(self) -> dict[str, str]:
        return {"sweep": self.sweep, "stage": self.stage}


@lru_cache
def _metric(name: str) -> Any:
    """The metric with this name; Ray requires that a process creates each only once."""
    from ray.util.metrics import Counter, Gauge, Histogram

    if name in COUNTERS:
        return Counter(name, description=COUNTERS[name], tag_keys=LABELS)
    if name in GAUGES:
        return Gauge(name, description=GAUGES[name], tag_keys=LABELS)
    description = "Seconds of a finished task inside its worker"
    return Histogram(name, description=description, boundaries=BOUNDARIES_S, tag_keys=LABELS)
