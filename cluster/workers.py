"""What workers are and what happens inside them, the same in every executor: build once, attempt, report."""

from __future__ import annotations

import importlib.util
import pickle
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.events import Result
from storage.errors import LeaseHeld

OURS = ("storage", "probing", "interventions", "cluster", "sweeps")
"""The top-level packages of this project, whose names are common ones."""

RESULT_BYTES = 1_000_000
"""Largest pickled result of a task. Results describe the work; the data go to the store."""

Worker = Callable[[Any], Result]


@dataclass(frozen=True)
class WorkerSpec:
    """How to build the workers of one stage and which resources each needs."""

    factory: Callable[[], Worker]
    """Picklable; called once in the worker's own process; returns a callable: task -> small dict.
    A task's data must be on disk when that call returns, because workers are killed, not closed.
    After a crash the task runs again in a new process, so writes must be idempotent."""
    num_cpus: float = 1
    """CPUs reserved for each worker."""
    num_gpus: float = 0
    """GPUs, or a fraction of one, reserved for each worker. The factory chooses the device; Ray does
    not divide its memory."""
    threads: int = 1
    """Threads of a worker's numerical libraries, pinned so that results do not depend on the machine."""
    count: int | None = 1
    """Number of workers; None: as many as fit on the cluster at the start."""
    name: str = "worker"
    """The stage; its workers are called NAME.0, NAME.1 and so on."""

    def __post_init__(self) -> None:
        where = f"workers of {self.name}"
        if self.count is not None and self.count < 1:
            raise ValueError(f"{where}: count {self.count} is below 1; give 1 or more")
        if self.threads < 1:
            raise ValueError(f"{where}: threads {self.threads} is below 1; give 1 or more")
        if self.num_cpus < 0 or self.num_gpus < 0:
            raise ValueError(f"{where}: num_cpus {self.num_cpus}, num_gpus {self.num_gpus}; neither may be < 0")
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            raise ValueError(f"{where}: num_gpus {self.num_gpus}; give a fraction of one GPU or a whole number")


@dataclass(frozen=True)
class Report:
    """Result of one attempt at a task. Errors are passed as text, because not every exception can be pickled."""

    seconds: float
    result: Result | None = None
    error: str | None = None
    trace: str = ""


def attempt(worker: Worker, task: Any) -> Report:
    """Call the worker on one task; anything it raises becomes part of the report.

    Raises LeaseHeld, because no retry helps if another run took the store over from this process.
    """
    start = time.perf_counter()
    try:
        result = worker(task)
        assert isinstance(result, dict), f"a worker returned {type(result).__name__}, not a dict"
        size = len(pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL))
        assert size <= RESULT_BYTES, f"a worker returned {size} bytes; data belong in the store"
    except LeaseHeld:
        raise
    except (Exception, SystemExit) as error:
        seconds = time.perf_counter() - start
        return Report(seconds, error=one_line(error), trace=traceback.format_exc())
    return Report(time.perf_counter() - start, result)


def one_line(error: BaseException) -> str:
    """Type and message of an exception on one line of at most 500 characters."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return (f"{name}: {text}" if text else name)[:500]


def assert_ours() -> None:
    """Assert that no foreign package is imported under one of our names; `sweeps` is also a package of W&B's.

    Our packages lie side by side. The packages uploaded with a job each have a folder of their own
    inside one folder of Ray's.
    """
    home = Path(__file__).resolve().parent.parent
    for name in OURS:
        spec = importlib.util.find_spec(name)
        if spec is None:
            continue
        locations = list(spec.submodule_search_locations or [])
        assert locations, f"{name} is a single module ({spec.origin}), ours is a package"
        folder = Path(locations[0]).resolve().parent
        uploaded = home.name.startswith("_ray_pkg_") and folder.parent == home.parent
        assert folder == home or uploaded, (
            f"the package {name} comes from {folder}, ours from {home}; use a virtual environment of its own"
        )
