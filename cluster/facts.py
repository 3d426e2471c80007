"""Hardware and versions of a cluster, without names or addresses of its machines, for the records of a run."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable
from typing import Any

from cluster.session import Node, Session, nodes

Facts = dict[str, Any]
"""Plain values for a JSON file."""

ACCELERATOR = "accelerator_type:"
"""Start of the Ray resource that names a node's GPU model."""
LABEL = "ray.io/accelerator-type"
"""Node label with the same name."""


def of(session: Session) -> Facts:
    """Versions, kind of address and the live nodes, as plain values."""
    return {**session.versions, "address": kind(session), **present()}


def present() -> Facts:
    """`summary` of the live nodes."""
    return summary(nodes())


def summary(nodes: Iterable[Node]) -> Facts:
    """Number, CPUs and GPUs of nodes as `ray.nodes()` describes them, and the number of each kind."""
    described = []
    for node in nodes:
        resources = node.get("Resources", {})
        described.append((_whole(resources.get("CPU", 0)), _whole(resources.get("GPU", 0)), gpu_model(node)))
    counted = Counter(described)
    return {
        "nodes": len(described),
        "cpus": sum(cpus for cpus, _, _ in described),
        "gpus": sum(gpus for _, gpus, _ in described),
        "kinds": [
            {"nodes": count, "cpus": cpus, "gpus": gpus, "gpu": model}
            for (cpus, gpus, model), count in sorted(counted.items())
        ],
    }


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


def gpu_model(node: Node) -> str:
    """Model of a node's GPUs; empty if it has none or Ray does not know the model."""
    resources = node.get("Resources", {})
    if not resources.get("GPU"):
        return ""
    models = [name.removeprefix(ACCELERATOR) for name in resources if name.startswith(ACCELERATOR)]
    return min(models, default=str((node.get("Labels") or {}).get(LABEL, "")))


def kind(session: Session) -> str:
    """How the cluster is reached, in words that do not reveal its address."""
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
