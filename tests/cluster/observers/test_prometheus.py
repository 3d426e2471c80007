"""Metrics count events, log records name run and task, and the dashboard shows exported metrics only."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

import cluster
from cluster import InProcess, WorkerSpec, events
from cluster.ledger import Ledger
from cluster.observers import logs, prometheus
from cluster.observers.combined import Observed, watchers

DASHBOARD = Path(cluster.__file__).parent / "deploy" / "grafana.json"
OF_RAY = {"ray_node_gpus_utilization", "ray_cluster_active_nodes", "ray_cluster_pending_nodes"}


class Recorder:
    """Stands for a metric of Ray and keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, dict[str, str]]] = []

    def inc(self, value: float, tags: dict[str, str]) -> None:
        self.calls.append((value, tags))

    set = observe = inc


@pytest.fixture
def recorded(monkeypatch: Any) -> dict[str, Recorder]:
    made: dict[str, Recorder] = {}
    monkeypatch.setattr(prometheus, "_metric", lambda name: made.setdefault(name, Recorder()))
    return made


def total(recorder: Recorder) -> float:
    return sum(value for value, _ in recorder.calls)


class Task:
    def __init__(self, key: str) -> None:
        self.key = key


def work(task: Task) -> dict[str, Any]:
    if task.key.endswith("bad"):
        raise RuntimeError("no such thing")
    return {"samples": 4, "bytes": 1000}


def build() -> Any:
    return work


def test_a_run_is_counted(recorded: dict[str, Recorder]) -> None:
    engine = Observed(InProcess(retries=1), "mine")
    outcome = engine.run([Task("a"), Task("b"), Task("bad")], WorkerSpec(build, name="sample"))
    assert set(outcome.failed) == {"bad"}
    counted = {name: total(recorder) for name, recorder in recorded.items() if name in prometheus.COUNTERS}
    assert counted == {
        "scenesweep_samples": 8,
        "scenesweep_bytes": 2000,
        "scenesweep_tasks": 2,
        "scenesweep_failures": 2,
        "scenesweep_workers_ready": 1,
    }
    last = {name: recorded[name].calls[-1][0] for name in prometheus.GAUGES}
    assert last == {"scenesweep_queue": 0, "scenesweep_running": 0, "scenesweep_given_up": 1}
    assert len(recorded[prometheus.SECONDS].calls) == 2
    for recorder in recorded.values():
        assert {tuple(tags.items()) for _, tags in recorder.calls} == {(("sweep", "mine"), ("stage", "sample"))}


def test_cells_and_lost_workers_are_counted(recorded: dict[str, Recorder]) -> None:
    received = prometheus.Metrics("mine", "probe")
    received(events.TaskDone("trained", 1, 2.5, {"cells": 30}))
    received(events.WorkerLost("probe.0", "gone"))
    received(events.Progress(done=1, failed=2, running=3, total=10))
    assert total(recorded["scenesweep_cells"]) == 30
    assert total(recorded["scenesweep_workers_lost"]) == 1
    assert recorded["scenesweep_queue"].calls == [(4, {"sweep": "mine", "stage": "probe"})]
    assert recorded[prometheus.SECONDS].calls[0][0] == 2.5


def drawn() -> str:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return " ".join(target["expr"] for panel in panels for target in panel["targets"])


def test_the_dashboard_shows_exported_metrics() -> None:
    names = set(re.findall(r"\bray_\w+", drawn()))
    assert names - OF_RAY <= prometheus.names()
    for what in ("samples_total", "bytes_total", "cells_total", "failures_total", "queue"):
        assert f"ray_scenesweep_{what}" in names
    labels = set(re.findall(r"by \(([^)]*)\)", drawn()))
    known = {*prometheus.LABELS, "le", "instance", "node_type"}
    assert {label.strip() for group in labels for label in group.split(",")} <= known


def test_panels_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.parametrize(
    ("stage", "key", "unit", "value"),
    [
        ("sample", "sample/trained/00003", "shard", "trained/00003"),
        ("label", "label/00003", "shard", "00003"),
        ("probe", "trained/up.2", "cell", "trained/up.2"),
        ("intervene", "depth-7", "edit", "depth-7"),
    ],
)
def test_records_name_run_and_task(stage: str, key: str, unit: str, value: str, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "scenesweep")
    received = logs.Logged("mine", stage)
    received(events.TaskDone(key, 2, 1.5, {"samples": 4, "note": "text"}))
    received(events.TaskFailed(key, 3, 0.1, "no such thing", "a trace", final=True))
    received(events.Progress(1, 1, 0, 2))
    done, failed = caplog.records
    assert (done.getMessage(), failed.getMessage()) == ("task done", "task failed")
    assert (done.levelname, failed.levelname) == ("INFO", "WARNING")
    for record in (done, failed):
        assert (record.run, record.stage, getattr(record, unit)) == ("mine", stage, value)
    assert (done.attempt, done.seconds, done.samples) == (2, 1.5, 4)
    assert (failed.error, failed.final) == ("no such thing", True)
    assert not hasattr(failed, "trace")


def test_every_event_fits_into_a_record() -> None:
    """No field of an event has a name that the logging module reserves."""
    received = logs.Logged("mine", "sample")
    ledger = Ledger([Task("a")], 0, [received])
    ledger.take("sample.0")
    for event in (events.WorkerReady("w", 1.0), events.WorkerLost("w", "gone"), events.Waiting("no room")):
        received(event)


def test_ray_writes_records_as_json_and_readable_omits_them(caplog: Any) -> None:
    from ray._common.formatters import JSONFormatter

    caplog.set_level(logging.INFO, "scenesweep")
    logs.Logged("mine", "sample")(events.TaskDone("sample/trained/00003", 1, 2.0, {"samples": 4}))
    line = JSONFormatter().format(caplog.records[0])
    assert json.loads(line)["shard"] == "trained/00003"
    assert logs.config().encoding == "JSON"
    text = ["sampling: 1/2 shards", line, "{not json", '{"rows": 3}']
    assert list(logs.readable(text)) == [text[0], *text[2:]]


def test_observers_can_be_pickled_for_tune() -> None:
    import ray.cloudpickle as pickle

    assert pickle.loads(pickle.dumps(watchers("mine", "probe"))) == watchers("mine", "probe")


class Trial:
    """The attributes of a trial of Tune."""

    def __init__(self, name: str) -> None:
        self.config: dict[str, Any] = {"trial": name}
        self.last_result = {"cells": 30, "fit_seconds": 2.0}

    def __str__(self) -> str:
        return self.config["trial"]


def test_trials_of_tune_emit_events_like_tasks() -> None:
    from sweeps.runtime import grid
    from sweeps.stages.probe_tune import TrialEvents

    received: list[events.Event] = []
    trials = [grid.Trial(name, (grid.ProbeSpec(name, "mid.0", 1, "depth"),)) for name in ("trained", "random")]
    counter = TrialEvents(trials, [received.append])
    first, second = (Trial(trial.name) for trial in trials)
    callback_arguments: dict[str, Any] = {"iteration": 1, "trials": [first, second]}
    for trial in (first, second):
        counter.on_trial_start(trial=trial, **callback_arguments)
    counter.on_trial_recover(trial=first, **callback_arguments)
    assert first.config["again"] == 1
    counter.on_trial_start(trial=first, **callback_arguments)
    counter.on_trial_complete(trial=first, **callback_arguments)
    counter.on_trial_error(trial=second, **callback_arguments)
    ended = [(e.done, e.failed, e.total) for e in received if isinstance(e, events.Progress)]
    assert ended[-1] == (1, 1, 2)
    assert [e for e in received if isinstance(e, events.TaskDone)] == [
        events.TaskDone("trained", 2, 2.0, {"cells": 30})
    ]
    failures = [(e.key, e.attempt, e.final) for e in received if isinstance(e, events.TaskFailed)]
    assert failures == [("trained", 1, False), ("random", 1, True)]
    assert received[-1] == events.Progress(done=1, failed=1, running=0, total=2)
    starts = [(e.attempt, e.worker) for e in received if isinstance(e, events.TaskStarted) and e.key == "trained"]
    assert starts == [(number, "probe-trained-mid.0-depth-step01") for number in (1, 2)]
