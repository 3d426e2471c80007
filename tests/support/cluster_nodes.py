"""A Ray cluster of several nodes on one machine.

If the system allows network namespaces, every node has its own, with its own address and folder /tmp/ray, and the
test itself is outside, as a laptop would be. Otherwise the nodes are processes on 127.0.0.1.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import cluster_fakes as fakes

PREFIX = "sweep"
BRIDGE = f"{PREFIX}{os.getpid()}"
"""Names of bridge and namespaces begin with it and contain our process id; a name has at most 15 letters."""
NETWORK = f"10.231.{os.getpid() % 250}"
BIN = Path(sys.executable).parent
PATIENCE_S = 300
STARTS = 3
STORE_BYTES = 100 * 2**20
MOUNTED = 'mkdir -p /tmp/ray && mount --bind "$0" /tmp/ray && exec "$@"'
"""Shell command that gives a node its own /tmp/ray, in the mount namespace of `ip netns exec`"""


def until(true: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait for something to become true, and return what it was."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.2)
    return found


def no_namespaces() -> str:
    """The reason why this machine allows no network namespaces; empty if it does."""
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("ip"):
        return "network namespaces need Linux, root and the `ip` command"
    _clear()
    try:
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("netns", "add", f"{BRIDGE}-t")
    except subprocess.CalledProcessError as error:
        return f"{shlex.join(error.cmd)}: {error.stderr.strip()}"
    finally:
        _ip("netns", "del", f"{BRIDGE}-t", check=False)
        _ip("link", "del", BRIDGE, check=False)
    return ""


def _clear() -> None:
    """Remove the namespaces of test processes that were killed."""
    for line in _ip("netns", "list").splitlines():
        name = line.split()[0]
        whose = name.removeprefix(PREFIX).partition("-")[0]
        if name.startswith(PREFIX) and whose.isdigit() and not Path(f"/proc/{whose}").exists():
            for pid in _ip("netns", "pids", name).split():
                os.kill(int(pid), signal.SIGKILL)
            _ip("netns", "del", name)
            _ip("link", "del", f"{PREFIX}{whose}", check=False)


def _ip(*words: str, check: bool = True) -> str:
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True).stdout


@dataclass
class Node:
    """One raylet and all its processes."""

    name: str
    address: str
    process: subprocess.Popen[str]

    def pids(self) -> set[int]:
        return {self.process.pid, *fakes.descendants(self.process.pid)}

    def kill(self) -> None:
        """Send SIGKILL to all processes, as if the machine lost power."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=30)

    def terminate(self) -> None:
        """Send SIGTERM to `ray start`, as a machine does that shuts down."""
        self.process.send_signal(signal.SIGTERM)


@dataclass
class Machines:
    """A head without CPU and GPU, and nodes that tests add and remove."""

    folder: Path
    environment: dict[str, str]
    apart: bool
    """each node in a network namespace of its own"""
    nodes: dict[str, Node] = field(default_factory=dict)
    made: int = 0
    ports: tuple[int, int, int] = (0, 0, 0)
    """of the head: control service, dashboard, metrics"""

    def __enter__(self) -> Machines:
        if self.apart:
            _ip("link", "add", BRIDGE, "type", "bridge")
            _ip("address", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
            _ip("link", "set", BRIDGE, "up")
        self.ports = (6379, 8265, 8080) if self.apart else (free_port(), free_port(), free_port())
        try:
            self._start_head()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self.nodes):
            self.kill(name)
        if self.apart:
            for number in range(self.made):
                _ip("netns", "del", f"{BRIDGE}-{number}", check=False)
            _ip("link", "del", BRIDGE, check=False)

    @property
    def address(self) -> str:
        """Address of the dashboard and the Jobs API."""
        return f"http://{self.nodes['head'].address}:{self.ports[1]}"

    def _start_head(self) -> None:
        place = self._place()
        port, dashboard, metrics = map(str, self.ports)
        words = ["--head", f"--port={port}", f"--dashboard-host={place}", f"--dashboard-port={dashboard}"]
        self._start("head", place, [*words, f"--metrics-export-port={metrics}", "--num-cpus=0", "--num-gpus=0"])
        until(self.alive, PATIENCE_S, "an answer of the head")

    def add(self, name: str, cpus: int, gpus: int = 0, **resources: float) -> Node:
        """Start a node and wait until the head counts it."""
        before = self.alive()  # one that was just killed may be among them for a while
        head = self.nodes["head"].address
        words = [f"--address={head}:{self.ports[0]}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
        words.append(f"--resources={json.dumps(resources)}")
        for _ in range(STARTS):  # on a busy machine Ray may give a node up before it has started
            node = self._start(name, self._place(), words)
            until(lambda now=node: self.alive() - before or now.process.poll() is not None, PATIENCE_S, f"{name} joins")
            if self.alive() - before:
                return node
        raise AssertionError(f"node {name} does not start, see {self.folder}/node*/start.log")

    def kill(self, name: str) -> None:
        self.nodes.pop(name).kill()

    def run_on(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments on a node."""
        node = self.nodes[name]
        command = [sys.executable, *words]
        if self.apart:
            number = int(node.address.rpartition(".")[2]) - 1
            own = str(self.folder / f"node{number}")
            command = ["ip", "netns", "exec", f"{BRIDGE}-{number}", "sh", "-c", MOUNTED, own, *command]
        environment = self._environment() | {"PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)

    def alive(self) -> set[str]:
        """Ids of the nodes that are alive according to the head; none while it does not answer."""
        with suppress(OSError, ValueError, KeyError):
            return {node["node_id"] for node in self.listed("nodes", state="ALIVE")}
        return set()

    def listed(self, kind: str, **filters: str) -> list[dict[str, Any]]:
        """Rows of the dashboard's state API over HTTP: nodes, actors, tasks, ..."""
        query = "&".join(
            f"filter_keys={key}&filter_predicates=%3D&filter_values={value}" for key, value in filters.items()
        )
        url = f"{self.address}/api/v0/{kind}?limit=1000&detail=1&{query}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]["result"]["result"]

    def metrics(self) -> str:
        """The metrics that Prometheus would read from the head, where drivers run."""
        url = f"http://{self.nodes['head'].address}:{self.ports[2]}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.read().decode()

    def holding(self, actor: str) -> str | None:
        """Name of the node with a living actor whose name begins like this; None if there is none."""
        places = {node["node_id"]: node["node_ip"] for node in self.listed("nodes")}
        for row in self.listed("actors", state="ALIVE"):
            # Tune's actors have no name and all the same class; their repr is the trainable's name.
            if str(row["name"] or row["repr_name"]).startswith(actor) and row["node_id"] in places:
                return self.named(row["node_id"], places[row["node_id"]])
        return None

    def named(self, node_id: str, address: str) -> str | None:
        """Our name for one of Ray's nodes."""
        for name, node in self.nodes.items():
            if self.apart and node.address == address:
                return name
            if not self.apart and any(node_id in command(pid) for pid in node.pids()):
                return name
        return None

    def _place(self) -> str:
        """The next address; in a new namespace if nodes are apart."""
        number, self.made = self.made, self.made + 1
        if not self.apart:
            return "127.0.0.1"
        space, here = f"{BRIDGE}-{number}", f"{BRIDGE}v{number}"
        _ip("netns", "add", space)
        _ip("link", "add", here, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", here, "master", BRIDGE)
        _ip("link", "set", here, "up")
        address = f"{NETWORK}.{number + 1}"
        _ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", space, "link", "set", device, "up")
        return address

    def _start(self, name: str, address: str, words: list[str]) -> Node:
        own = self.folder / f"node{self.made - 1}"
        own.mkdir(parents=True)
        command = [str(BIN / "ray"), "start", "--block", "--disable-usage-stats", f"--node-ip-address={address}"]
        command += [f"--object-store-memory={STORE_BYTES}", *words]
        if not self.apart:  # all agents would listen on the same port, and only the first would take jobs
            command.append(f"--dashboard-agent-listen-port={free_port()}")
        if self.apart:
            command = ["ip", "netns", "exec", f"{BRIDGE}-{self.made - 1}", "sh", "-c", MOUNTED, str(own), *command]
        with (own / "start.log").open("w") as log:
            process = subprocess.Popen(
                command, env=self._environment(), stdout=log, stderr=log, text=True, start_new_session=True
            )
        self.nodes[name] = Node(name, address, process)
        return self.nodes[name]

    def _environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        clean.pop("PYTHONPATH", None)  # jobs must use the code that was sent with them
        return clean | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # a job runs `python`
            "RAY_AUTH_MODE": "disabled",
            "RAY_worker_niceness": "0",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_initial_delay_ms": "2000",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
            **self.environment,
        }


def command(pid: int) -> str:
    """Command line of a process, its words separated by zero bytes; empty if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
