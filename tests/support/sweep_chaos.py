"""What the tests that kill a sampling run execute in processes of their own: runs, killers, checks of an output."""

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
from typing import TYPE_CHECKING, Any

import storage
from storage import Record
from support import cluster_fakes as fakes
from support.tiny_runs import SAMPLED, stored
from sweeps import pipeline
from sweeps.config.load import load
from sweeps.runtime import experiments
from sweeps.stages import sample as sample_stage

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

SCRIPT = "from support import sweep_chaos; sweep_chaos.main()"
SHARDS = 6
"""shards of both variants in a run with the settings of `tiny_runs`"""
DELAY_S = 0.5
Kill = Callable[[], None]
"""kills its target when called"""


def sample(words: list[str]) -> dict[str, str]:
    """Run the sampling stage as the command line does; returns the failed shards and their reasons."""
    return pipeline.execute(load("scenes", words), ("sample",)).failed


def records(output: Path) -> list[Path]:
    """Completion records of sampling."""
    return [p for p in output.glob("shards/sample/*/*.json") if not p.name.endswith(".failed.json")]


def complete(output: Path) -> dict[str, int]:
    """Records and chunks of the complete shards, with the time each was written (ns)."""
    if not (output / "layout.json").exists():
        return {}
    store = storage.open(str(output))
    found: dict[str, int] = {}
    for variant in store.layout.variants:
        done = store.completed("sample", variant)
        for record in (record for _, record in store.records.read(f"shards/sample/{variant}/")):
            for path in [record.path, *record.chunks] if isinstance(record, Record) and record.shard in done else ():
                found[path] = (output / path).stat().st_mtime_ns
    return found


def digests(output: Path) -> dict[str, str]:
    """Hash of every file that sampling writes, by path."""
    return {path: hashlib.sha256(data).hexdigest() for path, data in stored(output, SAMPLED).items()}


def problems(output: Path, reference: dict[str, str], before: dict[str, int]) -> list[str]:
    """What is wrong with an output after a run was killed and resumed.

    Lists bytes that differ from the undisturbed run's `reference`, files lost or added, disagreements that `verify`
    finds, and files that were complete `before` and were written again.
    """
    found = digests(output)
    wrong = [f"other bytes: {path}" for path in sorted(found) if reference.get(path) not in (None, found[path])]
    wrong += [f"lost: {path}" for path in sorted(reference.keys() - found.keys())]
    wrong += [f"surplus: {path}" for path in sorted(found.keys() - reference.keys())]
    wrong += [str(item) for item in storage.audit.verify(storage.open(str(output)))]
    return wrong + [f"redone: {path}" for path, when in before.items() if (output / path).stat().st_mtime_ns != when]


class Killer(threading.Thread):
    """Waits for a seeded moment of a run, notes what is complete, and kills a target."""

    def __init__(self, output: Path, seed: int, choose: Callable[[random.Random], Kill | None]) -> None:
        super().__init__(daemon=True)
        self.output, self.choose = output, choose
        self.rng = random.Random(seed)
        self.shards, self.delay = self.rng.randint(0, SHARDS - 2), self.rng.uniform(0, DELAY_S)
        self.killed = False
        self.before: dict[str, int] = {}

    def run(self) -> None:
        until = time.monotonic() + 900
        while len(records(self.output)) < self.shards and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(self.delay)
        while not self.killed and len(records(self.output)) < SHARDS and time.monotonic() < until:
            kill = self.choose(self.rng)
            if kill:
                self.before, self.killed = complete(self.output), True
                kill()
            time.sleep(0.02)


def workers_below(pid: int) -> list[int]:
    """Processes of Ray's actors below a raylet, without idle workers and agents."""
    found = []
    for child in sorted(fakes.descendants(pid)):
        with suppress(OSError):
            title = Path(f"/proc/{child}/cmdline").read_bytes()
            if title.startswith(b"ray::") and not any(word in title for word in (b"IDLE", b"Agent")):
                found.append(child)
    return found


def choose_worker(cluster: Cluster, rng: random.Random) -> Kill | None:
    """SIGKILL for one actor's process; None while there is none."""
    found = [pid for node in cluster.worker_nodes for pid in workers_below(_raylet(node))]
    return partial(_kill, rng.choice(sorted(found))) if found else None


def choose_raylet(cluster: Cluster, rng: random.Random) -> Kill | None:
    """SIGKILL for a working node's raylet and all its processes, as if the machine were gone; None while all idle."""
    nodes = sorted(cluster.worker_nodes, key=lambda node: node.unique_id)
    busy = [node for node in nodes if workers_below(_raylet(node))]
    return partial(_kill_node, cluster, rng.choice(busy)) if busy else None


def _kill_node(cluster: Cluster, node: Any) -> None:
    _kill(_raylet(node), *fakes.descendants(_raylet(node)))
    cluster.remove_node(node, allow_graceful=False)


def _kill(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


def on_a_cluster(job: dict[str, Any]) -> None:
    """One disturbed run for each seed on a head that holds the driver and two nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    choose = {"worker": choose_worker, "raylet": choose_raylet}[job["kind"]]
    try:
        for seed in job["seeds"]:
            while len(cluster.worker_nodes) < 2:
                cluster.add_node(num_cpus=1)
            output = Path(job["folder"]) / str(seed)
            words = [*job["words"], f"output={output}", f"ray.address={cluster.address}", "ray.sampling_actors=2"]
            killer = Killer(output, seed, partial(choose, cluster))
            killer.start()
            failed = sample(words)
            killer.join()
            result = {"failed": failed, "failed_again": sample(words), "killed": killer.killed}
            print(json.dumps({"seed": seed, "before": killer.before, **result}), flush=True)
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
            experiments.write_hashes(run)  # as every run does before its stages
            events: list[Any] = []
            outcome = sample_stage.execute(run, OnRay(), [events.append], sample_stage.missing(run))
            used = {event.worker for event in events if isinstance(event, TaskStarted)}
            print(json.dumps({"count": count, "failed": outcome.failed, "used": len(used)}), flush=True)


def main() -> None:
    """Execute the job given as JSON in the first argument."""
    job = json.loads(sys.argv[1])
    if job["kind"] == "run":
        print(json.dumps({"failed": sample(job["words"])}), flush=True)
    elif job["kind"] == "actors":
        with_actors(job)
    else:
        on_a_cluster(job)
