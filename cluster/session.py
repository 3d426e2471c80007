"""Starts a private Ray on this machine or joins a cluster, and undoes what it did."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from cluster.observers import logs

OBJECT_STORE_BYTES = 200 * 2**20
"""Shared memory of an embedded Ray: results are small, data go to the store."""

ANSWER_S = 5.0
"""How long the address of a cluster may take to accept a connection."""

EMBEDDED_ENVIRONMENT = {
    # Ray turns 127.0.0.1 into the machine's outward address unless told that it is no cluster.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A driver started by `uv run` would otherwise ship its project to the workers.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}

logger = logging.getLogger(__name__)
_started_here = threading.Event()


@dataclass(frozen=True)
class Session:
    """A live connection to Ray."""

    address: str
    """HOST:PORT of the cluster's control service."""
    embedded: bool
    """True where this process started it."""
    nodes: int
    cpus: float
    gpus: float
    versions: dict[str, str]
    """Ray and Python, of the cluster as of this process."""


@contextmanager
def connect(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    object_store_memory: int = OBJECT_STORE_BYTES,
    log_to_driver: bool = False,
) -> Iterator[Session]:
    """Be connected to Ray inside the block.

    Args:
        address: None or "local": a Ray of our own, on 127.0.0.1 alone, without dashboard, gone
            after the block. "auto" or HOST:PORT: join that cluster, and only leave it after the
            block. None joins where RAY_ADDRESS is set, as it is inside a submitted job.
        num_cpus, num_gpus: of the Ray of our own; None: what the machine has.
        object_store_memory: bytes of shared memory of the Ray of our own.
        log_to_driver: whether what workers print appears here.

    A connection that exists already is used as it is and left open.

    Raises:
        ValueError: no cluster at the address, or one of another Ray or Python version.
    """
    import ray

    from cluster.submit import check_arrival

    check_arrival()
    if ray.is_initialized():
        yield _session(embedded=False)
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        started = _embedded(num_cpus, num_gpus, object_store_memory, log_to_driver)
    else:
        started = _joined(address, log_to_driver)
    with started as session:
        yield session


def is_embedded() -> bool:
    """Whether the Ray that is connected is one that this process started, which never grows."""
    return _started_here.is_set()


@contextmanager
def _embedded(
    num_cpus: int | None, num_gpus: int | None, object_store_memory: int, log_to_driver: bool
) -> Iterator[Session]:
    import ray

    environment = EMBEDDED_ENVIRONMENT | {"RAY_AUTH_MODE": _auth_mode()}
    settings = {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "object_store_memory": object_store_memory,
        "log_to_driver": log_to_driver,
    }
    with _environment(environment), _loopback(), _raylet_messages(log_to_driver), _sigterm_kept():
        try:
            with _lean(log_to_driver):
                _start(settings)
            _started_here.set()
            yield _session(embedded=True)
        finally:
            _started_here.clear()
            ray.shutdown()


def _start(settings: dict[str, Any]) -> None:
    import ray

    try:
        ray.init(
            "local",
            include_dashboard=False,
            logging_level=logging.ERROR,
            job_config=_same_imports(),
            _node_ip_address="127.0.0.1",
            **settings,
        )
    except Exception as error:
        said = " ".join(str(error).split())
        raise RuntimeError(f"Ray did not start on this machine ({said}); ray.address=none works without it") from error


@contextmanager
def _joined(address: str, log_to_driver: bool) -> Iterator[Session]:
    import ray

    if "://" in address:
        raise ValueError(
            f"ray.address: {address} cannot be joined; give HOST:PORT or auto on a machine of the "
            "cluster, or submit the run as a job from outside"
        )
    host, _, port = address.rpartition(":")
    if port.isdigit() and not _answers(host, int(port)):
        raise ValueError(_refusal(address, "connection refused"))
    local = _loopback() if host == "localhost" or host.startswith("127.") else nullcontext()
    with local, _raylet_messages(log_to_driver), _sigterm_kept():
        try:
            ray.init(address, logging_level=logging.ERROR, log_to_driver=log_to_driver, logging_config=logs.config())
        except (ConnectionError, RuntimeError, ValueError) as error:
            ray.shutdown()
            raise ValueError(_refusal(address, str(error))) from error
        try:
            yield _session(embedded=False)
        finally:
            ray.shutdown()


def _answers(host: str, port: int) -> bool:
    # Ray itself would try for minutes.
    try:
        with socket.create_connection((host.strip("[]"), port), timeout=ANSWER_S):
            return True
    except OSError:
        return False


def _refusal(address: str, said: str) -> str:
    """One line for the user from what Ray says when it will not connect."""
    pairs = re.findall(r"Ray: (\S+)\s+Python: (\S+)", said)
    if "Version mismatch" in said and len(pairs) == 2:
        (ray_there, python_there), (ray_here, python_here) = pairs
        return (
            f"the cluster at {address} runs Ray {ray_there}, Python {python_there}, this process "
            f"Ray {ray_here}, Python {python_here}: use the same on both"
        )
    first = said.strip().splitlines()[0] if said.strip() else "no answer"
    return f"ray.address: no cluster answers at {address} ({first}); start one with `ray start`"


def _session(*, embedded: bool) -> Session:
    import ray

    from cluster import resources

    has = ray.cluster_resources()
    return Session(
        address=ray.get_runtime_context().gcs_address,
        embedded=embedded,
        nodes=len(resources.nodes()),
        cpus=has.get("CPU", 0),
        gpus=has.get("GPU", 0),
        versions=resources.versions(),
    )


def _auth_mode() -> str:
    # Set in any case: without it a fresh Ray writes a token file into the home folder.
    return os.environ.get("RAY_AUTH_MODE", "disabled")


@contextmanager
def _loopback() -> Iterator[None]:
    """Have Ray take 127.0.0.1 for this machine's address, also where it is imported already."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _same_imports() -> Any:
    """Workers of an embedded Ray import from where this process does, as its twin would."""
    from ray.job_config import JobConfig

    return JobConfig(_py_driver_sys_path=[path for path in sys.path if os.path.isdir(path)])


@contextmanager
def _raylet_messages(shown: bool) -> Iterator[None]:
    """Send what the raylet says of dead workers to the log instead of the terminal.

    Ray prints it even with log_to_driver off; the executor tells the same by its events.
    """
    from ray._private import worker

    if shown or not hasattr(worker, "print_to_stdstream"):
        yield
        return
    before = worker.print_to_stdstream
    worker.print_to_stdstream = _to_log
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def _to_log(data: dict[str, Any], ignore_prefix: bool) -> None:
    logger.info("raylet: %s", " ".join(" ".join(data["lines"]).split()))


@contextmanager
def _lean(log_to_driver: bool) -> Iterator[None]:
    """Start a node without the helpers that an embedded Ray has no use for.

    Even without a dashboard ray.init starts, and waits for, its server, and runs an autoscaler and
    a reader of logs: three Python processes, 300 MB and half of the time to start.
    """
    from ray._private.node import Node

    helpers = ["start_api_server", "start_monitor"]
    helpers += [] if log_to_driver else ["start_log_monitor"]
    before = {name: getattr(Node, name) for name in helpers if hasattr(Node, name)}
    for name in before:
        setattr(Node, name, _not_started)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


def _not_started(*_: Any, **__: Any) -> None:
    return


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Give back the process's handler of SIGTERM, which ray.init replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    names = [*values, "PYTHONBREAKPOINT"]  # the last is set by ray.init
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
