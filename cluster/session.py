"""Start a private Ray on this machine or join a cluster, and undo all of it when the block ends."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TypedDict

from cluster.observers import logs
from cluster.process import sigterm_restored, temporary_environment
from cluster.versions import check_arrival, versions
from storage.errors import Unavailable

OBJECT_STORE_BYTES = 200 * 2**20
"""Shared memory of an embedded Ray. Small, because results are small and data go to the store."""

ANSWER_S = 5.0
"""Seconds that a cluster may take to accept a connection. Ray itself would try for minutes."""

EMBEDDED_ENVIRONMENT = {
    # Without it Ray replaces 127.0.0.1 by the machine's outward address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A driver started by `uv run` would otherwise ship its project to the workers.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}

logger = logging.getLogger(__name__)
_started_here = threading.Event()


def _skip(*_: object, **__: object) -> None:
    """Stand-in for a method of Ray that is not to run."""


def _log_message(data: dict[str, list[str]], ignore_prefix: bool) -> None:
    """Stand-in for Ray's printing of what the raylet reports, such as dead workers."""
    logger.info("raylet: %s", " ".join(" ".join(data["lines"]).split()))


# Ray has no public settings for the following; tests check that the replaced names exist.
LOOPBACK: dict[str, object] = {"ray._private.ray_constants.ENABLE_RAY_CLUSTER": False}
"""Makes Ray use 127.0.0.1 as this machine's address, also if it was imported before the environment was set."""

QUIET: dict[str, object] = {"ray._private.worker.print_to_stdstream": _log_message}
"""Ray prints these messages even with log_to_driver off; the executor reports the same by its events."""

LEAN: dict[str, object] = {
    f"ray._private.node.Node.{name}": _skip for name in ("start_api_server", "start_monitor", "start_log_monitor")
}
"""Even without a dashboard ray.init starts its server, an autoscaler and a reader of logs and waits for them:
three Python processes, 300 MB and half of the time to start."""


AUTHENTICATION = ("ray._raylet.Config.initialize", "ray._raylet.AuthenticationTokenLoader.reset_cache")
"""Makes Ray read the variables of its authentication again."""


class Node(TypedDict):
    """One node as `ray.nodes()` describes it: the entries in use here."""

    NodeID: str
    Alive: bool
    NodeManagerAddress: str
    NodeManagerPort: int
    Resources: dict[str, float]
    Labels: dict[str, str]


def nodes() -> list[Node]:
    """The live nodes of the connected cluster."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


@dataclass(frozen=True)
class Session:
    """A live connection to Ray."""

    address: str
    """HOST:PORT of the cluster's control service."""
    embedded: bool
    """Whether this process started it."""
    nodes: int
    """Number of live nodes."""
    cpus: float
    gpus: float
    versions: dict[str, str]
    """Ray and Python, the same on the cluster and in this process."""


@contextmanager
def connect(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[Session]:
    """Connect to Ray for the duration of the block.

    Args:
        address: None or "local" starts a private Ray on 127.0.0.1 without dashboard, which ends
            with the block. "auto" or HOST:PORT joins that cluster and leaves it after the block.
            None joins the cluster in RAY_ADDRESS if that is set, as it is inside a submitted job.
        num_cpus: CPUs of the private Ray; None: those of the machine.

    A connection that exists already is used as it is and left open.

    Raises ValueError if no cluster answers at the address or its Ray or Python version differs,
    Unavailable if the private Ray does not start, or Ray itself fails inside the block.
    """
    import ray

    check_arrival()
    if ray.is_initialized():
        yield _session(embedded=False)
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    embedded = address == "local"
    with ExitStack() as stack:
        stack.enter_context(_ray_errors(address))
        stack.enter_context(_replaced(QUIET))
        stack.enter_context(sigterm_restored())  # ray.init replaces the handler
        if embedded:
            stack.callback(_reload_authentication)  # once the environment is restored
            environment = EMBEDDED_ENVIRONMENT | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            stack.enter_context(temporary_environment(environment, ["PYTHONBREAKPOINT"]))  # ray.init sets the last
            _reload_authentication()
        if embedded or address.startswith(("localhost:", "127.")):
            stack.enter_context(_replaced(LOOPBACK))
        stack.callback(ray.shutdown)
        if embedded:
            _start(num_cpus)
            _started_here.set()
            stack.callback(_started_here.clear)
        else:
            _join(address)
        yield _session(embedded=embedded)


@contextmanager
def _ray_errors(address: str) -> Iterator[None]:
    """Turn errors of Ray itself, such as a control service that is gone, into Unavailable with one line."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        if isinstance(error, ValueError | OSError):  # what a task raised, which Ray passes on as a kind of both
            raise
        reason = " ".join(str(error).split())[:300]
        raise Unavailable(f"Ray at {address}: {type(error).__name__}: {reason}") from error


def _reload_authentication() -> None:
    """Make Ray read mode and token of authentication from the environment again; it keeps those it read first.

    Without a token any user of this machine could run commands as the user who sweeps, through Ray's job agent,
    which listens on the loopback address even without a dashboard.
    """
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def is_embedded() -> bool:
    """Whether the connected Ray was started by this process, so that it never grows."""
    return _started_here.is_set()


def _start(num_cpus: int | None) -> None:
    import ray
    from ray.job_config import JobConfig

    # Workers import from where this process does, as the in-process executor would.
    imports = JobConfig(_py_driver_sys_path=[path for path in sys.path if os.path.isdir(path)])
    with _replaced(LEAN):
        try:
            ray.init(
                "local",
                num_cpus=num_cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                include_dashboard=False,
                logging_level=logging.ERROR,
                job_config=imports,
                _node_ip_address="127.0.0.1",
            )
        except Exception as error:
            reason = " ".join(str(error).split())
            fix = "ray.address=none works without it"
            if "AF_UNIX" in reason:  # the path of a socket, which has at most 107 bytes
                fix = "set TMPDIR to a shorter path, or use ray.address=none"
            raise Unavailable(f"Ray did not start on this machine ({reason}); {fix}") from error


def _join(address: str) -> None:
    import ray

    if "://" in address:
        raise ValueError(
            f"ray.address: {address} cannot be joined; give HOST:PORT or auto on a machine of the "
            "cluster, or submit the run as a job from outside"
        )
    host, _, port = address.rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
        except OSError:
            raise ValueError(_refusal(address, "connection refused")) from None
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, logging_config=logs.config())
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(_refusal(address, str(error))) from error


def _refusal(address: str, reason: str) -> str:
    """One line for the user from Ray's message about a connection that failed."""
    pairs = re.findall(r"Ray: (\S+)\s+Python: (\S+)", reason)
    if "Version mismatch" in reason and len(pairs) == 2:
        (ray_there, python_there), (ray_here, python_here) = pairs
        return (
            f"the cluster at {address} runs Ray {ray_there}, Python {python_there}, this process "
            f"Ray {ray_here}, Python {python_here}: use the same on both"
        )
    first = reason.strip().splitlines()[0] if reason.strip() else "no answer"
    return f"ray.address: no cluster answers at {address} ({first}); start one with `ray start`"


def _session(*, embedded: bool) -> Session:
    import ray

    resources = ray.cluster_resources()
    return Session(
        address=ray.get_runtime_context().gcs_address,
        embedded=embedded,
        nodes=len(nodes()),
        cpus=resources.get("CPU", 0),
        gpus=resources.get("GPU", 0),
        versions=versions(),
    )


@contextmanager
def _replaced(names: Mapping[str, object]) -> Iterator[None]:
    """Replace attributes of Ray's private modules or classes inside the block; skip those this Ray lacks."""
    with ExitStack() as stack:
        for name, value in names.items():
            owner = private_owner(name)
            attribute = name.rpartition(".")[2]
            if hasattr(owner, attribute):
                stack.callback(setattr, owner, attribute, getattr(owner, attribute))
                setattr(owner, attribute, value)
        yield


def private_owner(name: str) -> object:
    """The module or class that holds the attribute with this dotted name."""
    path = name.rpartition(".")[0]
    module, _, cls = path.rpartition(".")
    return getattr(import_module(module), cls) if cls[:1].isupper() else import_module(path)
