"""Workers, nodes and drivers are killed at seeded moments, and no file is lost or wrong.

CHAOS_MOMENTS is the number of moments of each kind (default 3).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from support import cluster_chaos as chaos
from support import cluster_fakes as fakes

pytestmark = pytest.mark.chaos

MOMENTS = int(os.environ.get("CHAOS_MOMENTS", "3"))
SCRIPT = "from support import cluster_chaos; cluster_chaos.main()"
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # a busy machine would starve the workers, and start nodes late
    "RAY_raylet_start_wait_time_s": "180",
}


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """What came of each moment, by kind and number of retries; one cluster serves all, the drained node comes last."""
    planned = [(kind, 100 + i, 2) for kind in ("worker", "raylet") for i in range(MOMENTS)]
    planned += [(kind, 100 + i, 0) for kind in ("worker", "raylet") for i in range(3)] + [("drain", 100, 0)]
    folder = str(tmp_path_factory.mktemp("moments"))
    done = fakes.run_apart(SCRIPT, folder, json.dumps(planned), timeout=60 * len(planned) + 300, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(result["kind"], result["seed"], result["retries"]) for result in results] == planned
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for result in results:
        found.setdefault((result["kind"], result["retries"]), []).append(result)
    return found


@pytest.mark.parametrize("kind", ["worker", "raylet"])
def test_killed_workers_and_nodes_cost_nothing_but_time(kind: str, moments) -> None:
    for moment in moments[kind, 2]:
        assert moment["done"] == chaos.TASKS, moment
        assert not moment["failed"], moment
        assert not moment["problems"], moment
        assert moment["lost"] >= 1, moment
        assert chaos.TASKS <= moment["attempts"] <= chaos.TASKS + moment["lost"], moment
    assert sum(moment["attempts"] for moment in moments[kind, 2]) > chaos.TASKS * MOMENTS


def test_without_retries_a_killed_worker_costs_its_task(moments) -> None:
    assert sum(len(moment["failed"]) for moment in moments["worker", 0]) >= 1
    assert all(moment["problems"] for moment in moments["worker", 0] if moment["failed"])


def test_a_lost_node_is_not_the_tasks_fault(moments) -> None:
    assert not any(moment["failed"] for moment in moments["raylet", 0])


def test_a_drained_node_gives_back_its_work_unharmed(moments) -> None:
    (moment,) = moments["drain", 0]
    assert moment["done"] == moment["attempts"] == chaos.TASKS
    assert not moment["failed"]
    assert not moment["problems"]
    assert moment["lost"] in (1, 2)  # on a busy machine the next worker may be put on the node that leaves, once


@pytest.mark.parametrize("seed", [200 + i for i in range(MOMENTS)])
def test_killed_drivers_take_their_workers_along_and_resume(seed: int, tmp_path: Path) -> None:
    how = fakes.apart(SCRIPT, str(tmp_path), "[]")
    driver = subprocess.Popen(**how, stdout=subprocess.DEVNULL)
    wanted = random.Random(seed).randint(1, chaos.TASKS - 4)
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("*.bin"))) < wanted:
        assert time.monotonic() < until
        time.sleep(0.01)
    below = fakes.holders(driver.pid)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in below):
        assert time.monotonic() < until, "processes outlive the driver"
        time.sleep(0.05)

    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.bin")}
    assert wanted <= len(kept) < chaos.TASKS
    again = fakes.run_apart(SCRIPT, str(tmp_path), "[]")
    assert json.loads(again.stdout) == {"done": chaos.TASKS - len(kept), "failed": {}}
    assert not chaos.problems(tmp_path)
    assert all((tmp_path / name).stat().st_mtime_ns == when for name, when in kept.items())
