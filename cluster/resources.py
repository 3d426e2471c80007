"""What the connected cluster has: nodes, room for workers, and sight of the output."""

from __future__ import annotations

import math
import socket
import uuid
from collections.abc import Mapping
from typing import Any

import ray

from cluster.session import is_embedded
from cluster.workers import WorkerSpec, one_line

ANSWER_S = 2.0
"""How long a node may take to accept a connection before it counts as gone."""

GROWN_WORKERS = 64
"""How many workers a stage asks of a cluster that is not ours alone, where none are counted out."""


def nodes() -> list[dict[str, Any]]:
    """The live nodes, as `ray.nodes()` describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def is_alive(node_id: str) -> bool:
    """Whether a node is listed as alive and still answers.

    Ray itself takes up to half a minute to notice that a node went without a word.
    """
    return any(_answers(node) for node in nodes() if node["NodeID"] == node_id)


def _answers(node: Mapping[str, Any]) -> bool:
    place = (node["NodeManagerAddress"], node["NodeManagerPort"])
    try:
        with socket.create_connection(place, timeout=ANSWER_S):
            return True
    except OSError:
        return False


def draining_nodes() -> set[str]:
    """Ids of the nodes that have announced their end (preemption, scaling down)."""
    from ray._private.state import state  # no public name for it; Ray Train asks here as well

    return set(state.get_draining_nodes())


def fits(worker: WorkerSpec, node: Mapping[str, float]) -> int:
    """How many of these workers a node with these total resources holds."""
    asks = {"CPU": worker.num_cpus, "GPU": worker.num_gpus}
    rooms = [math.floor(node.get(name, 0) / ask + 1e-9) for name, ask in asks.items() if ask]
    return min(rooms) if rooms else 1


def capacity(worker: WorkerSpec) -> int:
    """How many of these workers the cluster holds in all, at least 1."""
    return max(1, sum(fits(worker, node["Resources"]) for node in nodes()))


def room(worker: WorkerSpec) -> int:
    """How many of these workers to ask for: what the cluster holds, or could hold once it has grown.

    No Ray tells how far its cluster may grow. Workers that wait for room are the demand that its
    autoscaler sees; they vanish with the driver and are withdrawn when no task is left for them.
    """
    held = capacity(worker)
    return held if is_embedded() else max(held, GROWN_WORKERS)


def check_fits(worker: WorkerSpec) -> None:
    """Raise ValueError where no live node holds even one such worker."""
    held = [node["Resources"] for node in nodes()]
    if any(fits(worker, node) for node in held):
        return
    cpus, gpus = (max((node.get(name, 0) for node in held), default=0) for name in ("CPU", "GPU"))
    raise ValueError(
        f"a worker of {worker.name} needs num_cpus={worker.num_cpus:g}, "
        f"num_gpus={worker.num_gpus:g}; the largest node has {cpus:g} CPUs, {gpus:g} GPUs: "
        "ask for less, or start a node that fits"
    )


def check_shared_output(url: str) -> None:
    """Raise ValueError unless every node reads, at the output's URL, what this process wrote.

    A folder that each node has for itself would split the store between them.
    """
    from storage.backends.objects import open_files
    from storage.keys import PARTIAL

    here = nodes()
    if len(here) == 1 and not url.startswith("memory:"):
        return
    marker = f"marker-{uuid.uuid4().hex}{PARTIAL}"
    files = open_files(url)
    files.put(marker, [marker.encode()])
    try:
        blind = {node["NodeManagerAddress"]: said for node, said in _read_everywhere(url, marker)}
    finally:
        files.delete([marker])
    if blind:
        told = "; ".join(f"{address}: {said}" for address, said in blind.items())
        raise ValueError(
            f"output {url}: not every node of the cluster sees what this one wrote there ({told}); "
            "use a folder that all share, or an s3:// or gs:// URL"
        )


def _read_everywhere(url: str, marker: str) -> list[tuple[dict[str, Any], str]]:
    """The nodes that could not read the marker, each with what it said."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = []
    for node in nodes():
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        read = ray.remote(_read_marker).options(num_cpus=0, scheduling_strategy=place, name="look for the output")
        asked.append((node, read.remote(url, marker)))
    return [(node, said) for node, ref in asked if (said := _answer(ref)) is not None]


def _answer(ref: Any) -> str | None:
    """What a node said; None also where it has left the cluster since it was asked."""
    try:
        return ray.get(ref, timeout=60)
    except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
        return None


def _read_marker(url: str, marker: str) -> str | None:
    """None where the marker is there, else what is wrong; runs on each node."""
    from storage.backends.objects import open_files

    try:
        found = open_files(url).get(marker)
    except Exception as error:
        return one_line(error)
    return None if found == marker.encode() else "another text stands there"
