"""The same small sweep on this machine's cores, run here and submitted to a cluster over HTTP."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweeps.bench.paired import row

SWEEP = (
    "scenes", "prompts.count=48", "sampling.shard=8", "curation.train=20", "curation.val=8", "curation.test=20",
    "curation.min_foreground=0", "curation.min_contrast=0", "interventions.images=2", "interventions.moves=1",
    "interventions.iterations=8", "tracking.mode=disabled", "experiments.names=[]",
)  # fmt: skip
TURNS = 2
START_S = 180.0


def measure(sweep: Sequence[str] = SWEEP, turns: int = TURNS) -> list[dict[str, Any]]:
    """Rows of the bench: wall seconds from the command to the last stage's end, the two in turn.

    The cluster is up before the clock runs; packing, uploading and starting the job count.
    """
    pairs = []
    with tempfile.TemporaryDirectory() as folder, head(os.cpu_count() or 1) as address:
        for turn in range(turns):
            here = _timed(lambda out: locally(sweep, out), Path(folder) / f"local{turn}")
            there = _timed(lambda out: submitted(address, sweep, out), Path(folder) / f"cluster{turn}")
            pairs.append((there, here))
    return [row("cluster_over_local", "submitted to a cluster", "run here", pairs)]


def _timed(action: Any, output: Path) -> float:
    started = time.perf_counter()
    action(output)
    seconds = time.perf_counter() - started
    assert (output / "report" / "index.html").is_file(), f"{output}: the sweep did not come to its end"
    shutil.rmtree(output)
    return seconds


def locally(sweep: Sequence[str], output: Path) -> None:
    """The command of a user without a cluster."""
    command = [sys.executable, "-m", "sweeps", "run", *sweep, f"output={output}", "ray.address=local"]
    subprocess.run(command, check=True, capture_output=True)


def submitted(address: str, sweep: Sequence[str], output: Path) -> None:
    """The command of a user with one."""
    from cluster import submit

    job = submit.submit(address, [*sweep, f"output={output}"], output=str(output))
    ended = submit.follow(address, job.id, lambda text: None)
    assert ended.status == "SUCCEEDED", submit.logs(address, job.id)


@contextmanager
def head(cpus: int) -> Iterator[str]:
    """A cluster of one node of this machine's cores; the address of its dashboard."""
    port, dashboard = _free_port(), _free_port()
    folder = Path(sys.executable).parent
    command = [str(folder / "ray"), "start", "--head", "--block", "--disable-usage-stats", f"--port={port}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--num-cpus={cpus}"]
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled"}
    environment.pop("PYTHONPATH", None)  # the code travels with the job
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield _answering(f"http://127.0.0.1:{dashboard}", process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _answering(address: str, process: subprocess.Popen[bytes]) -> str:
    from cluster import submit

    end = time.monotonic() + START_S
    while True:
        try:
            submit.jobs(address)
            return address
        except ValueError:
            if process.poll() is not None or time.monotonic() > end:
                raise
            time.sleep(1)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
