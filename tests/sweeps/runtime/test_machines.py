"""The machines of a run: described without names or addresses, kept in the store, counted by stage."""

from __future__ import annotations

import json
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest

import storage
from cluster import Session, TaskDone, TaskFailed, TaskStarted, facts
from support.report_store import CONFIG, Made, make_store
from sweeps.analysis import tables
from sweeps.report.context import build_context
from sweeps.report.sections import provenance
from sweeps.report.tables import Table
from sweeps.runtime import machines
from sweeps.runtime.machines import WorkerCount
from sweeps.tracking.runs import plan, summary_digest
from sweeps.tracking.summary import cluster_numbers

HEAD = {"NodeID": "ab12", "NodeManagerHostname": "secret-host", "NodeManagerAddress": "10.0.0.7",
        "Resources": {"CPU": 4.0, "memory": 9e9, "node:10.0.0.7": 1.0}}  # fmt: skip
GPU = HEAD | {"Resources": {"CPU": 16.0, "GPU": 2.0, "accelerator_type:A100": 1.0, "node:10.0.0.8": 1.0}}
LABELLED = HEAD | {"Resources": {"CPU": 16.0, "GPU": 1.0}, "Labels": {"ray.io/accelerator-type": "H100"}}
SMALL = facts.summary([HEAD])
LARGE = facts.summary([HEAD, GPU, GPU, LABELLED])
RAY = {"ray": "2.60.0", "python": "3.12.1", "address": "private network"}


def session(address: str, embedded: bool = False) -> Session:
    return Session(address, embedded, 1, 2, 0, {"ray": "2.60.0", "python": "3.12.1"})


@pytest.fixture
def store(tmp_path: Path) -> storage.Store:
    return make_store(tmp_path, Made(train=2, test=3, sites=("mid.0",), steps=(1, 15), extras=False, pictures=False))


def test_nodes_are_described_by_kind_and_not_by_name() -> None:
    assert (LARGE["nodes"], LARGE["cpus"], LARGE["gpus"]) == (4, 52, 5)
    assert LARGE["kinds"] == [
        {"nodes": 1, "cpus": 4, "gpus": 0, "gpu": ""},
        {"nodes": 1, "cpus": 16, "gpus": 1, "gpu": "H100"},
        {"nodes": 2, "cpus": 16, "gpus": 2, "gpu": "A100"},
    ]
    assert not {"secret-host", "10.0.0", "ab12"} & set(json.dumps(LARGE).split('"'))
    assert facts.summary([]) == {"nodes": 0, "cpus": 0, "gpus": 0, "kinds": []}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:6379", "this machine"),
        ("[::1]:6379", "this machine"),
        ("localhost:6379", "this machine"),
        ("10.1.2.3:6379", "private network"),
        ("8.8.8.8:6379", "public network"),
        ("head.lab.example:6379", "network, by name"),
    ],
)
def test_an_address_is_described_by_its_kind(address: str, expected: str) -> None:
    assert facts.kind(session(address)) == expected
    assert facts.kind(session(address, embedded=True)) == "private Ray of this machine"


def test_the_description_of_a_real_session_names_no_machine(ray_local: Session) -> None:
    described = facts.of(ray_local)
    assert described["ray"] == ray_local.versions["ray"]
    assert (described["nodes"], described["cpus"], described["gpus"]) == (1, 2, 0)
    text = json.dumps(described)
    assert socket.gethostname() not in text
    assert "127.0.0.1" not in text


def test_workers_at_once_are_counted_by_stage(store: storage.Store) -> None:
    machines.begin(store, RAY | SMALL)
    listener = pickle.loads(pickle.dumps(WorkerCount(store.url, "sample")))
    for key in ("a", "b"):
        listener(TaskStarted(key, 1, "sample.0"))
    listener(TaskFailed("a", 1, 0.1, "gone"))
    listener(TaskStarted("a", 2, "sample.1"))
    for key in ("a", "b"):
        listener(TaskDone(key, 1, 0.1, {}))
    one = WorkerCount(store.url, "label")
    one(TaskStarted("c", 1, "label.0"))
    one(TaskDone("c", 1, 0.1, {}))
    assert machines.read(store) == [RAY | SMALL | {"workers": {"sample": 2, "label": 1}}]


def test_a_cluster_that_grows_is_one_session_and_another_is_a_second(store: storage.Store) -> None:
    machines.begin(store, RAY | SMALL)
    machines.count(store, "sample", 3, LARGE)
    machines.count(store, "sample", 2, SMALL)
    assert machines.read(store) == [RAY | LARGE | {"workers": {"sample": 3}}]
    machines.begin(store, RAY | SMALL)  # resumed, and grown again
    machines.count(store, "probe", 5, LARGE)
    assert machines.read(store) == [RAY | LARGE | {"workers": {"sample": 3, "probe": 5}}]
    machines.begin(store, RAY | SMALL | {"address": "this machine"})
    machines.count(store, "intervene", 1, SMALL)
    assert [one["address"] for one in machines.read(store)] == ["private network", "this machine"]


def test_mirror_and_report_show_the_machines(store: storage.Store) -> None:
    before = tables.load(store, CONFIG)
    assert (before.cluster, cluster_numbers(before)) == ([], {})
    machines.begin(store, RAY | LARGE)
    machines.count(store, "sample", 5, LARGE)
    machines.count(store, "probe", 7, LARGE)
    run = tables.load(store, CONFIG)
    (stored,) = plan(run, "site")[0].config["cluster"]
    assert stored == RAY | LARGE | {"workers": {"probe": 7}}
    assert summary_digest(run) != summary_digest(before)
    numbers: dict[str, Any] = cluster_numbers(run)
    assert numbers["cluster/ray"] == "2.60.0"
    assert (numbers["cluster/nodes"], numbers["cluster/gpus"]) == (4, 5)
    assert numbers["cluster/gpu_models"] == "H100, A100"
    assert (numbers["cluster/workers/sample"], numbers["cluster/workers/probe"]) == (5, 7)
    blocks = provenance.costs(build_context(run, store)).blocks
    shown = next(block for block in blocks if isinstance(block, Table) and block.columns[-1] == "Ray")
    assert {"H100 on 1, A100 on 2", "sample 5, probe 7"} <= set(shown.rows[0])


def test_later_stages_elsewhere_leave_the_runs_of_sites_as_they_are(store: storage.Store) -> None:
    machines.begin(store, RAY | LARGE)
    machines.count(store, "probe", 7, LARGE)
    digests = [p.digest for p in plan(tables.load(store, CONFIG), "site")]
    machines.begin(store, RAY | SMALL)
    machines.count(store, "intervene", 1, SMALL)
    assert [p.digest for p in plan(tables.load(store, CONFIG), "site")] == digests
