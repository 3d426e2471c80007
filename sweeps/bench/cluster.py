"""The same small sweep on this machine's cores, run locally and submitted to a cluster over HTTP."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import submit
from sweeps.bench.paired import Row, row, seconds

SWEEP = (
    "scenes", "prompts.count=48", "sampling.shard=8", "curation.train=20", "curation.val=8", "curation.test=20",
    "curation.min_foreground=0", "curation.min_contrast=0", "interventions.images=2", "interventions.moves=1",
    "interventions.iterations=8", "tracking.mode=disabled", "experiments.names=[]",
)  # fmt: skip
START_S = 180.0
"""seconds that the cluster may take to start"""


def bench_cluster(pairs: int = 2) -> list[Row]:
    """Row `cluster_over_local`: seconds from the command to the end of the last stage, the two in turn.

    The cluster is up before the clock starts; packing, uploading and starting the job count.
    """
    timed = []
    with tempfile.TemporaryDirectory() as folder, head(os.cpu_count() or 1) as address:
        output = Path(folder) / "run"
        command = [sys.executable, "-m", "sweeps", "run", *SWEEP, f"output={output}", "ray.address=local"]
        for _ in range(pairs):
            here = seconds(lambda: subprocess.run(command, check=True, capture_output=True))
            _remove_finished(output)
            there = seconds(lambda: submitted(address, output))
            _remove_finished(output)
            timed.append((there, here))
    return [row("cluster_over_local", "submitted to a cluster", "run here", timed)]


def _remove_finished(output: Path) -> None:
    assert (output / "report" / "index.html").is_file(), f"{output}: the sweep did not finish"
    shutil.rmtree(output)


def submitted(address: str, output: Path) -> None:
    """Run the command of a user with a cluster."""
    job = submit.submit(address, [*SWEEP, f"output={output}"], output=str(output))
    ended = submit.follow(address, job.id, lambda text: None)
    assert ended.status == "SUCCEEDED", submit.logs(address, job.id)


@contextmanager
def head(cpus: int) -> Iterator[str]:
    """Run a one-node cluster on this machine; yields the address of its dashboard."""
    port, dashboard = _free_port(), _free_port()
    folder = Path(sys.executable).parent
    command = [str(folder / "ray"), "start", "--head", "--block", "--disable-usage-stats", f"--port={port}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--num-cpus={cpus}"]
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled"}
    environment.pop("PYTHONPATH", None)  # the code travels with the job
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{dashboard}"
    end = time.monotonic() + START_S
    try:
        while not _answers(address):
            if process.poll() is not None or time.monotonic() > end:
                raise ValueError(f"{address}: the cluster did not start within {START_S:g} s")
            time.sleep(1)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _answers(address: str) -> bool:
    try:
        submit.jobs(address)
    except ValueError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
