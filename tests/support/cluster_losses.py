"""Losses of a submitted sweep, node by node, and what is compared of its output; used by several test files."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import storage
from cluster import submit
from support import cluster_nodes as nodes

PATIENCE_S = 900


def scores(output: Path) -> dict[tuple, tuple]:
    """All probe rows by key, every attempt; without what may differ between runs."""
    rows = storage.open(str(output)).table("probes", current=False).to_pylist()
    assert {row["status"] for row in rows} == {"done"}
    keys, values = ("variant", "site", "step", "task"), ("train_loss", "test_loss", "dice", "rmse")
    # A task has no score of the other's: NaN, as what is compared within bounds must be numbers.
    scored = [tuple(math.nan if row[value] is None else row[value] for value in values) for row in rows]
    found = {tuple(row[key] for key in keys): score for row, score in zip(rows, scored, strict=True)}
    assert len(found) == len(rows), "a finished probe was fitted again"
    return found


def records(output: Path) -> dict[Path, int]:
    """Completion records, rows and probes that are there, and when each was written."""
    kept = [*output.glob("shards/*/*/*.json"), *output.glob("results/*/*.parquet"), *output.rglob("probes/**/*")]
    return {path: path.stat().st_mtime_ns for path in kept if path.is_file()}


class Sabotage:
    """Loses whatever works on a stage, once it is at work, and replaces it."""

    def __init__(self, machines: nodes.Machines, job: submit.Job, output: Path) -> None:
        self.machines, self.job, self.output = machines, job, output
        self.number = 0

    def until(self, true: Callable[[], Any], what: str) -> Any:
        """Wait for something to come true while the job runs, and return what it was."""

        def looked() -> Any:
            job = submit.status(self.machines.address, self.job.id)
            found = true()  # after the status: a job that had ended by then brings no more
            log = submit.logs(self.machines.address, self.job.id) if job.ended and not found else ""
            assert found or not job.ended, f"{what}: not before the job {job.status}\n{log}"
            return found

        return nodes.until(looked, PATIENCE_S, what)

    def wait(self, pattern: str, count: int = 1) -> None:
        """Until that many files are there."""
        self.until(lambda: len(list(self.output.glob(pattern))) >= count, f"{count} of {pattern}")

    def lose_node(self, actor: str) -> dict[Path, int]:
        """Kill the node that holds such an actor; what was finished by then."""
        name = self.until(lambda: self.machines.holding(actor), f"an actor {actor} at work")
        assert name.startswith("gpu"), f"{actor} works on {name}, which has no GPU"
        kept = records(self.output)
        self.machines.kill(name)
        return kept

    def replace_node(self) -> None:
        """Start another node with a GPU."""
        self.number += 1
        self.machines.add(f"gpu-new{self.number}", cpus=1, gpus=1)


def kill_driver(machines: nodes.Machines, job: submit.Job) -> None:
    """SIGKILL to the process of a job's driver."""
    head = machines.nodes["head"]
    drivers = [p for p in head.pids() if "sweeps\0run" in nodes._command(p) and "sh\0-c" not in nodes._command(p)]
    assert drivers, "the driver runs on the head"
    for pid in drivers:
        os.kill(pid, signal.SIGKILL)
    nodes.until(lambda: submit.status(machines.address, job.id).ended, PATIENCE_S, "the job has ended")
    assert submit.status(machines.address, job.id).status == "FAILED"


def ended(machines: nodes.Machines, job: submit.Job) -> submit.Job:
    nodes.until(lambda: submit.status(machines.address, job.id).ended, PATIENCE_S, "the job's end")
    return submit.status(machines.address, job.id)


def assert_same_scores(output: Path, other: Path) -> None:
    """Equal rows of probes, but for the last bits."""
    ours, theirs = scores(output), scores(other)
    assert ours.keys() == theirs.keys()
    for key, row in ours.items():
        assert row == pytest.approx(theirs[key], rel=1e-6, abs=1e-6, nan_ok=True), key
