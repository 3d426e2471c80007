"""Room for workers, the check for a shared output, and the origin of imported packages."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import Session, WorkerSpec, resources
from cluster.workers import assert_ours


def spec(**settings: Any) -> WorkerSpec:
    return WorkerSpec(dict, name="stage", **settings)


@pytest.mark.parametrize(
    ("worker", "node", "room"),
    [
        (spec(), {"CPU": 8}, 8),
        (spec(num_cpus=3), {"CPU": 8}, 2),
        (spec(num_gpus=1), {"CPU": 8}, 0),
        (spec(num_gpus=0.1), {"CPU": 64, "GPU": 1}, 10),
        (spec(num_cpus=2, num_gpus=0.5), {"CPU": 8, "GPU": 4}, 4),
        (spec(num_cpus=0), {"CPU": 0}, 1),
        (spec(), {}, 0),
    ],
)
def test_how_many_workers_a_node_holds(worker: WorkerSpec, node: dict[str, float], room: int):
    assert resources.fits(worker, node) == room


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"count": 0}, "workers of stage: count 0"),
        ({"threads": 0}, "workers of stage: threads 0"),
        ({"num_cpus": -1}, "workers of stage: num_cpus -1"),
        ({"num_gpus": 1.5}, "workers of stage: num_gpus 1.5"),
    ],
)
def test_invalid_workers_are_refused(settings: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ValueError, match=fragment):
        spec(**settings)


@pytest.mark.parametrize(("held", "embedded", "requested"), [(3, True, 3), (3, False, 64), (100, False, 100)])
def test_more_workers_are_requested_on_a_cluster_that_may_grow(
    held: int, embedded: bool, requested: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(resources, "nodes", lambda: [{"Resources": {"CPU": held}}])
    monkeypatch.setattr(resources, "is_embedded", lambda: embedded)
    assert resources.room(spec()) == requested


def test_an_unreachable_node_is_not_alive(ray_local: Session, monkeypatch: Any) -> None:
    (node,) = resources.nodes()
    assert resources.is_alive(node["NodeID"])
    assert not resources.is_alive("another")
    monkeypatch.setattr(resources, "nodes", lambda: [node | {"NodeManagerPort": 9}])
    assert not resources.is_alive(node["NodeID"])


def test_an_output_that_all_nodes_share_is_accepted(ray_local: Session, tmp_path: Path, monkeypatch: Any) -> None:
    seen = resources.nodes()
    monkeypatch.setattr(resources, "nodes", lambda: seen * 2)
    resources.check_shared_output(str(tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_output_that_a_node_cannot_read_is_refused(ray_local: Session, tmp_path: Path, monkeypatch: Any) -> None:
    seen = resources.nodes()
    monkeypatch.setattr(resources, "nodes", lambda: seen * 2)
    handle = os.open(tmp_path, os.O_RDONLY)
    private = f"/proc/self/fd/{handle}"  # another folder, or none, in any other process
    try:
        with pytest.raises(ValueError, match=f"output {private}: not every node .*127.0.0.1: "):
            resources.check_shared_output(private)
    finally:
        os.close(handle)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_memory_is_no_output_for_several_processes(ray_local: Session) -> None:
    with pytest.raises(ValueError, match="output memory://here: not every node"):
        resources.check_shared_output("memory://here")


def test_our_packages_are_ours() -> None:
    assert_ours()


@pytest.mark.parametrize("single", [True, False])
def test_a_foreign_package_of_our_name_is_noticed(single: bool, tmp_path: Path, monkeypatch: Any) -> None:
    if single:
        (tmp_path / "sweeps.py").write_text("")
    else:
        (tmp_path / "sweeps").mkdir()
        (tmp_path / "sweeps" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "sweeps"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(AssertionError, match="sweeps"):
        assert_ours()
