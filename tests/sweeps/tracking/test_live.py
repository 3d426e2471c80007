"""A sweep in W&B while it runs: read back with W&B's own reader, and no failure of W&B reaches the sweep."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cluster import Event, Progress, TaskDone, TaskFailed
from support.tiny_runs import configured, copied
from sweeps import pipeline
from sweeps.analysis import tables
from sweeps.config.load import to_dict
from sweeps.runtime.run import Run, reopen
from sweeps.tracking import live as live_view
from sweeps.tracking.mirror import Marker, mirror


@pytest.fixture
def run(finished: Path, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A finished run, whose results are there from the start."""
    monkeypatch.setattr(live_view, "PERIOD_S", 0.2)
    monkeypatch.setattr(live_view, "CELLS_S", 0.2)
    return reopen(configured(tiny_pipeline, copied(finished, tmp_path / "run"), "tracking.mode=offline"))


def read(directory: Path, *options: str) -> list[dict[str, Any]]:
    """The records of a run, or its summary, from W&B's own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *options, "--json", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(done.stdout)] if options else [json.loads(line) for line in done.stdout.splitlines() if line]


def folder(run: Run) -> Path:
    return Path(run.store.url) / "wandb"


def until(found: Callable[[], Any], limit_s: float = 60) -> Any:
    """What `found` returns as soon as it is something."""
    ends = time.monotonic() + limit_s
    while not (value := found()):
        assert time.monotonic() < ends, "not there in time"
        time.sleep(0.5)
    return value


@pytest.mark.slow
def test_a_sweep_is_read_back_while_it_runs(run: Run) -> None:
    failed: dict[str, str] = {}
    groups = {site.name for site in run.sites}
    with live_view.live(run, failed) as further:
        (observer,) = further("sample")
        events: list[Event] = [
            TaskDone("sample/trained/00000", 1, 1.0, {"samples": 4}),
            TaskFailed("sample/trained/00001", 3, 1.0, "NaN at mid.0", final=True),
            Progress(done=1, failed=1, running=2, total=9),
        ]
        for event in events:
            observer(event)
        marker = until(lambda: len(runs := Marker(folder(run)).runs) == 2 * len(groups) and runs)
        site = next(entry["directory"] for entry in marker.values())
        (shown,) = read(folder(run) / site, "--summary")  # a site's run is whole long before the sweep ends
        assert shown["state"] == "finished"
        assert shown["config"]["site"] in groups

        def driver() -> dict[str, Any] | None:
            (directory,) = set(folder(run).glob("offline-run-*")) - {
                folder(run) / e["directory"] for e in marker.values()
            }
            (record,) = read(directory, "--summary")
            return record if record["state"] == "running" and "sample/queue" in record["summary"] else None

        record = until(driver)
        summary = record["summary"]
        counts = {name: summary[f"sample/{name}"] for name in ("done", "failed", "running", "queue", "failures")}
        assert counts == {"done": 1, "failed": 1, "running": 2, "queue": 5, "failures": 1}
        assert summary["sample/samples_per_second"] > 0
        assert record["config"]["output"] == run.store.url
        failed["sample/trained/00001"] = "NaN at mid.0"
    (identity,) = Marker(folder(run)).drivers()
    directory = Marker(folder(run)).directory(identity)
    (ended,) = read(directory, "--summary")
    assert (ended["state"], ended["exit_code"]) == ("failed", 1)
    assert ended["summary"]["cells/finished"] == run.store.scores().shape[0]
    (alert,) = [r["alert"] for r in read(directory) if r["type"] == "alert"]
    assert (alert["level"], alert["text"]) == ("ERROR", "sample/trained/00001: NaN at mid.0")
    data = tables.load(run.store, to_dict(run.config))
    assert data.group in {r["run"].get("run_group") for r in read(directory) if r["type"] == "run"}
    result = mirror(run.store, to_dict(run.config))  # keeps what was written live, and adds the summary
    assert (result.problem, result.written, result.kept) == ("", 1, 2 * len(groups))


def broken(monkeypatch: pytest.MonkeyPatch, init: Any) -> None:
    fake = ModuleType("wandb")
    fake.Settings = lambda **_: None  # type: ignore[attr-defined]
    fake.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)


def test_a_failing_or_absent_wandb_is_a_line_of_the_log(run, monkeypatch, caplog) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("service\ndied")

    for break_it in (lambda: broken(monkeypatch, init), lambda: monkeypatch.setitem(sys.modules, "wandb", None)):
        break_it()
        with caplog.at_level(logging.WARNING), live_view.live(run, {}) as further:
            further("sample")[0](Progress(1, 0, 0, 1))
            time.sleep(0.5)
    assert caplog.messages
    assert all("no live view" in line and "\n" not in line for line in caplog.messages)


def test_a_hanging_wandb_holds_nothing_up(run, monkeypatch) -> None:
    monkeypatch.setattr(live_view, "CLOSE_S", 0.2)
    released = threading.Event()
    broken(monkeypatch, lambda **_: released.wait(30))
    started = time.monotonic()
    with live_view.live(run, {}) as further:
        for _ in range(1000):
            further("sample")[0](Progress(1, 0, 0, 1))
    assert time.monotonic() - started < 5
    released.set()


def test_the_stages_of_a_run_are_shown_and_an_error_ends_it_as_failed(
    sampled: Path, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, Event]] = []
    ended: list[bool] = []

    class Recorder:
        def __init__(self, run: Run) -> None:
            self.start = lambda: None
            self.observer = lambda stage: lambda event: seen.append((stage, event))
            self.close = lambda failed: ended.append(failed)

    monkeypatch.setattr(live_view, "Live", Recorder)
    config = configured(tiny_pipeline, copied(sampled, tmp_path / "run"), "tracking.mode=offline")
    assert pipeline.execute(config, ("label",)).failed == {}
    assert {stage for stage, _ in seen} == {"label"}
    assert isinstance(seen[-1][1], Progress)
    assert ended == [False]
    monkeypatch.setattr("sweeps.stages.curate.execute", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipeline.execute(config, ("curate",))
    assert ended == [False, True]


def test_a_driver_that_cannot_be_live_is_written_and_sent_later(
    finished: Path, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    output = copied(finished, tmp_path / "run")
    run = reopen(configured(tiny_pipeline, output, "tracking.mode=online"))
    opened = live_view.Writer.open

    def open_offline(self: Any, *arguments: Any, mode: str = "offline") -> Any:
        if mode == "online":
            raise ConnectionError("refused")
        return opened(self, *arguments)

    monkeypatch.setattr(live_view.Writer, "open", open_offline)
    with caplog.at_level(logging.WARNING, "sweeps"), live_view.live(run, {}) as further:
        further("sample")[0](Progress(1, 0, 0, 1))
    assert [record.getMessage() for record in caplog.records if record.name.startswith("sweeps")] == [
        "W&B: the driver's run is not live (ConnectionError: refused); it is sent at the end"
    ]
    (driver,) = Marker(folder(run)).drivers()
    log = tmp_path / "sent"
    script = f"import sys; open({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))"
    monkeypatch.setattr("sweeps.tracking.mirror.SYNC", ("-c", script))
    assert mirror(run.store, to_dict(run.config), mode="online").problem == ""
    assert driver in log.read_text()
