"""What a cluster consists of, without names or addresses of its machines: for the records of a run."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.session import Session

ACCELERATOR = "accelerator_type:"
"""how Ray's resource starts that names a node's GPU model"""
LABEL = "ray.io/accelerator-type"
"""the node label that says the same"""


def of(session: Session) -> dict[str, Any]:
    """Versions, kind of address and the nodes that are alive now; plain values."""
    return {**session.versions, "address": kind(session), **present()}


def present() -> dict[str, Any]:
    """Number, CPUs and GPUs of the live nodes, and how many there are of each kind."""
    from cluster import resources

    return summary(resources.nodes())


def summary(nodes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The same of nodes as `ray.nodes()` describes them."""
    counted = Counter((*_amounts(node), gpu_model(node)) for node in nodes)
    kinds: list[dict[str, Any]] = [
        {"nodes": count, "cpus": cpus, "gpus": gpus, "gpu": model}
        for (cpus, gpus, model), count in sorted(counted.items())
    ]
    total = {name: sum(one["nodes"] * one[name] for one in kinds) for name in ("cpus", "gpus")}
    return {"nodes": counted.total(), **total, "kinds": kinds}


def _amounts(node: Mapping[str, Any]) -> tuple[float, float]:
    held = node.get("Resources", {})
    return _whole(held.get("CPU", 0)), _whole(held.get("GPU", 0))


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


def gpu_model(node: Mapping[str, Any]) -> str:
    """Name of a node's GPUs; empty where it has none, or Ray does not know it."""
    held = node.get("Resources", {})
    if not held.get("GPU"):
        return ""
    named = [name.removeprefix(ACCELERATOR) for name in held if name.startswith(ACCELERATOR)]
    return min(named, default=str((node.get("Labels") or {}).get(LABEL, "")))


def kind(session: Session) -> str:
    """How the cluster is reached, in words, never where it is."""
    if session.embedded:
        return "private Ray of this machine"
    host = session.address.rpartition(":")[0].strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "this machine" if host == "localhost" else "network, by name"
    if address.is_loopback:
        return "this machine"
    return "private network" if address.is_private else "public network"
