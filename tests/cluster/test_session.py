"""The embedded Ray stays on this machine, is quiet and leaves nothing behind; joining a cluster checks it first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from cluster import Session, connect, session
from support import cluster_fakes as fakes

EMBEDDED = """
import os, signal, sys, time
from functools import partial
from pathlib import Path
from support import cluster_fakes as fakes
import ray  # sets RAY_CLIENT_MODE when it is imported
from cluster import WorkerSpec, connect

folder = Path(sys.argv[1])
before = dict(os.environ)
handler = signal.getsignal(signal.SIGTERM)
with connect(num_cpus=1) as session:
    from cluster.actors import OnRay
    assert session.embedded and session.cpus == 1 and session.nodes == 1
    tasks = [fakes.Scripted("a", ("die", "raise")), fakes.Scripted("b", ("die",) * 9)]
    outcome = OnRay(2).run(tasks, WorkerSpec(partial(fakes.build, folder)))
    assert set(outcome.done) == {"a"} and set(outcome.failed) == {"b"}
assert dict(os.environ) == before
assert signal.getsignal(signal.SIGTERM) is handler
until = time.monotonic() + 60
while fakes.descendants(os.getpid()):
    assert time.monotonic() < until, fakes.descendants(os.getpid())
    time.sleep(0.1)
"""

UNSTARTED = """
from cluster import connect

try:
    with connect(num_cpus=1):
        pass
except OSError as error:
    print(error)
"""

JOIN = """
import sys
import ray
from cluster import connect

if len(sys.argv) > 2:
    ray.__version__ = sys.argv[2]
try:
    with connect(sys.argv[1]) as session:
        print("joined" if not session.embedded else "embedded", session.address)
except ValueError as error:
    print("refused:", error)
print(ray.is_initialized())
"""


def token() -> dict[str, str]:
    """What lets another process join the private Ray of this one."""
    return {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}


def listening(pids: set[int]) -> set[str]:
    """Hexadecimal local addresses on which these processes accept TCP connections."""
    return {address for address, _ in sockets(pids)}


def listening_ports(pids: set[int]) -> set[int]:
    """Ports on which these processes accept TCP connections."""
    return {port for _, port in sockets(pids)}


def sockets(pids: set[int]) -> set[tuple[str, int]]:
    """Hexadecimal local addresses and ports on which these processes accept TCP connections."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(os.readlink(entry))
            except FileNotFoundError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, _, port = fields[1].rpartition(":")
                found.add((address, int(port, 16)))
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's /proc")
def test_embedded_ray_listens_on_loopback_alone(ray_local: Session) -> None:
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    found = listening(fakes.descendants(os.getpid()))
    assert found
    assert found <= loopback
    assert ray_local.address.startswith("127.0.0.1:")


def test_embedded_ray_is_quiet_and_leaves_nothing(tmp_path: Path) -> None:
    home, marks = tmp_path / "home", tmp_path / "marks"
    home.mkdir()
    marks.mkdir()
    done = fakes.run_apart(EMBEDDED, str(marks), HOME=str(home))
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert not list(home.iterdir())


def test_a_temporary_folder_with_too_long_a_path_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    done = fakes.run_apart(UNSTARTED, TMPDIR=str(folder))
    assert (done.stderr, done.returncode) == ("", 0)
    assert re.fullmatch(r"Ray did not start .*; set TMPDIR to a shorter path, or use ray.address=none\n", done.stdout)


@pytest.mark.parametrize("name", [*session.LOOPBACK, *session.QUIET, *session.LEAN, *session.AUTHENTICATION])
def test_the_private_parts_of_ray_that_are_replaced_exist(name: str) -> None:
    assert hasattr(session.private_owner(name), name.rpartition(".")[2])


INTRUDER = """
import encodings.idna, http.client, os, sys, urllib.error, urllib.request  # while they can be read
os.setgid(65534)
os.setuid(65534)
for port in sys.argv[2:]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/job_agent/jobs/",
        b'{"entrypoint": "touch %s"}' % sys.argv[1].encode(),
        {"Content-Type": "application/json"},
    )
    try:
        answer = urllib.request.urlopen(request, timeout=5)
        print(port, answer.status, answer.read().decode()[:80])
    except urllib.error.HTTPError as error:
        print(port, error.code, error.read().decode()[:80])
    except (OSError, http.client.HTTPException):
        pass  # no server of HTTP
"""


@pytest.mark.skipif(not Path("/proc/net/tcp").exists() or os.geteuid() != 0, reason="becomes another user, on Linux")
def test_another_user_of_this_machine_cannot_run_commands_through_rays_job_agent(
    ray_local: Session, tmp_path: Path
) -> None:
    target = tmp_path / "made"
    ports = sorted(listening_ports(fakes.descendants(os.getpid())))
    code = [sys.executable, "-c", INTRUDER, str(target), *map(str, ports)]
    # With an empty environment, in which there is no token of this run.
    done = subprocess.run(code, capture_output=True, text=True, timeout=120, env={}, cwd="/", check=True)
    codes = re.findall(r"^\d+ (\d+)", done.stdout, re.MULTILINE)
    assert "Unauthorized" in done.stdout
    assert not [code for code in codes if code.startswith("2")], done.stdout
    assert not target.exists()


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads Linux's /proc")
def test_embedded_ray_starts_no_helpers(ray_local: Session) -> None:
    commands = []
    for pid in fakes.descendants(os.getpid()):
        with suppress(OSError):
            commands.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    assert any(b"raylet" in command for command in commands)
    for helper in (b"dashboard.py", b"monitor.py", b"log_monitor.py"):
        assert not [command for command in commands if helper in command]


def test_a_connection_that_exists_is_used_and_left_open(ray_local: Session) -> None:
    import ray

    with connect() as session:
        assert session.address == ray_local.address
        assert not session.embedded
    assert ray.is_initialized()


def test_joining_leaves_the_cluster_running(ray_local: Session) -> None:
    import ray

    for address, environment in [(ray_local.address, {}), ("", {"RAY_ADDRESS": ray_local.address})]:
        done = fakes.run_apart(JOIN, address, **token(), **environment)
        assert done.stdout == f"joined {ray_local.address}\nFalse\n", done.stderr
    assert ray.get(ray.put(3)) == 3


def test_another_version_is_refused_in_one_line_naming_both(ray_local: Session) -> None:
    done = fakes.run_apart(JOIN, ray_local.address, "1.0.0", **token())
    versions = ray_local.versions
    assert done.stdout == (
        f"refused: the cluster at {ray_local.address} runs Ray {versions['ray']}, "
        f"Python {versions['python']}, this process Ray 1.0.0, Python {versions['python']}: "
        "use the same on both\nFalse\n"
    )


@pytest.mark.parametrize(
    ("address", "fragment"), [("ray://head:10001", "submit the run as a job"), ("http://head:8265", "submit the run")]
)
def test_addresses_of_other_kinds_are_refused(address: str, fragment: str) -> None:
    done = fakes.run_apart(JOIN, address)
    assert done.stdout.startswith(f"refused: ray.address: {address} cannot be joined")
    assert fragment in done.stdout


def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    done = fakes.run_apart(JOIN, "127.0.0.1:9")
    assert done.stdout.startswith("refused: ray.address: no cluster answers at 127.0.0.1:9 (")
    assert done.stdout.endswith("start one with `ray start`\nFalse\n")
