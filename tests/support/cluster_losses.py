"""Losses of nodes and of the driver during a submitted sweep, and what is compared of its output afterwards."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import storage
from cluster import submit
from support import cluster_nodes as nodes

PATIENCE_S = 900


def assert_no_probe_twice(output: Path) -> int:
    """Fail unless every probe has exactly one row, of any attempt, that is done; returns the number of probes."""
    rows = storage.open(str(output)).table("probes", current=False).to_pylist()
    assert {row["status"] for row in rows} == {"done"}
    keys = {tuple(row[key] for key in ("experiment", "variant", "site", "step", "task", "control")) for row in rows}
    assert len(keys) == len(rows), "a finished probe was fitted again"
    return len(keys)


def records(output: Path) -> dict[Path, int]:
    """Completion records, tables and probes of an output, with the time each was written (ns)."""
    kept = [*output.glob("shards/*/*/*.json"), *output.glob("results/*/*.parquet"), *output.rglob("probes/**/*")]
    return {path: path.stat().st_mtime_ns for path in kept if path.is_file()}


class NodeLosses:
    """Kills the node that works on a stage, once there is one, and starts another."""

    def __init__(self, machines: nodes.Machines, job: submit.Job, output: Path) -> None:
        self.machines, self.job, self.output = machines, job, output
        self.number = 0

    def until(self, true: Callable[[], Any], what: str) -> Any:
        """Wait for something to become true while the job runs, and return what it was."""

        def check() -> Any:
            job = submit.status(self.machines.address, self.job.id)
            result = true()  # after the status: a job that had ended by then writes no more
            log = submit.logs(self.machines.address, self.job.id) if job.ended and not result else ""
            assert result or not job.ended, f"{what}: not before the job {job.status}\n{log}"
            return result

        return nodes.until(check, PATIENCE_S, what)

    def wait(self, pattern: str, count: int = 1) -> None:
        """Wait until that many files match the pattern."""
        self.until(lambda: len(list(self.output.glob(pattern))) >= count, f"{count} of {pattern}")

    def kill_node(self, actor: str) -> dict[Path, int]:
        """Kill the node that holds such an actor; returns the records that were there by then."""
        name = self.until(lambda: self.machines.holding(actor), f"a working actor {actor}")
        assert name.startswith("gpu"), f"{actor} works on {name}, which has no GPU"
        kept = records(self.output)
        self.machines.kill(name)
        return kept

    def replace_node(self) -> None:
        """Start another node with a GPU."""
        self.number += 1
        self.machines.add(f"gpu-new{self.number}", cpus=1, gpus=1)


def kill_driver(machines: nodes.Machines, job: submit.Job) -> None:
    """Send SIGKILL to the process of a job's driver and wait until the job has failed."""
    head = machines.nodes["head"]
    commands = {pid: nodes.command(pid) for pid in head.pids()}
    drivers = [pid for pid, line in commands.items() if "sweeps\0run" in line and "sh\0-c" not in line]
    assert drivers, "no driver runs on the head"
    for pid in drivers:
        os.kill(pid, signal.SIGKILL)
    assert ended(machines, job).status == "FAILED"


def ended(machines: nodes.Machines, job: submit.Job) -> submit.Job:
    """The job once it has ended."""
    nodes.until(lambda: submit.status(machines.address, job.id).ended, PATIENCE_S, "the job's end")
    return submit.status(machines.address, job.id)
