"""The connected cluster: its nodes, their room for workers, and whether they share the output."""

from __future__ import annotations

import math
import socket
import uuid
from collections.abc import Collection, Mapping

import ray

from cluster.session import Node, is_embedded, nodes
from cluster.workers import WorkerSpec, one_line
from storage.backends import open_files
from storage.keys import PARTIAL

ANSWER_S = 2.0
"""Seconds that a node may take to accept a connection before it counts as gone."""

GROWN_WORKERS = 64
"""Workers that a stage requests on a cluster that may grow, if their number is not configured."""


def is_alive(node_id: str) -> bool:
    """Whether a node is listed as alive and accepts connections.

    Ray itself takes up to half a minute to notice that a node has vanished.
    """
    return any(_accepts_connections(node) for node in nodes() if node["NodeID"] == node_id)


def _accepts_connections(node: Node) -> bool:
    address = (node["NodeManagerAddress"], node["NodeManagerPort"])
    try:
        with socket.create_connection(address, timeout=ANSWER_S):
            return True
    except OSError:
        return False


def draining_nodes() -> set[str]:
    """Ids of the nodes that have announced their end (preemption, scaling down)."""
    from ray._private.state import state  # there is no public API; Ray Train uses this one as well

    return set(state.get_draining_nodes())


def fits(worker: WorkerSpec, node: Mapping[str, float]) -> int:
    """How many of these workers fit on an empty node with these total resources."""
    requested = {"CPU": worker.num_cpus, "GPU": worker.num_gpus}
    rooms = [math.floor(node.get(name, 0) / amount + 1e-9) for name, amount in requested.items() if amount]
    return min(rooms) if rooms else 1


def room(worker: WorkerSpec) -> int:
    """How many of these workers to request: as many as fit now, or may fit once the cluster has grown.

    Ray does not report how far a cluster may grow. Pending workers are the demand that its
    autoscaler sees; they end with the driver, and are withdrawn when no task is left for them.
    """
    fitting = max(1, sum(fits(worker, node["Resources"]) for node in nodes()))
    return fitting if is_embedded() else max(fitting, GROWN_WORKERS)


def check_fits(worker: WorkerSpec, without: Collection[str] = ()) -> None:
    """Raise ValueError if no live node, but those with ids in `without`, can hold even one such worker."""
    available = [node["Resources"] for node in nodes() if node["NodeID"] not in without]
    if any(fits(worker, node) for node in available):
        return
    cpus, gpus = (max((node.get(name, 0) for node in available), default=0) for name in ("CPU", "GPU"))
    raise ValueError(
        f"a worker of {worker.name} needs num_cpus={worker.num_cpus:g}, "
        f"num_gpus={worker.num_gpus:g}; the largest node has {cpus:g} CPUs, {gpus:g} GPUs: "
        "request less, or start a node that fits"
    )


def check_shared_output(url: str) -> None:
    """Raise ValueError unless every node can read what this process writes at the output's URL.

    If each node had a folder of its own at that path, the store would be split between them.
    """
    if len(nodes()) == 1 and not url.startswith("memory:"):
        return
    marker = f"marker-{uuid.uuid4().hex}{PARTIAL}"
    files = open_files(url)
    files.put(marker, [marker.encode()])
    try:
        problems = _read_on_every_node(url, marker)
    finally:
        files.delete([marker])
    if problems:
        listed = "; ".join(f"{address}: {problem}" for address, problem in problems.items())
        raise ValueError(
            f"output {url}: not every node of the cluster can read what this one wrote there ({listed}); "
            "use a folder that all nodes share, or an s3:// or gs:// URL"
        )


def _read_on_every_node(url: str, marker: str) -> dict[str, str]:
    """Address of each node that can't read the marker -> the problem."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    pending = []
    for node in nodes():
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        read = ray.remote(_read_marker).options(num_cpus=0, scheduling_strategy=strategy, name="check the output")
        pending.append((node["NodeManagerAddress"], read.remote(url, marker)))
    problems = {}
    for address, ref in pending:
        try:
            problem = ray.get(ref, timeout=60)
        except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
            continue  # the node has left the cluster since
        if problem is not None:
            problems[address] = problem
    return problems


def _read_marker(url: str, marker: str) -> str | None:
    """Runs on each node: None if the marker is there, else the problem."""
    try:
        content = open_files(url).get(marker)
    except Exception as error:
        return one_line(error)
    return None if content == marker.encode() else "the file there has other content"
