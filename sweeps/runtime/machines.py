"""Keeps in the store on which machines a run was carried out, for its report and its W&B runs; part of no hash."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import storage
from cluster import Event, Observer, TaskDone, TaskFailed, TaskStarted
from storage import Store

PATH = "cluster.json"
"""a list of sessions with Ray, oldest first; like ones in a row are one"""
ModelInfo = dict[str, Any]


def read(store: Store) -> list[ModelInfo]:
    """ModelInfo of each session, with `workers`: most at work at once by stage."""
    with suppress(ValueError, FileNotFoundError):
        return json.loads(store.get(PATH))["sessions"]
    return []


def begin(store: Store, found: ModelInfo) -> None:
    """Note a session that has just been connected."""
    _write(store, [*read(store), {**found, "workers": {}}])


def observers(output: str, stage: str) -> list[Observer]:
    """What counts the workers of a stage of the session that was begun last."""
    return [WorkerCount(output, stage)]


def count(store: Store, stage: str, workers: int, now: ModelInfo) -> None:
    """Note so many workers at once in the present session, and the nodes of `now` where they are more than before."""
    *before, last = read(store) or [{"workers": {}}]
    most = max(workers, last["workers"].get(stage, 0))
    grown = now if now.get("nodes", 0) > last.get("nodes", 0) else {}
    _write(store, [*before, last | grown | {"workers": last["workers"] | {stage: most}}])


def _write(store: Store, sessions: Sequence[ModelInfo]) -> None:
    with suppress(OSError):  # a full disk fails the shards, which is told; these facts may be lost
        store.put(PATH, json.dumps({"sessions": _merged(sessions)}, indent=1).encode())


def _merged(sessions: Sequence[ModelInfo]) -> list[ModelInfo]:
    """Sessions in a row that differ in nothing but their workers become one."""
    found: list[ModelInfo] = []
    for one in sessions:
        if found and _machines(found[-1]) == _machines(one):
            workers = found[-1]["workers"]
            most = {s: max(n, workers.get(s, 0)) for s, n in one["workers"].items()}
            found[-1] = one | {"workers": workers | most}
        else:
            found.append(one)
    return found


def _machines(session: ModelInfo) -> ModelInfo:
    return {name: value for name, value in session.items() if name != "workers"}


def of_stage(sessions: Sequence[ModelInfo], stage: str) -> list[ModelInfo]:
    """The sessions that worked on a stage, with its workers alone."""
    kept = [one for one in sessions if stage in one["workers"]]
    return [one | {"workers": {stage: one["workers"][stage]}} for one in kept]


@dataclass
class WorkerCount:
    """An observer of one stage that counts how many workers are at tasks at once.

    It opens the store anew for each note, as Tune pickles what listens to it.
    """

    output: str
    stage: str
    running: set[str] = field(default_factory=set)
    most: int = 0
    kept: int = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, TaskStarted):
            self.running.add(event.key)
            self.most = max(self.most, len(self.running))
        elif isinstance(event, TaskDone | TaskFailed):
            self.running.discard(event.key)
            if self.most > self.kept:
                self.kept = self.most
                count(storage.open(self.output), self.stage, self.most, _present())


def _present() -> ModelInfo:
    import ray

    from cluster import facts

    return facts.present() if ray.is_initialized() else {}
