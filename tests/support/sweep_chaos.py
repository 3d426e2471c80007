"""What the fault tests of sampling run in processes of their own: runs, killers, and the judge of an output."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import storage
from support import cluster_fakes as fakes
from support.tiny_runs import SAMPLED, stored
from sweeps import pipeline
from sweeps.config.load import load
from sweeps.stages import sample as sample_stage

SCRIPT = "from support import sweep_chaos; sweep_chaos.main()"
SHARDS = 6
"""of both variants in a run with the settings of pipeline_runs"""
DELAY_S = 0.5
Strike = Callable[[], None]


def sample(words: list[str]) -> dict[str, str]:
    """The sampling stage as the command line runs it; what failed."""
    return pipeline.execute(load("scenes", words), ("sample",)).failed


def records(output: Path) -> list[Path]:
    """Completion records of sampling."""
    return [p for p in output.glob("shards/sample/*/*.json") if not p.name.endswith(".failed.json")]


def complete(output: Path) -> dict[str, int]:
    """Records of the complete shards and all their chunks, with the time when each was written."""
    if not (output / "layout.json").exists():
        return {}
    store = storage.open(str(output))
    found: dict[str, int] = {}
    for variant in store.layout.variants:
        for record in store.records.valid("sample", variant, None).values():
            for path in [record.path, *record.chunks]:
                found[path] = (output / path).stat().st_mtime_ns
    return found


def digests(output: Path) -> dict[str, str]:
    """Hash of everything that sampling leaves behind, by path."""
    return {path: hashlib.sha256(data).hexdigest() for path, data in stored(output, SAMPLED).items()}


def faults(output: Path, reference: dict[str, str], before: dict[str, int]) -> list[str]:
    """What is wrong after a run was disturbed and resumed: other bytes than the undisturbed run's, samples lost
    or doubled, disagreements, and work that was complete `before` and was done again."""
    found = digests(output)
    wrong = [f"other bytes: {path}" for path in sorted(found) if reference.get(path) not in (None, found[path])]
    wrong += [f"lost: {path}" for path in sorted(reference.keys() - found.keys())]
    wrong += [f"surplus: {path}" for path in sorted(found.keys() - reference.keys())]
    wrong += [str(item) for item in storage.audit.verify(storage.open(str(output)))]
    return wrong + [f"redone: {path}" for path, when in before.items() if (output / path).stat().st_mtime_ns != when]


class Saboteur(threading.Thread):
    """Waits for a seeded moment of a run, notes what is complete, and strikes."""

    def __init__(self, output: Path, seed: int, aim: Callable[[random.Random], Strike | None]) -> None:
        super().__init__(daemon=True)
        self.output, self.aim = output, aim
        self.rng = random.Random(seed)
        self.goal, self.delay = self.rng.randint(0, SHARDS - 2), self.rng.uniform(0, DELAY_S)
        self.struck = False
        self.before: dict[str, int] = {}

    def run(self) -> None:
        until = time.monotonic() + 900
        while len(records(self.output)) < self.goal and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(self.delay)
        while not self.struck and len(records(self.output)) < SHARDS and time.monotonic() < until:
            strike = self.aim(self.rng)
            if strike:
                self.before, self.struck = complete(self.output), True
                strike()
            time.sleep(0.02)


def workers_below(pid: int) -> list[int]:
    """Processes of Ray's actors below a raylet, which also starts idle workers and agents of its own."""
    found = []
    for child in sorted(fakes.descendants(pid)):
        with suppress(OSError):
            title = Path(f"/proc/{child}/cmdline").read_bytes()
            if title.startswith(b"ray::") and not any(word in title for word in (b"IDLE", b"Agent")):
                found.append(child)
    return found


def at_a_worker(cluster: Any, rng: random.Random) -> Strike | None:
    """SIGKILL for one actor's process; None where there is none yet."""
    found = [pid for node in cluster.worker_nodes for pid in workers_below(_raylet(node))]
    return partial(_kill, rng.choice(sorted(found))) if found else None


def at_a_raylet(cluster: Any, rng: random.Random) -> Strike | None:
    """SIGKILL for a working node's raylet and all it started, as when the machine goes."""
    nodes = sorted(cluster.worker_nodes, key=lambda node: node.unique_id)
    busy = [node for node in nodes if workers_below(_raylet(node))]
    return partial(_kill_node, cluster, rng.choice(busy)) if busy else None


def _kill_node(cluster: Any, node: Any) -> None:
    _kill(_raylet(node), *fakes.descendants(_raylet(node)))
    cluster.remove_node(node, allow_graceful=False)


def _kill(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


def on_a_cluster(job: dict[str, Any]) -> None:
    """A head that holds the driver, two nodes of one CPU each; one disturbed run for each seed."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    aim = {"worker": at_a_worker, "raylet": at_a_raylet}[job["kind"]]
    try:
        for seed in job["seeds"]:
            while len(cluster.worker_nodes) < 2:
                cluster.add_node(num_cpus=1)
            output = Path(job["folder"]) / str(seed)
            words = [*job["words"], f"output={output}", f"ray.address={cluster.address}", "ray.sampling_actors=2"]
            saboteur = Saboteur(output, seed, partial(aim, cluster))
            saboteur.start()
            failed = sample(words)
            saboteur.join()
            failed_again = sample(words)
            came = {"failed": failed, "failed_again": failed_again, "struck": saboteur.struck}
            print(json.dumps({"seed": seed, "before": saboteur.before, **came}), flush=True)
    finally:
        cluster.shutdown()


def with_actors(job: dict[str, Any]) -> None:
    """The same run with each number of actors, in one Ray of four CPUs."""
    from cluster import TaskStarted
    from cluster.actors import OnRay
    from cluster.session import connect

    with connect("local", num_cpus=4):
        for count in job["counts"]:
            output = Path(job["folder"]) / str(count)
            config = load("scenes", [*job["words"], f"output={output}", f"ray.sampling_actors={count}"])
            run = pipeline.prepare(config)
            events: list[Any] = []
            outcome = sample_stage.work(run, OnRay(), [events.append], sample_stage.missing(run))
            used = {event.worker for event in events if isinstance(event, TaskStarted)}
            print(json.dumps({"count": count, "failed": outcome.failed, "used": len(used)}), flush=True)


def main() -> None:
    """Does the job given as JSON in the first argument."""
    job = json.loads(sys.argv[1])
    if job["kind"] == "run":
        print(json.dumps({"failed": sample(job["words"])}), flush=True)
    elif job["kind"] == "actors":
        with_actors(job)
    else:
        on_a_cluster(job)
