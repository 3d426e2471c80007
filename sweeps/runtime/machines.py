"""Description of the cluster that a run used, kept in the store for its report and its W&B runs; part of no hash."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import storage
from cluster import Event, Observer, TaskDone, TaskFailed, TaskStarted
from storage import Store

PATH = "cluster.json"
"""a list of Ray sessions, oldest first; equal sessions in a row are merged"""
Session = dict[str, Any]
"""what `cluster.facts.of` returns, and `workers`: the largest number at work at once, by stage"""


def read(store: Store) -> list[Session]:
    """Return all sessions; empty if the run used no Ray."""
    return store.readable_document(PATH).get("sessions", [])


def begin(store: Store, session: Session) -> None:
    """Record a session that has just been connected."""
    _write(store, [*read(store), {**session, "workers": {}}])


def observers(output: str, stage: str) -> list[Observer]:
    """Return the observers that count the workers of a stage in the current session."""
    return [WorkerCount(output, stage)]


def count(store: Store, stage: str, workers: int, cluster: Session) -> None:
    """Record `workers` at work at once in the current session, and the nodes of `cluster` if it has grown."""
    *before, last = read(store) or [{"workers": {}}]
    most = max(workers, last["workers"].get(stage, 0))
    grown = cluster if cluster.get("nodes", 0) > last.get("nodes", 0) else {}
    _write(store, [*before, last | grown | {"workers": last["workers"] | {stage: most}}])


def _write(store: Store, sessions: Sequence[Session]) -> None:
    """Write sessions; those in a row that differ only in their workers become one."""
    merged: list[Session] = []
    for session in sessions:
        previous = merged[-1] if merged else {}
        if previous and previous | {"workers": None} == session | {"workers": None}:
            workers = previous["workers"]
            most = {stage: max(n, workers.get(stage, 0)) for stage, n in session["workers"].items()}
            merged[-1] = session | {"workers": workers | most}
        else:
            merged.append(session)
    with suppress(OSError):  # a full disk also fails the shards, and that is reported
        store.put_document(PATH, {"sessions": merged})


def of_stage(sessions: Sequence[Session], stage: str) -> list[Session]:
    """Return the sessions that worked on a stage, with the workers of that stage only."""
    return [s | {"workers": {stage: s["workers"][stage]}} for s in sessions if stage in s["workers"]]


@dataclass
class WorkerCount:
    """Observer of one stage that counts how many workers run tasks at once.

    It holds no open store, since Ray Tune may pickle it.
    """

    output: str
    stage: str
    running: set[str] = field(default_factory=set)
    most: int = 0
    written: int = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, TaskStarted):
            self.running.add(event.key)
            self.most = max(self.most, len(self.running))
        elif isinstance(event, TaskDone | TaskFailed):
            self.running.discard(event.key)
            if self.most > self.written:
                self.written = self.most
                count(storage.open(self.output), self.stage, self.most, _current_cluster())


def _current_cluster() -> Session:
    import ray

    from cluster import facts

    return facts.present() if ray.is_initialized() else {}
