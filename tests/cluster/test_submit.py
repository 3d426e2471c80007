"""A run submitted to a real cluster over HTTP: its code is uploaded, and it can be followed and stopped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cluster
import storage
from cluster import submit
from support import cluster_fakes as fakes
from support import cluster_nodes as nodes

HEAD = """
import os, sys
from ray.cluster_utils import Cluster

ports = {"dashboard_port": int(sys.argv[1]), "dashboard_agent_listen_port": int(sys.argv[2])}
arguments = {"num_cpus": 2, "include_dashboard": True, **ports}
cluster = Cluster(initialize_head=True, head_node_args=arguments)
print("up", flush=True)
sys.stdin.read()
cluster.shutdown()
"""

FAKE_SWEEPS = """
import json, os, sys, time
from dataclasses import dataclass
from cluster import WorkerSpec, connect
from cluster.process import sigterm_stops

@dataclass(frozen=True)
class Task:
    key: str

def build():
    return lambda task: {"key": task.key}

if __name__ == "__main__":
    print("arguments", json.dumps(sys.argv[1:]), flush=True)
    with connect("auto") as session, sigterm_stops():
        from cluster.actors import OnRay
        outcome = OnRay(0).run([Task("a"), Task("b")], WorkerSpec(build, name="fake"))
        print("outcome", session.embedded, sorted(outcome.done), outcome.failed, flush=True)
        try:
            time.sleep(60 if "slow" in sys.argv else 0)
        except KeyboardInterrupt as stop:
            print("stopped cleanly:", stop, flush=True)
            raise SystemExit(1)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the real `storage` and `cluster` and a small `sweeps`."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("probing", "interventions", "sweeps"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text('"""A stand-in."""\n')
    (folder / "sweeps" / "__main__.py").write_text(FAKE_SWEEPS)
    for package in (storage, cluster):
        source = Path(package.__file__).parent
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster with a dashboard, in processes of its own."""
    # By default the job agent listens on one fixed port, which another Ray here may hold.
    port, agent = nodes.free_port(), nodes.free_port()
    first = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # a job runs `python`
    how = fakes.apart(HEAD, str(port), str(agent), PATH=first, RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    head = subprocess.Popen(**how, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert head.stdin
    assert head.stdout
    assert head.stdout.readline() == "up\n"
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        head.stdin.close()
        head.wait(timeout=60)


def until(true: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:ssl=None:DeprecationWarning")  # in Ray's own client
def test_a_run_is_uploaded_followed_found_and_resumed(address: str, home: Path) -> None:
    arguments = ["paper", "name=two words", "sweep.seeds=[0,1]"]
    job = submit.submit(address, arguments, output="/shared/run", home=home)
    assert job.id in job.dashboard
    written: list[str] = []
    ended = submit.follow(address, job.id, written.append)
    log = "".join(written)
    assert ended.status == "SUCCEEDED", log
    assert f"arguments {json.dumps(['run', *arguments, 'ray.address=auto'])}" in log
    assert "outcome False ['a', 'b'] {}" in log
    assert "outcome" in submit.logs(address, job.id)
    assert ended.arguments == tuple(arguments)

    again = submit.resume(address, job.id, home=home)
    assert again.id != job.id
    assert (again.arguments, again.output) == (job.arguments, "/shared/run")
    until(lambda: submit.status(address, again.id).ended)
    assert [each.id for each in submit.jobs(address, "/shared/run")] == [again.id, job.id]
    assert submit.jobs(address, "/another") == []
    assert not submit.stop(address, again.id)


@pytest.mark.slow
def test_a_running_job_is_stopped_cleanly(address: str, home: Path) -> None:
    job = submit.submit(address, ["slow"], home=home)
    until(lambda: "outcome" in submit.logs(address, job.id))
    with pytest.raises(ValueError, match=f"job {job.id} is RUNNING"):
        submit.resume(address, job.id, home=home)
    assert submit.stop(address, job.id)
    until(lambda: submit.status(address, job.id).ended)
    assert submit.status(address, job.id).status == "STOPPED"
    assert "stopped cleanly: signal SIGTERM" in submit.logs(address, job.id)


@pytest.mark.slow
def test_other_versions_and_unknown_jobs_are_refused(address: str, monkeypatch: Any) -> None:
    import ray

    with pytest.raises(ValueError, match=f"{address}.*sweep-nothing"):
        submit.status(address, "sweep-nothing")
    cluster_version = ray.__version__
    monkeypatch.setattr(ray, "__version__", "2.99.0")
    with pytest.raises(ValueError, match=f"runs Ray {cluster_version}, this process Ray 2.99.0"):
        submit.jobs(address)


def test_no_dashboard_at_the_address() -> None:
    with pytest.raises(ValueError, match="no Ray dashboard answers at http://127.0.0.1:9"):
        submit.jobs("http://127.0.0.1:9")
    with pytest.raises(ValueError, match="127.0.0.1:6379"):
        submit.jobs("127.0.0.1:6379")


def test_arguments_survive_the_shell() -> None:
    assert submit.entry_point(["paper", "name=a b", "x='$HOME'"]) == (
        "python -m sweeps run paper 'name=a b' 'x='\"'\"'$HOME'\"'\"'' ray.address=auto"
    )


@pytest.mark.parametrize(
    ("argument", "setting"),
    [
        ("tracking.api_key=abcdef", "tracking.api_key: "),
        ("hub.token=abcdef", "hub.token: "),
        ("output=s3://user:pass@host/run", "output: "),
        ("name=planted-0123456789", "name: "),
        ("planted-0123456789", "an argument: "),
    ],
)
def test_secrets_are_refused_and_not_repeated(argument: str, setting: str, monkeypatch: Any, home: Path) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted-0123456789")
    with pytest.raises(ValueError, match="secrets do not belong") as caught:
        submit.submit("http://127.0.0.1:9", [argument], home=home)
    assert str(caught.value).startswith(setting)
    assert "planted" not in str(caught.value)
    assert "pass@" not in str(caught.value)


def test_harmless_arguments_pass(monkeypatch: Any) -> None:
    monkeypatch.setenv("EMPTY_TOKEN", "")
    monkeypatch.setenv("SHORT_KEY", "on")
    submit.check_no_secrets(["paper", "output=s3://bucket/run", "model.tokens=77", "ray.actors=on"])


def test_packages_must_exist_and_be_small(home: Path, tmp_path: Path, monkeypatch: Any) -> None:
    packages = [home / "probing", home / "sweeps"]
    submit.check_packages(packages)
    with pytest.raises(ValueError, match="package probing is not at"):
        submit.check_packages([tmp_path / "probing"])
    monkeypatch.setattr(submit, "PACKAGE_BYTES", 10)
    with pytest.raises(ValueError, match=r"the largest file is .*__main__.py"):
        submit.check_packages(packages)
