"""What the fault tests run in a process of its own: tasks that write files, and their killers."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cluster_fakes as fakes

from cluster import TaskStarted, WorkerLost, WorkerSpec, connect

TASKS = 24
SECONDS = 0.05


@dataclass(frozen=True)
class Write:
    """A task: write this file, always with the same bytes."""

    key: str

    def content(self) -> bytes:
        return hashlib.sha256(self.key.encode()).digest() * 1000


def write(folder: Path, task: Write) -> dict[str, Any]:
    """Slowly, then atomically."""
    partial_file = folder / f"{task.key}.{os.getpid()}.partial"
    data = task.content()
    with partial_file.open("wb") as stream:
        for piece in range(0, len(data), len(data) // 4):
            stream.write(data[piece : piece + len(data) // 4])
            time.sleep(SECONDS / 4)
    partial_file.rename(folder / f"{task.key}.bin")
    return {"bytes": len(data)}


def build(folder: Path, marks: Path) -> Callable[[Write], dict[str, Any]]:
    fakes.mark(marks, "built", "x")
    return partial(write, folder)


def missing(folder: Path) -> list[Write]:
    """The tasks whose file is not there."""
    tasks = [Write(f"w{i:02d}") for i in range(TASKS)]
    return [task for task in tasks if not (folder / f"{task.key}.bin").exists()]


def faults(folder: Path) -> list[str]:
    """What is wrong with the files: lost, falsified or left over."""
    expected = {f"w{i:02d}.bin": Write(f"w{i:02d}").content() for i in range(TASKS)}
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    wrong = [name for name, data in expected.items() if found.get(name) != data]
    finished = set(found) - set(expected)
    return wrong + [name for name in finished if not name.endswith(".partial")]


class Saboteur:
    """An observer that kills something at a chosen moment, once."""

    def __init__(self, rng: random.Random, kill: Callable[[random.Random], None]) -> None:
        self.start, self.delay = rng.randint(2, TASKS - 4), rng.uniform(0, SECONDS)
        self.rng, self.kill = rng, kill
        self.started = self.lost = 0

    def __call__(self, event: Any) -> None:
        self.lost += isinstance(event, WorkerLost)
        self.started += isinstance(event, TaskStarted)
        if self.started == self.start and isinstance(event, TaskStarted):
            time.sleep(self.delay)
            self.kill(self.rng)


def one_moment(
    folder: Path, seed: int, kill: Callable[[Path, random.Random], None], retries: int
) -> dict[str, Any]:
    """Run all tasks while something is killed; what came of it."""
    from cluster.actors import OnRay

    marks = folder / "marks"
    marks.mkdir(parents=True)
    saboteur = Saboteur(random.Random(seed), partial(kill, marks))
    worker = WorkerSpec(partial(build, folder, marks), count=3, name="write")
    outcome = OnRay(retries).run(missing(folder), worker, [saboteur])
    return {
        "seed": seed,
        "done": len(outcome.done),
        "failed": outcome.failed,
        "attempts": sum(outcome.attempts.values()),
        "lost": saboteur.lost,
        "faults": faults(folder),
    }


def kill_worker(marks: Path, rng: random.Random) -> None:
    alive = [pid for pid in fakes.processes(marks) if Path(f"/proc/{pid}").exists()]
    os.kill(rng.choice(sorted(alive)), signal.SIGKILL)


def kill_raylet(cluster: Any, marks: Path, rng: random.Random) -> None:
    """SIGKILL a node's raylet and all it started, as when the machine goes; a fresh node joins."""
    node = rng.choice(sorted(cluster.worker_nodes, key=lambda node: node.unique_id))
    raylet = node.all_processes["raylet"][0].process
    for pid in [raylet.pid, *fakes.descendants(raylet.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=1)


def drain_node(cluster: Any, marks: Path, rng: random.Random) -> None:
    """A node announces that it will be taken away; a fresh node joins."""
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    node = rng.choice(sorted(cluster.worker_nodes, key=lambda node: node.unique_id))
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int(time.time() * 1000) + 60_000
    accepted, _ = GcsClient(address=cluster.address).drain_node(
        node.node_id, reason, "taken away", deadline_ms
    )
    assert accepted
    cluster.add_node(num_cpus=1)


def on_a_cluster(folder: Path, kind: str, seeds: list[int], retries: int) -> None:
    """Three nodes of one CPU each, one of them the driver's; a killing for each seed."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    kill = {
        "worker": kill_worker,
        "raylet": partial(kill_raylet, cluster),
        "drain": partial(drain_node, cluster),
    }[kind]
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        with connect(cluster.address):
            for seed in seeds:
                came = one_moment(folder / str(seed), seed, kill, retries)
                print(json.dumps(came), flush=True)
    finally:
        cluster.shutdown()


def embedded(folder: Path) -> None:
    """The plain run that resumes: whatever file is there is left alone."""
    from cluster.actors import OnRay

    marks = folder / "marks"
    marks.mkdir(parents=True, exist_ok=True)
    with connect("local", num_cpus=2):
        worker = WorkerSpec(partial(build, folder, marks), count=2, name="write")
        outcome = OnRay(2).run(missing(folder), worker)
    print(json.dumps({"done": len(outcome.done), "failed": outcome.failed}), flush=True)


def main() -> None:
    place, what, numbers, tries = sys.argv[1:]
    if what == "embedded":
        embedded(Path(place))
    else:
        on_a_cluster(Path(place), what, [int(seed) for seed in numbers.split(",")], int(tries))
