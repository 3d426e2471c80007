"""Tasks and workers whose failures are scripted per attempt, and that leave a file for each run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import storage
from storage.keys import LEASE


@dataclass(frozen=True)
class Scripted:
    """A task with one scripted action per attempt; attempts after the script succeed."""

    key: str
    script: tuple[str, ...] = ()

    def step(self, run: int) -> str:
        return self.script[run] if run < len(self.script) else "ok"


def mark(folder: Path, kind: str, name: str) -> int:
    """Create a marker file; returns how many of that kind and name existed before."""
    before = len(list(folder.glob(f"{kind}.{name}.*")))
    (folder / f"{kind}.{name}.{before}.{os.getpid()}").touch()
    return before


def marks(folder: Path, kind: str) -> Counter[str]:
    """The number of marker files of a kind, by name."""
    return Counter(path.name.split(".")[1] for path in folder.glob(f"{kind}.*"))


def processes(folder: Path) -> set[int]:
    """Ids of the processes that built a worker."""
    return {int(path.name.split(".")[-1]) for path in folder.glob("built.*")}


def act(what: str, task: Scripted) -> dict[str, Any]:
    if what == "raise":
        raise RuntimeError(f"script of {task.key} says so\non two lines")
    if what == "exit":
        sys.exit("leaving")
    if what == "die":
        os._exit(3)
    if what == "large":
        return {"rubbish": b"x" * 1_000_001}
    if what == "text":
        return "no dict"  # type: ignore[return-value]
    if what == "interrupt":
        raise KeyboardInterrupt
    if what == "sleep":
        time.sleep(60)
    return {"key": task.key, "process": os.getpid()}


def work(folder: Path, task: Scripted) -> dict[str, Any]:
    return act(task.step(mark(folder, "run", task.key)), task)


def build(folder: Path, script: tuple[str, ...] = ()) -> Callable[[Scripted], dict[str, Any]]:
    """The worker factory; each call takes the next action of its script: "value", "raise", "die" or "ok"."""
    calls = mark(folder, "factory", "x")
    what = script[calls] if calls < len(script) else "ok"
    if what == "value":
        raise ValueError("weights: no such file")
    act(what, Scripted("factory"))
    mark(folder, "built", "x")
    return partial(work, folder)


def noting(url: str) -> Callable[[Scripted], dict[str, Any]]:
    """The factory of a worker that writes a note to a store per task; "rob" first puts a foreign lease there."""
    store = storage.open(url)

    def note(task: Scripted) -> dict[str, Any]:
        if task.step(0) == "rob":
            store.files.put(LEASE, [b"{}"])
        store.put(f"notes/{task.key}", b"x")
        return {}

    return note


def threads_seen(task: Any) -> dict[str, Any]:
    """Thread settings, and the bytes of a product that depends on how the sum is split among threads."""
    import torch

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(96, 4001, generator=generator) for _ in range(2))
    product = (a @ b.T).sum() + (a * b).sum()
    return {
        "torch": torch.get_num_threads(),
        "variable": os.environ["OMP_NUM_THREADS"],
        "bytes": product.numpy().tobytes(),
    }


def build_threads() -> Callable[[Any], dict[str, Any]]:
    return threads_seen


def descendants(pid: int) -> set[int]:
    """Ids of all descendants of a process."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found, todo = set(), [pid]
    while todo:
        new = children.get(todo.pop(), [])
        found.update(new)
        todo.extend(new)
    return found


def holders(pid: int) -> set[int]:
    """Descendants of a driver that do its work or hold its state.

    Ray's two agents of a node are left out: they hold none of our state, and after a driver's SIGKILL they try to
    reach its control service for a minute before they end.
    """
    found = set()
    for below in descendants(pid):
        with suppress(OSError):
            if b"Agent" not in Path(f"/proc/{below}/cmdline").read_bytes().partition(b"\0")[0]:
                found.add(below)
    return found


def apart(code: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Arguments of `subprocess` for code in a new interpreter with our import path and no RAY_ variables."""
    here = Path(__file__).resolve().parents[1]
    paths = os.pathsep.join([str(here.parent), str(here)])
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {
        "args": [sys.executable, "-c", code, *arguments],
        "env": clean | {"PYTHONPATH": paths} | environment,
        "text": True,
    }


def run_apart(code: str, *arguments: str, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter and wait for it."""
    how = apart(code, *arguments, **environment)
    return subprocess.run(**how, capture_output=True, timeout=timeout, check=False)
