"""What happens inside a worker, the same in every executor: build once, attempt, report."""

from __future__ import annotations

import importlib.util
import pickle
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.errors import LeaseHeld

OURS = ("storage", "probing", "interventions", "cluster", "sweeps")
"""The top-level packages of this project; the names are common ones."""

RESULT_BYTES = 1_000_000
"""Largest pickled result of a task: facts about the work, never the work itself."""

Worker = Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class WorkerSpec:
    """How to make the workers of one stage and what each of them needs."""

    factory: Callable[[], Worker]
    """Picklable; called once in the worker's own process, returns a callable: task -> small dict.
    A task's work must be complete, on disk, when that call returns: workers are killed, not
    closed. Runs again in a new process after a crash, so writes must be idempotent."""
    num_cpus: float = 1
    """CPUs reserved for each worker."""
    num_gpus: float = 0
    """GPUs, or a fraction of one, reserved for each worker. Choosing the device is the factory's
    business; memory is not divided by Ray."""
    threads: int = 1
    """Threads of one worker's numerics, pinned so that results do not depend on the machine."""
    count: int | None = 1
    """Number of workers; None: as many as the cluster's resources hold at the start."""
    name: str = "worker"
    """The stage; workers are called NAME.0, NAME.1 and so on."""

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
    """What one attempt at a task came to. Errors travel as text: not every exception pickles."""

    seconds: float
    result: dict[str, Any] | None = None
    error: str | None = None
    trace: str = ""


def attempt(worker: Worker, task: Any) -> Report:
    """Call the worker on one task; anything it raises becomes part of the report.

    Raises LeaseHeld, because no retry helps if another run took the store over from this process.
    """
    start = time.perf_counter()
    try:
        result = worker(task)
        check_result(result)
    except LeaseHeld:
        raise
    except (Exception, SystemExit) as error:
        seconds = time.perf_counter() - start
        return Report(seconds, error=one_line(error), trace=traceback.format_exc())
    return Report(time.perf_counter() - start, result)


def check_result(result: Any) -> None:
    """Assert that a result is a dict of at most RESULT_BYTES when pickled."""
    assert isinstance(result, dict), f"a worker returned {type(result).__name__}, not a dict"
    size = len(pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL))
    assert size <= RESULT_BYTES, f"a worker returned {size} bytes; data belong in the store"


def one_line(error: BaseException) -> str:
    """Type and message of an exception on one line of at most 500 characters."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return (f"{name}: {text}" if text else name)[:500]


def assert_ours() -> None:
    """Assert that no foreign package answers to one of our names.

    `sweeps` is also a package of W&B's. Ours lie beside each other; a job's uploaded packages each
    in a folder of its own, all in one folder of Ray's.
    """
    home = Path(__file__).resolve().parent.parent
    for name in OURS:
        spec = importlib.util.find_spec(name)
        if spec is None:
            continue
        places = list(spec.submodule_search_locations or [])
        assert places, f"{name} is a single module ({spec.origin}), ours is a package"
        found = Path(places[0]).resolve().parent
        uploaded = home.name.startswith("_ray_pkg_") and found.parent == home.parent
        assert found == home or uploaded, (
            f"the package {name} comes from {found}, ours from {home}; install us apart from it"
        )
