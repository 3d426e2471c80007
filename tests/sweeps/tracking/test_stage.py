"""Tracking is a step of its own: whatever is missing of the mirror is made by the same command."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import storage
from support.report_store import CONFIG, Made, make_store
from support.tiny_runs import copied, settings
from sweeps import pipeline
from sweeps.analysis import tables
from sweeps.cli.main import main
from sweeps.config.load import load
from sweeps.runtime.progress import Display
from sweeps.runtime.run import Run
from sweeps.tracking import mirror, place
from sweeps.tracking.summary import artifact_name, reference

SMALL = Made(train=2, test=4, sites=("mid.0",), steps=(1,), extras=False, pictures=False)


def test_what_is_missing_of_the_mirror_is_made_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "run", SMALL)
    log, offline, online = tmp_path / "sent", ["tracking.mode=offline"], ["tracking.mode=online"]
    sends = ("-c", f"import sys; open({str(log)!r}, 'a').write(str(len(sys.argv) - 1) + chr(10))")
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)

    def track(pairs: list[str], command: tuple[str, ...] = sends) -> list[str]:
        monkeypatch.setattr(mirror, "SYNC", command)
        result = pipeline.Result()
        run = Run(load("scenes", pairs), None, store, None)  # type: ignore[arg-type]
        pipeline._track(run, result, "the inputs", None, Display())
        return result.lines

    assert track(["tracking.mode=disabled"]) == []
    assert track(offline) == ["W&B: 3 runs written, 0 sent"]
    assert track(offline) == []
    assert track(online) == ["W&B: 3 runs written, 3 sent"]  # the mode is part of a run's configuration
    assert track(online) == []
    shutil.rmtree(tmp_path / "run" / "wandb")
    assert track(online) == ["W&B: 3 runs written, 3 sent"]
    elsewhere = [*online, "tracking.project=other"]
    (line,) = track(elsewhere, ("-c", "raise SystemExit('connection refused')"))
    assert "connection refused" in line
    assert line.endswith("the same command tries again")
    assert track(elsewhere) == ["W&B: 0 runs written, 3 sent"]
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert track(elsewhere) == ["W&B: 0 runs written, 3 sent"]
    assert track(elsewhere) == []
    assert log.read_text().split() == ["3"] * 4
    assert json.loads((tmp_path / "run" / "tracking.json").read_text())["project"] == "other"


def test_a_finished_run_is_mirrored_once_tracking_is_turned_on(
    finished: Path, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    output, calls = copied(finished, tmp_path / "run"), []

    def fake(store: storage.Store, config: dict, mode: str, *_: object, **__: object) -> mirror.Mirrored:
        calls.append(mode)
        place.local_folder(store.url).mkdir()
        (place.local_folder(store.url) / place.MARKER).write_text("{}")
        return mirror.Mirrored(written=1)

    monkeypatch.setattr(mirror, "mirror", fake)
    words = ["run", "scenes", *settings(tiny_pipeline, output, "tracking.mode=offline")]
    assert main(words) == 0
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "W&B: 1 runs written, 0 sent"
    assert lines.count("nothing to do: everything is complete") == 1
    assert calls == ["offline"]


def test_variables_that_change_the_meaning_are_set_aside_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    monkeypatch.setenv("WANDB_RUN_ID", "def")
    store = make_store(tmp_path, SMALL)
    with caplog.at_level("WARNING"):
        assert mirror.mirror(store, CONFIG).problem == ""
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("W&B: WANDB_SWEEP_ID, WANDB_RUN_ID is set aside")
    assert (os.environ["WANDB_SWEEP_ID"], os.environ["WANDB_RUN_ID"]) == ("abc", "def")


def test_a_home_that_cannot_be_written_and_a_damaged_record_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path, SMALL)
    monkeypatch.setenv("HOME", "/dev/null/nobody")
    assert mirror.mirror(store, CONFIG).problem == ""
    (tmp_path / "wandb" / "mirror.json").write_text("{")
    assert mirror.mirror(store, CONFIG).problem == ""


def test_any_name_of_a_run_makes_an_artifact(tmp_path: Path) -> None:
    store = make_store(tmp_path, SMALL)
    run = tables.load(store, {**CONFIG, "name": "guided run: 3/4 <b>"})
    assert artifact_name(run, "store").startswith("guided-run--3-4--b--")
    assert reference(run, "store", store.url, {}).name == artifact_name(run, "store")
