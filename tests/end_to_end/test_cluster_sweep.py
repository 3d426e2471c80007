"""A complete sweep on a cluster of several machines, submitted from outside, with losses in every stage.

The machines are network namespaces if the system allows them; see cluster_nodes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import storage
from cluster import submit
from cluster.observers import logs, prometheus
from support import cluster_nodes, tiny_model
from support.cluster_losses import NodeLosses, assert_no_probe_twice, ended, kill_driver, records
from support.tiny_runs import assert_same_scores, stored
from sweeps import pipeline
from sweeps.config.load import load
from sweeps.runtime.grid import pack, probe_specs
from sweeps.stages import probe
from sweeps.stages.probe_tune import run_trial

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("CHAOS_NODES") != "1", reason="several Ray nodes here: set CHAOS_NODES=1"),
    pytest.mark.chaos,
    pytest.mark.filterwarnings("ignore:ssl=None:DeprecationWarning"),  # in Ray's own client
]
SECRET = "planted-5f1d0c9a7be2"
SITES = ("down.1.0", "mid.0", "up.2.1")
EPOCHS = 3000
"""Probing takes many seconds, so that an actor is still seen at it after its first rows."""
SMALL = [
    "prompts.count=6", "sampling.shard=2", f"sampling.sites=[{','.join(SITES)}]", "sweep.steps=[1,15]",
    "curation.train=3", "curation.val=1", "curation.test=2", "curation.min_foreground=0",
    "curation.min_contrast=0", f"probe.epochs={EPOCHS}", "sweep.trial_axes=[variant]", "sweep.controls=[none]",
    "interventions.images=1", "interventions.moves=1", "interventions.iterations=2",
    "interventions.tasks=[depth]", "interventions.depth_steps=[1]", "interventions.controls=[none]",
    "interventions.depth_sites=[mid.0]",
    "tracking.mode=offline", "experiments.names=[]", "ray.sampling_gpus=1", "ray.label_gpus=0.5", "ray.probe_gpus=0.25",
]  # fmt: skip
PROBES = 2 * len(SITES) * 2 * 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sweep in this process, without Ray."""
    output = tmp_path_factory.mktemp("runs") / "undisturbed"
    result = pipeline.execute(load("scenes", settings(model, output, "ray.address=none")))
    assert result.failed == {}
    return output


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cluster_nodes.Machines]:
    """A head without CPU and GPU whose nodes have a secret in their environment."""
    environment = {"WANDB_API_KEY": SECRET}
    with cluster_nodes.Machines(
        tmp_path_factory.mktemp("nodes"), environment, not cluster_nodes.no_namespaces()
    ) as machines:
        yield machines


def settings(model: Path, output: Path, *more: str) -> list[str]:
    return [*SMALL, f"model.name={model}", f"output={output}", *more]


def test_nodes_and_driver_are_lost_and_the_store_is_the_same(machines, model, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    output = tmp_path / "run"
    machines.add("gpu", cpus=1, gpus=1)
    machines.add("cpu", cpus=1)
    arguments = ["scenes", *settings(model, output)]
    first = submit.submit(machines.address, arguments, output=str(output))
    losses = NodeLosses(machines, first, output)
    losses.wait("shards/sample/*/*.json")
    kept = losses.kill_node("sample.")
    losses.replace_node()
    losses.wait("shards/sample/*/*.json", len(kept) + 1)
    kept |= records(output)
    kill_driver(machines, first)

    again = submit.submit(machines.address, arguments, output=str(output))
    losses.job = again
    kept |= losses.kill_node("label.")
    losses.replace_node()
    losses.wait("results/probes/*.parquet")
    kept |= losses.kill_node("probe")
    losses.replace_node()
    kept |= losses.kill_node("intervene.")
    # Without a GPU the driver waits, so it is still there when its metrics are next collected.
    measured = losses.until(lambda: exported(machines), "the probe stage among the metrics")
    losses.replace_node()
    assert ended(machines, again).status == "SUCCEEDED", submit.logs(machines.address, again.id)

    assert stored(output) == stored(undisturbed)
    assert assert_no_probe_twice(output) == PROBES
    assert_same_scores(output, undisturbed)
    edits = storage.open(str(output)).table("interventions", current=False).to_pylist()
    rows = Counter((e["sample"], e["trial"], e["direction"], e["control"]) for e in edits)
    assert max(rows.values()) == 1
    now = records(output)
    assert {path: now[path] for path in kept} == kept, "finished work was done again"
    check_observed(submit.logs(machines.address, again.id), measured)


def exported(machines: cluster_nodes.Machines) -> str:
    """The metrics once the loss in the probe stage and its probes are among them; empty before."""
    found = machines.metrics()
    matches = [
        re.search(rf'^ray_scenesweep_{name}\{{.*stage="probe".*\}} [1-9]', found, re.MULTILINE)
        for name in ("failures_total", "cells_total")
    ]
    return found if all(matches) else ""


def check_observed(log: str, measured: str) -> None:
    """Check that log records name run, shard and probe, and that Prometheus has every metric of the dashboard."""
    records = [json.loads(line) for line in log.splitlines() if logs.is_record(line)]
    done = [record for record in records if record["message"] == "task done"]
    assert {record["run"] for record in done} == {"scenes"}
    assert {record["shard"] for record in done if record["stage"] == "label"} == {f"{i:05d}" for i in range(3)}
    assert {record["cell"] for record in done if record["stage"] == "probe"} == {"trained", "random"}
    assert all(record["job_id"] for record in records if record["name"] == "scenesweep")
    assert {name for name in prometheus.names() if name not in measured} <= {"ray_scenesweep_given_up"}


def test_a_retried_probe_trial_leaves_out_finished_probes(undisturbed, model):
    config = load("scenes", settings(model, undisturbed, "ray.address=none"))
    run = pipeline.prepare(config)
    every = probe_specs(config.sweep, config.sampling.variants, run.sites)
    trials = pack(every, config.sweep.trial_axes)
    named = {trial.name: trial for trial in trials}
    shared = {"job": replace(probe.job(run), dry=True), "trials": named, "trial": trials[0].name, "leases": {}}
    assert run_trial(shared | {"again": 1})["cells"] == 0
    assert run_trial(shared)["cells"] == len(trials[0].probes) > 0


def test_the_finished_run_submitted_again_does_nothing(machines, model, tmp_path_factory):
    (output,) = {job.output for job in submit.jobs(machines.address)}
    before = records(Path(output))
    done = ended(machines, submit.resume(machines.address, submit.find(machines.address, output).id))
    assert done.status == "SUCCEEDED"
    assert "nothing to do" in submit.logs(machines.address, done.id)
    assert records(Path(output)) == before


def test_no_planted_secret_shows_anywhere(machines, monkeypatch):
    """Checks the dashboard's jobs and lists, the logs of all nodes, the output and the W&B files."""
    known = submit.jobs(machines.address)
    assert known
    texts = [str(job) + submit.logs(machines.address, job.id) for job in known]
    texts += [str(machines.listed(kind)) for kind in ("jobs", "actors", "tasks", "workers", "nodes", "runtime_envs")]
    assert not any(SECRET in text for text in texts)
    places = [machines.folder if machines.apart else Path("/tmp/ray/session_latest/"), Path(known[0].output)]
    files = [p for place in places for p in place.rglob("*") if p.is_file() and not p.is_symlink()]
    assert any("wandb" in p.parts for p in files)
    assert any(p.suffix == ".out" for p in files)
    assert [p for p in files if SECRET.encode() in p.read_bytes()] == []


def test_machines_are_apart(machines):
    """With network namespaces, no node reaches another by 127.0.0.1."""
    if not machines.apart:
        pytest.skip(cluster_nodes.no_namespaces())
    assert len({node.address for node in machines.nodes.values()}) == len(machines.nodes)
    code = "import socket; socket.create_connection(('127.0.0.1', 8265), timeout=3)"
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "refused" in tried.stderr
