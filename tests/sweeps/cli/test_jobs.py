"""The command line for runs on a cluster: what is sent, found, shown and stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import cluster.submit
from sweeps.cli import jobs
from sweeps.cli.main import main
from sweeps.config.load import load
from sweeps.runtime.layout import wandb_group

HEAD = "http://head:8265"
RECORD = json.dumps({"levelname": "INFO", "message": "task done", "shard": "trained/00001"})
OUTPUT = "s3://bucket/run"


def job(name: str, status: str = "RUNNING") -> cluster.submit.Job:
    return cluster.submit.Job(name, status, "a message", ("paper", f"output={OUTPUT}"), OUTPUT, f"{HEAD}/#/jobs/{name}")


@pytest.fixture
def head(monkeypatch: Any) -> dict[str, Any]:
    """A cluster with two jobs of one output, the newer running; the fixture holds the requests it gets."""
    requests: dict[str, Any] = {}
    known = [job("sweep-2"), job("sweep-1", "FAILED")]

    def submitted(address: str, arguments: list[str], *, output: str = "", home: Any = None) -> cluster.submit.Job:
        requests["submit"] = (address, arguments, output)
        return job("sweep-3")

    def followed(address: str, name: str, write: Any) -> cluster.submit.Job:
        write(f"sampling: 1/2 shards\n{RECORD}\n")
        return job(name, requests.get("ends", "SUCCEEDED"))

    monkeypatch.setattr(cluster.submit, "jobs", lambda address, output=None: known)
    monkeypatch.setattr(cluster.submit, "submit", submitted)
    monkeypatch.setattr(cluster.submit, "follow", followed)
    monkeypatch.setattr(cluster.submit, "logs", lambda address, name: f"log of {name}\n{RECORD}\n")
    monkeypatch.setattr(cluster.submit, "stop", lambda address, name: requests.setdefault("stop", name) == name)
    monkeypatch.setattr(cluster.submit, "status", lambda address, name: next(j for j in known if j.id == name))
    return requests


def test_submit_prints_where_to_look(head: dict[str, Any], capsys: Any) -> None:
    words = ["submit", "--address", HEAD, "scenes", f"output={OUTPUT}", "tracking.mode=online", "tracking.entity=us"]
    assert main(words) == 0
    assert head["submit"] == (HEAD, words[3:], OUTPUT)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "job sweep-3",
        f"dashboard {HEAD}/#/jobs/sweep-3",
        f"output {OUTPUT}",
        f"W&B https://wandb.ai/us/scenesweep/groups/{wandb_group('scenes', OUTPUT)}",
    ]


MISSING = "sweep.steps=[1,2,3]", f"output={OUTPUT}"
"""settings under which the edits at step 4 have no probes"""


@pytest.fixture
def fresh(head: dict[str, Any], monkeypatch: Any) -> dict[str, Any]:
    """The cluster knows no job yet, and no bucket is to be reached from here."""
    monkeypatch.setattr(cluster.submit, "jobs", lambda address, output=None: [])
    monkeypatch.setattr("storage.open", lambda url: (_ for _ in ()).throw(ValueError(f"{url}: not a store")))
    return head


def test_interventions_without_probes_are_refused_before_anything_is_sent(fresh: dict[str, Any], capsys: Any) -> None:
    assert main(["submit", "--address", HEAD, "scenes", *MISSING]) == 2
    error = capsys.readouterr().err
    assert "add 4 to sweep.steps=[1,2,3]" in error
    assert error.count("\n") == 1
    assert "submit" not in fresh


def test_an_earlier_job_of_the_output_may_have_fitted_them(fresh: dict[str, Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(cluster.submit, "jobs", lambda address, output=None: [job("sweep-1", "FAILED")])
    assert main(["submit", "--address", HEAD, "scenes", *MISSING]) == 0
    assert "submit" in fresh


@pytest.mark.parametrize("name", ["nobody/has-this-model", "/only/on/the/cluster"])
def test_a_model_that_is_not_here_is_checked_by_the_job(name: str, fresh: dict[str, Any], capsys: Any) -> None:
    words = [*MISSING, f"model.name={name}", f"model.revision={'0' * 40}"]
    assert main(["submit", "--address", HEAD, "scenes", *words]) == 0
    assert "submit" in fresh
    assert capsys.readouterr().err == ""


def test_an_output_that_cannot_be_read_from_here_is_checked_by_the_job(fresh: dict[str, Any], monkeypatch: Any) -> None:
    def broken(url: str) -> None:
        raise PermissionError(f"{url}: no credentials")

    monkeypatch.setattr("storage.open", broken)
    assert main(["submit", "--address", HEAD, "scenes", *MISSING]) == 0
    assert "submit" in fresh


@pytest.mark.parametrize(("ends", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("STOPPED", 1)])
def test_following_shows_lines_for_people(ends: str, code: int, head: dict[str, Any], capsys: Any) -> None:
    head["ends"] = ends
    assert main(["submit", "--address", HEAD, "--follow", "scenes", f"output={OUTPUT}"]) == code
    printed = capsys.readouterr()
    assert "sampling: 1/2 shards" in printed.out
    assert RECORD not in printed.out
    assert (f"{ends}: a message" in printed.err) == bool(code)


@pytest.mark.parametrize(("target", "name"), [(OUTPUT, "sweep-2"), ("sweep-1", "sweep-1")])
def test_a_job_is_found_by_its_id_or_its_output(target: str, name: str, head: dict[str, Any], capsys: Any) -> None:
    assert main(["logs", "--address", HEAD, target]) == 0
    assert capsys.readouterr().out == f"log of {name}\n"
    assert main(["logs", "--address", HEAD, "--json", target]) == 0
    assert capsys.readouterr().out == f"{RECORD}\n"
    assert main(["status", "--address", HEAD, target]) == (1 if name == "sweep-1" else 0)
    assert f"job {name} " in capsys.readouterr().out


def test_an_unknown_job_is_refused_with_the_known_ones(head: dict[str, Any], capsys: Any) -> None:
    assert main(["stop", "--address", HEAD, "s3://bucket/other"]) == 2
    error = capsys.readouterr().err
    assert "s3://bucket/other" in error
    assert "sweep-2, sweep-1" in error
    assert "stop" not in head


def test_stop_and_resume(head: dict[str, Any], capsys: Any) -> None:
    assert main(["stop", "--address", HEAD, OUTPUT]) == 0
    assert head["stop"] == "sweep-2"
    assert main(["resume", "--address", HEAD, OUTPUT]) == 2
    assert "job sweep-2 is RUNNING" in capsys.readouterr().err
    assert main(["resume", "--address", HEAD, "sweep-1"]) == 0


def test_a_yaml_file_is_sent_as_its_settings(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    sampling = "sampling: {shard: 4, sites: [mid.0]}\nlabels: {threshold: 3}\n"
    file.write_text(f"name: 'two words #1'\nmodel: {{revision: 5e10234}}\n{sampling}")
    sent = jobs.arguments(str(file), ["output=/shared/run"])
    assert sent[0] == "scenes"
    assert str(tmp_path) not in " ".join(sent)
    assert load(sent[0], sent[1:]) == load(str(file), ["output=/shared/run"])
    assert jobs.arguments("paper", ["name=x"]) == ["paper", "name=x"]


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        (["tracking.mode=disabled"], "disabled"),
        (["output=/shared/run"], "offline, in /shared/run/wandb"),
        (
            ["tracking.mode=online", f"output={OUTPUT}"],
            f"https://wandb.ai, project scenesweep, group {wandb_group('scenes', OUTPUT)}",
        ),
    ],
)
def test_where_to_find_the_run_in_wandb(settings: list[str], place: str, monkeypatch: Any) -> None:
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    assert jobs.tracked(load("scenes", settings)) == place
