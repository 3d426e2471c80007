"""What the tests that kill processes execute in a process of its own: tasks that write files, and killers."""

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

from cluster import TaskStarted, WorkerLost, WorkerSpec, connect
from support import cluster_fakes as fakes

TASKS = 24
SECONDS = 0.05


@dataclass(frozen=True)
class Write:
    """A task that writes one file, always with the same bytes."""

    key: str

    def content(self) -> bytes:
        return hashlib.sha256(self.key.encode()).digest() * 1000


def write(folder: Path, task: Write) -> dict[str, Any]:
    """Write a task's file slowly under another name, then rename it."""
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
    """The tasks without a finished file."""
    tasks = [Write(f"w{i:02d}") for i in range(TASKS)]
    return [task for task in tasks if not (folder / f"{task.key}.bin").exists()]


def problems(folder: Path) -> list[str]:
    """Names of files that are lost, differ from what their task writes, or belong to no task."""
    expected = {f"w{i:02d}.bin": Write(f"w{i:02d}").content() for i in range(TASKS)}
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    wrong = [name for name, data in expected.items() if found.get(name) != data]
    finished = set(found) - set(expected)
    return wrong + [name for name in finished if not name.endswith(".partial")]


class Killer:
    """An observer that kills once: at a random moment, or at the first one after it when there is a target."""

    def __init__(self, rng: random.Random, kill: Callable[[random.Random], bool]) -> None:
        self.start, self.delay = rng.randint(2, TASKS // 2), rng.uniform(0, SECONDS)
        self.rng, self.kill = rng, kill
        self.started = self.lost = 0
        self.killed = False

    def __call__(self, event: Any) -> None:
        self.lost += isinstance(event, WorkerLost)
        self.started += isinstance(event, TaskStarted)
        if isinstance(event, TaskStarted) and self.started >= self.start and not self.killed:
            time.sleep(self.delay)
            self.killed = self.kill(self.rng)


def one_moment(folder: Path, seed: int, kill: Callable[[Path, random.Random], bool], retries: int) -> dict[str, Any]:
    """Run all tasks while something is killed; returns counts, failures and problems of the files."""
    from cluster.actors import OnRay

    marks = folder / "marks"
    marks.mkdir(parents=True)
    killer = Killer(random.Random(seed), partial(kill, marks))
    worker = WorkerSpec(partial(build, folder, marks), count=2, name="write")
    outcome = OnRay(retries).run(missing(folder), worker, [killer])
    return {
        "seed": seed,
        "done": len(outcome.done),
        "failed": outcome.failed,
        "attempts": sum(outcome.attempts.values()),
        "lost": killer.lost,
        "problems": problems(folder),
    }


def kill_worker(marks: Path, rng: random.Random) -> bool:
    """SIGKILL a process that holds a worker."""
    alive = [pid for pid in fakes.processes(marks) if Path(f"/proc/{pid}").exists()]
    os.kill(rng.choice(sorted(alive)), signal.SIGKILL)
    return True


def busy_node(cluster: Any, marks: Path, rng: random.Random) -> tuple[Any, int] | None:
    """A node that holds a worker, and the id of its raylet's process; None while there is none."""
    workers = fakes.processes(marks)
    found = []
    for node in sorted(cluster.worker_nodes, key=lambda node: node.unique_id):
        raylet = node.all_processes["raylet"][0].process.pid
        if workers & fakes.descendants(raylet):
            found.append((node, raylet))
    return rng.choice(found) if found else None


def kill_raylet(cluster: Any, marks: Path, rng: random.Random) -> bool:
    """SIGKILL a node's raylet and all its processes, as if the machine were gone."""
    target = busy_node(cluster, marks, rng)
    if target is None:
        return False
    node, raylet = target
    for pid in [raylet, *fakes.descendants(raylet)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)
    return True


def drain_node(cluster: Any, marks: Path, rng: random.Random) -> bool:
    """Announce that a node will be taken away."""
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    target = busy_node(cluster, marks, rng)
    if target is None:
        return False
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int(time.time() * 1000) + 60_000
    accepted, _ = GcsClient(address=cluster.address).drain_node(target[0].node_id, reason, "taken away", deadline_ms)
    return accepted


def on_a_cluster(folder: Path, moments: list[tuple[str, int, int]]) -> None:
    """Run moments (kind, seed, retries) one after another on a head that holds the driver and two nodes of one CPU.

    Prints one line of JSON for each.
    """
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    kills = {"worker": kill_worker, "raylet": partial(kill_raylet, cluster), "drain": partial(drain_node, cluster)}
    try:
        with connect(cluster.address):
            for number, (kind, seed, retries) in enumerate(moments):
                while len(cluster.worker_nodes) < 2:
                    cluster.add_node(num_cpus=1)
                result = one_moment(folder / str(number), seed, kills[kind], retries)
                print(json.dumps({"kind": kind, "retries": retries, **result}), flush=True)
    finally:
        cluster.shutdown()


def embedded(folder: Path) -> None:
    """A plain run that resumes: finished files are not written again."""
    from cluster.actors import OnRay

    marks = folder / "marks"
    marks.mkdir(parents=True, exist_ok=True)
    with connect("local", num_cpus=2):
        worker = WorkerSpec(partial(build, folder, marks), count=2, name="write")
        outcome = OnRay(2).run(missing(folder), worker)
    print(json.dumps({"done": len(outcome.done), "failed": outcome.failed}), flush=True)


def main() -> None:
    """Execute moments on a cluster, given as JSON in the second argument, or without them the embedded run."""
    folder, moments = Path(sys.argv[1]), json.loads(sys.argv[2])
    if moments:
        on_a_cluster(folder, moments)
    else:
        embedded(folder)
