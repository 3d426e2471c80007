"""The bench of a card, rehearsed on a CPU with narrow networks, where neither Ray nor W&B can be imported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sweeps.bench.gpu import driver
from sweeps.bench.gpu.pieces import PIECES, Piece
from sweeps.bench.gpu.record import Record
from sweeps.cli.main import main

ROOT = Path(__file__).parents[3]
ABSENT = ("ray", "wandb", "matplotlib", "moto", "hypothesis")
"""packages that a machine without network need not have"""


@pytest.fixture
def without(tmp_path: Path) -> dict[str, str]:
    """An environment in which importing one of these packages fails."""
    folder = tmp_path / "absent"
    folder.mkdir()
    for name in ABSENT:
        (folder / f"{name}.py").write_text(f"raise ImportError({name!r} ' is not on this machine')\n")
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def ratios(record: dict[str, Any]) -> set[str]:
    return {row["what"] for piece in record["pieces"].values() for row in piece["rows"]}


@pytest.mark.slow
def test_every_piece_runs_on_a_machine_that_has_little(without: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out" / "gpu.json"
    words = ["bench", "gpu", "--narrow", "--device", "cpu", "--minutes", "3", "--out", str(out)]
    ran = subprocess.run([sys.executable, "-m", "sweeps", *words], env=without, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(out.read_text())
    assert list(found["pieces"]) == [piece.name for piece in PIECES]
    assert {piece["state"] for piece in found["pieces"].values()} == {"done"}
    bars = {"sampling_over_diffusers", "capture_over_sampling", "grid_over_reading", "edits_over_sampling"}
    others = {"contiguous_over_plain", "half_weights_over_plain", "compiled_over_plain", "authors_loop_over_grid_depth",
              "copies_over_sampling", "sampling_over_diffusers_sdxl", "sampling_over_diffusers_pixart"}  # fmt: skip
    assert ratios(found) >= bars | others
    for piece in found["pieces"].values():
        assert piece["peak_host_gib"] > 0
        assert all(row["unit"] == "s" and row["ratio"] > 0 for row in piece["rows"])
        assert all(row["bar"] for row in piece["rows"] if row["what"] in bars)
        assert all(one["unit"] for one in piece["numbers"].values())
    # diffusers paints the same, so that both did the same work
    assert found["pieces"]["sampling"]["numbers"]["difference"]["value"] < 1
    assert set(found["rates"]) == {"sampling", "labelling", "probing", "overhead", "storage"}
    assert [path.name for path in out.parent.iterdir()] == ["gpu.json"]  # nothing else is left

    # `plan` reads what a card wrote, and prices nothing by a rehearsal
    plan = ["plan", "paper", f"output={tmp_path / 'run'}", "--rates", str(out)]
    assert main(plan) == 2
    assert "a rehearsal with narrow networks" in capsys.readouterr().err
    out.write_text(json.dumps(found | {"narrow": False, "device": "cuda", "machine": {"card": "H100"}}))
    assert main(plan) == 0
    assert "measured on H100" in capsys.readouterr().out.splitlines()[0]


WORKER = """
import os, sys, time
from pathlib import Path
from sweeps.bench.gpu.pieces import EXIT_AGAIN, PIECES
from sweeps.bench.gpu.record import DONE, Record

record = Record.read(Path(sys.argv[1]))
for piece in PIECES:
    if piece.name not in record.pieces:
        record.start(piece.name, time.time() + piece.limit)
        if piece.name == "dies":
            os.abort()
        if piece.name == "hangs":
            record.pieces["hangs"]["numbers"]["first"] = {"value": 1.0, "unit": "s"}
            record.write()
            time.sleep(600)
        record.end(piece.name, DONE, seconds=0.1)
        if piece.name == "poisons":
            sys.exit(EXIT_AGAIN)
"""


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A worker whose pieces end in all the ways that a process can; returns the file that is written."""
    names = ("good", "dies", "hangs", "poisons", "last")
    pieces = tuple(Piece(name, name, "", 0.3, 0) for name in names)
    monkeypatch.setattr(driver, "PIECES", pieces)
    monkeypatch.setattr(driver, "GRACE", 0.3)
    script = tmp_path / "worker.py"
    spelled = f"import sweeps.bench.gpu.pieces as p\np.PIECES = {pieces!r}\n"
    script.write_text("from sweeps.bench.gpu.pieces import Piece\n" + spelled + WORKER)
    real = subprocess.Popen

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return real([sys.executable, str(script), *command[3:]], env=os.environ | {"PYTHONPATH": str(ROOT)}, **options)

    monkeypatch.setattr(driver.subprocess, "Popen", start)
    return tmp_path / "gpu.json"


def test_no_piece_takes_the_others_with_it(scripted: Path) -> None:
    record = driver.run(scripted, "cpu", 1, True, lambda line: None)
    states = {name: (piece["state"], piece.get("error", "")) for name, piece in record.pieces.items()}
    assert states == {
        "good": ("done", ""),
        "dies": ("failed", "the worker ended with signal 6"),
        "hangs": ("failed", "stopped: its time was over"),
        "poisons": ("done", ""),
        "last": ("done", ""),
    }
    assert record.number("hangs", "first") == 1.0  # measured before it hung
    assert json.loads(scripted.read_text()) == record.document
    assert not driver.complete(record)
    assert any("hangs: failed: stopped" in line for line in driver.lines(record))


def test_a_piece_that_fails_is_noted_and_a_card_that_is_lost_needs_a_new_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from sweeps.bench.gpu import worker
    from sweeps.bench.gpu.bench import Bench

    record = Record.begin(tmp_path / "gpu.json")
    bench = Bench(record, torch.device("cpu"), True, tmp_path, None)
    assert worker.measure(bench, Piece("first", "", "scale.no_such_function", 5, 0), 5)

    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(bench, "synchronise", lost)
    assert not worker.measure(bench, Piece("second", "", "scale.no_such_function", 5, 0), 5)
    found = json.loads((tmp_path / "gpu.json").read_text())["pieces"]
    assert [piece["state"] for piece in found.values()] == ["failed", "failed"]
    assert "no_such_function" in found["first"]["error"]


def test_the_time_limit_holds(scripted: Path) -> None:
    started = time.monotonic()
    record = driver.run(scripted, "cpu", 0.01, True, lambda line: None)
    assert time.monotonic() - started < 5
    assert record.pieces["last"]["state"] == "skipped"


def test_sigterm_leaves_what_was_measured(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    words = ["bench", "gpu", "--narrow", "--device", "cpu", "--minutes", "3", "--out", str(out), "-q"]
    process = subprocess.Popen([sys.executable, "-m", "sweeps", *words], cwd=ROOT, stderr=subprocess.PIPE)
    while not out.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 1
    assert Record.read(out).document["bench"] == "gpu"
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--minutes", "0"], "--minutes 0: must be more than 0"),
        (["--device", "cpu"], "add --narrow"),
        ([], "this machine has no GPU"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(driver, "GPU_NODES", ())
    assert main(["bench", "gpu", "--out", str(tmp_path / "gpu.json"), *words]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
