"""A node announces its end, by itself or after a notice of the cloud, and then gets no more work."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import drain
from support import cluster_nodes as nodes


@pytest.fixture
def cloud() -> Iterator[tuple[str, dict[str, Any]]]:
    """The metadata service of AWS: it issues a token, and a notice if `state` has one."""
    state: dict[str, Any] = {"notice": False, "tokens": []}

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self._reply(200, "token-of-the-day" if self.path == "/latest/api/token" else "")

        def do_GET(self) -> None:
            state["tokens"].append(self.headers.get("X-aws-ec2-metadata-token"))
            known = self.path == "/latest/meta-data/spot/instance-action" and state["notice"]
            self._reply(200 if known else 404, '{"action": "terminate"}')

        def _reply(self, code: int, text: str) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *words: Any) -> None:
            """Logs nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", state
    server.shutdown()
    server.server_close()


def test_a_spot_notice_is_detected(cloud: tuple[str, dict[str, Any]]) -> None:
    base, state = cloud
    assert not drain.spot_notice(base)
    state["notice"] = True
    assert drain.spot_notice(base)
    assert state["tokens"] == ["token-of-the-day"] * 2
    assert not drain.spot_notice("http://127.0.0.1:9")


def test_watching_acts_once_after_the_notice() -> None:
    seen = iter([False, False, True])
    acted: list[int] = []
    drain.watch(lambda: next(seen), lambda: acted.append(1), look_s=0)
    assert acted == [1]
    with pytest.raises(StopIteration):
        next(seen)


def test_waiting_ends_with_the_work_or_the_time() -> None:
    seen = iter([False, True])
    assert drain.wait_idle(lambda: next(seen), 60, look_s=0)
    assert not drain.wait_idle(lambda: False, 0.05, look_s=0.01)


def test_this_node_is_the_live_one_at_our_address() -> None:
    nodes = [
        {"NodeID": "old", "NodeManagerAddress": "10.0.0.1", "Alive": False},
        {"NodeID": "head", "NodeManagerAddress": "10.0.0.9", "Alive": True},
        {"NodeID": "here", "NodeManagerAddress": "10.0.0.1", "Alive": True},
    ]
    assert drain.this_node(nodes, {"10.0.0.1", "127.0.0.1"}) == "here"
    with pytest.raises(ValueError, match="no live node of the cluster is at 10.0.0.7"):
        drain.this_node(nodes, {"10.0.0.7"})


@pytest.mark.slow
def test_a_drained_node_leaves_the_cluster(tmp_path: Path) -> None:
    why = nodes.no_namespaces()
    if why:
        pytest.skip(why)
    with nodes.Machines(tmp_path / "nodes", {}, apart=True) as machines:
        head = f"{machines.nodes['head'].address}:{machines.ports[0]}"
        machines.add("leaves", cpus=1)
        (stays,) = machines.alive() - {
            place["node_id"] for place in machines.listed("nodes") if not place["is_head_node"]
        }
        done = machines.run_on("leaves", "-m", "cluster.drain", "--address", head, "--seconds", "60")
        assert done.returncode == 0, done.stderr
        assert "is drained, 60 s are left" in done.stdout
        assert "it is idle" in done.stdout
        nodes.until(lambda: machines.alive() == {stays}, nodes.PATIENCE_S, "the idle node is let go")
