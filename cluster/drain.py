"""Announce a node's end to the cluster, so that it gets no new work and its current work is saved or retried.

    python -m cluster.drain --seconds 100            # in a pod's preStop hook
    python -m cluster.drain --watch aws              # beside `ray start` on a spot machine

Ray places no more work on a drained node. Its current shard is finished if there is time; otherwise
another node runs it again, which does not count as a failure.
"""

from __future__ import annotations

import argparse
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence

from cluster.session import Node

NOTICE_S = 120.0
"""Time from the announcement of a spot machine's end on AWS to that end."""
LOOK_S = 5.0
"""Time between two looks for the notice."""
AWS = "http://169.254.169.254"
"""Metadata service that a machine on AWS queries about itself."""


def announce(address: str, node_id: str, seconds: float, reason: str = "preempted") -> None:
    """Tell the cluster that a node will end after `seconds`. Raises RuntimeError if the cluster refuses."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # missing in Ray's stubs
    from ray.core.generated import autoscaler_pb2

    # Protobuf creates the names of this module when it is imported, so type checkers do not know them.
    kind = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
    deadline_ms = int((time.time() + seconds) * 1000)
    accepted, reply = GcsClient(address=address).drain_node(node_id, kind, reason, deadline_ms)
    if not accepted:
        raise RuntimeError(f"node {node_id}: the cluster does not drain it: {reply}")


def this_node(nodes: Sequence[Node], addresses: set[str]) -> str:
    """Id of the live node at one of this machine's addresses. Raises ValueError if there is none."""
    here = [node for node in nodes if node["Alive"] and node["NodeManagerAddress"] in addresses]
    if not here:
        raise ValueError(f"no live node of the cluster is at {', '.join(sorted(addresses))}; run this on a node")
    return here[0]["NodeID"]


def spot_notice(base: str = AWS) -> bool:
    """Whether AWS has announced the end of the spot machine on which this runs."""
    try:
        token = _request(f"{base}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
        _request(f"{base}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token}, "GET")
    except (urllib.error.URLError, TimeoutError):
        return False  # the service replies 404 until there is a notice
    return True


def _request(url: str, headers: dict[str, str], method: str) -> str:
    request = urllib.request.Request(url, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=2) as reply:
        return reply.read().decode()


def watch(noticed: Callable[[], bool], act: Callable[[], None], look_s: float = LOOK_S) -> None:
    """Poll until there is a notice, then act once."""
    while not noticed():
        time.sleep(look_s)
    act()


def wait_idle(idle: Callable[[], bool], seconds: float, look_s: float = 1.0) -> bool:
    """Wait until `idle` returns true; return False if the time runs out first."""
    end = time.monotonic() + seconds
    while not idle():
        if time.monotonic() > end:
            return False
        time.sleep(look_s)
    return True


def _leave(head: str, seconds: float) -> None:
    """Announce this node's end and wait until its actors have ended, at most `seconds`."""
    from ray._private.state import GlobalState
    from ray._raylet import GcsClientOptions  # type: ignore[attr-defined]  # missing in Ray's stubs

    host, _, port = head.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))  # sends nothing; selects the local address that reaches the head
        addresses = {probe.getsockname()[0], os.environ.get("RAY_NODE_IP", "")} - {""}
    state = GlobalState()
    state._initialize_global_state(GcsClientOptions.create(head, None, True, False))
    node = this_node(state.node_table(), addresses)
    announce(head, node, seconds)
    print(f"node {node} is drained, {seconds:.0f} s are left", flush=True)

    def idle() -> bool:
        actors = state.actor_table(None, None, "ALIVE").values()
        return not any(actor["Address"]["NodeID"] == node for actor in actors)

    print("it is idle" if wait_idle(idle, seconds) else "time is over", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Drain the node on which this runs; Ray finds the cluster's address by itself."""
    parser = argparse.ArgumentParser(prog="python -m cluster.drain", description=__doc__.splitlines()[0])
    parser.add_argument("--address", default=None, help="HOST:PORT of the head (default: that of this node)")
    parser.add_argument("--seconds", type=float, default=NOTICE_S, help="time left (default 120)")
    parser.add_argument("--watch", choices=("aws",), help="wait for this cloud's notice first")
    parsed = parser.parse_args(arguments)
    from ray._private.services import canonicalize_bootstrap_address_or_die

    head = canonicalize_bootstrap_address_or_die(parsed.address)
    if parsed.watch:
        watch(spot_notice, lambda: _leave(head, parsed.seconds))
    else:
        _leave(head, parsed.seconds)


if __name__ == "__main__":
    main()
