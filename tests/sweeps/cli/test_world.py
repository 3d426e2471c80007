"""Errors of the world and odd words end in one line and the right exit code."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cluster.submit
from storage.errors import Unavailable
from sweeps import pipeline
from sweeps.cli.main import main, parse
from sweeps.cli.verbs import is_pair

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/x/unet.safetensors"),
            "'/x/unet.safetensors'; use a path of",
        ),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), "give a shorter name"),
        (Unavailable("Ray did not start"), "scenesweep run: Ray did not start"),
        (cluster.WorkerFailed("no worker for sample: killed"), "scenesweep run: no worker for sample: killed"),
    ],
)
def test_an_error_of_the_world_is_one_line_and_code_1(error: OSError, line: str, monkeypatch: Any, capsys: Any) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(pipeline, "execute", fail)
    assert main(["run", "name=a b"]) == 1
    shown = capsys.readouterr().err.splitlines()
    assert line in shown[0]
    assert len(shown[0]) < 400
    assert shown[1:] == ["resume with: scenesweep run 'name=a b'"]


@pytest.mark.parametrize(("device", "code"), [("cuda", 2), ("cuda:7", 2), ("auto", 0), ("tpu", 2)])
def test_an_absent_gpu_is_told_at_once(
    device: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["scenes", f"output={tmp_path / 'out'}", f"model.device={device}"]
    assert main(["plan", *words]) == code
    assert ("model.device=" in capsys.readouterr().err) == bool(code)
    if code:
        assert main(["run", *words]) == 2
    # the workers of a cluster may have what this machine lacks
    if device.startswith("cuda"):
        assert main(["plan", *words, "ray.address=auto"]) == 0
    assert not (tmp_path / "out").exists()


def test_names_in_messages_are_shown_as_plain_text(monkeypatch: Any, capsys: Any) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("a\x1b[31mred\x07 name\nof two lines")

    monkeypatch.setattr(pipeline, "execute", fail)
    assert main(["run"]) == 2
    assert capsys.readouterr().err == "scenesweep run: a\\x1b[31mred\\x07 name of two lines\n"


def test_a_reader_that_leaves_early_is_no_traceback() -> None:
    command = f"{sys.executable} -m sweeps plan scenes | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("about 7 min, ")
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["guidance=3", "a b#1", "x?y%20[z]"])
def test_an_output_with_special_characters_is_found_again(
    name: str, sampled: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sampled, tmp_path / "runs" / name)
    assert main(["status", f"runs/{name}/"]) == 0
    assert f"runs/{name}: 12 samples" in capsys.readouterr().out
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["status", f"~/runs/{name}"]) == 0


@pytest.mark.parametrize(
    ("words", "preset", "pairs"),
    [
        ("run runs/a=1.yaml", "runs/a=1.yaml", []),
        ("run name=x", "scenes", ["name=x"]),
        ("run --all name=x", "scenes", ["name=x"]),
        ("plan --rate 2 output=runs/a=1", "scenes", ["output=runs/a=1"]),
    ],
)
def test_a_path_is_no_pair(words: str, preset: str, pairs: list[str]) -> None:
    parsed = parse(words.split())
    assert (parsed.preset, parsed.overrides) == (preset, pairs)
    assert not is_pair("./a=b")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, content) for name in ("manifest.json", "prompts.json") for content in (b"", b"null", None)),
        ("curation.json", b"[1"),
        ("costs.json", b""),
        ("report/built.json", b""),
    ],
)
def test_a_damaged_document_is_named_or_made_again(
    name: str, content: bytes | None, finished: Path, tiny_pipeline: Path, tmp_path: Path, capsys: Any
) -> None:
    from support.tiny_runs import settings

    output = tmp_path / "run"
    shutil.copytree(finished, output, copy_function=os.link)
    (output / name).unlink()
    if content is not None:
        (output / name).write_bytes(content)
    for words in (
        ["status", str(output)],
        ["run", "scenes", *settings(tiny_pipeline, output, "interventions.tasks=[]")],
    ):
        code = main(words)
        error = capsys.readouterr().err
        assert code in (0, 1, 2)
        if code == 2:
            assert name in error
            assert error.count("\n") == 1


def test_leaving_a_job_says_that_it_runs_on(monkeypatch: Any, capsys: Any) -> None:
    job = cluster.submit.Job("sweep-1", "RUNNING", "", (), "s3://b/run", "")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster.submit, "jobs", lambda *_: [job])
    monkeypatch.setattr(cluster.submit, "follow", interrupted)
    assert main(["logs", "--address", "http://head:8265", "s3://b/run/", "--follow"]) == 1
    line = "no longer following; the job runs on: scenesweep logs --address http://head:8265 sweep-1 --follow"
    assert capsys.readouterr().err == f"\n{line}\n"


@pytest.mark.parametrize("output", ["runs/x", "./x", "memory://x"])
def test_an_output_that_each_node_would_have_for_itself_is_not_submitted(output: str, capsys: Any) -> None:
    assert main(["submit", "--address", "http://head:8265", "scenes", f"output={output}"]) == 2
    assert f"output={output}: each node of a cluster would have its own" in capsys.readouterr().err
