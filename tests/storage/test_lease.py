"""The lease: one planner at a time; another takes over from a dead or silent one, which then writes nothing more."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

import storage
from storage import LeaseHeld, Store
from storage.keys import LEASE
from storage.lease import Lease
from support.storage_fakes import contents, fill_shard, noise, tiny_layout

ROOT = Path(__file__).parents[2]


class Clock:
    """A clock that tests set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty tiny store of each kind."""
    local = request.param == "local"
    url = str(tmp_path / "out") if local else f"memory://{uuid.uuid4().hex}"
    return Store.create(url, tiny_layout(), durable=False)


def test_one_holder_at_a_time(store: Store):
    clock = Clock()
    with store.lease("first", clock=clock):
        clock.now += 30
        with pytest.raises(LeaseHeld, match=r"in use by first .*last heartbeat 30 s ago.*wait"):
            store.lease("second", clock=clock).__enter__()
    assert not store.exists(LEASE)
    with store.lease("second", clock=clock):
        assert json.loads(store.get(LEASE))["owner"] == "second"


def test_the_lease_ends_with_an_error_inside(store: Store):
    with pytest.raises(RuntimeError, match="inside"), store.lease("first"):
        raise RuntimeError("inside")
    assert not store.exists(LEASE)


def test_a_silent_holder_is_replaced_and_learns_of_it(store: Store):
    clock = Clock()
    first = store.lease("first", clock=clock)
    first.__enter__()
    clock.now += 119
    with pytest.raises(LeaseHeld):
        store.lease("second", clock=clock).__enter__()
    clock.now += 2
    with store.lease("second", clock=clock):
        assert not first.beat()
        assert first.lost
        with pytest.raises(LeaseHeld, match="another run took this store over"):
            first.check()
        first.__exit__(None, None, None)
        assert json.loads(store.get(LEASE))["owner"] == "second"


WRITES: dict[str, Callable[[Store], object]] = {
    "chunk": lambda store: store.write_images("trained", 1, noise(0, (4, 8, 6, 3), "uint8")),
    "completion record": lambda store: store.complete("sample", "trained", 0),
    "failure note": lambda store: store.fail("sample", "trained", 1, "reason"),
    "results": lambda store: store.append("probes", [{"variant": "trained"}]),
    "report file": lambda store: store.put("report/index.html", b"page"),
    "samples": lambda store: store.write_samples([{"sample": i, "shard": i // 4} for i in range(10)]),
    "curation": lambda store: store.write_curation([{"sample": 0}]),
    "deletion": lambda store: store.delete("layout.json"),
    "cleaning": lambda store: store.drop_activations(),
    "partial files": lambda store: store.remove_partial_files(),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
@pytest.mark.parametrize("opened_by", ["planner", "worker"])
def test_a_planner_that_lost_its_lease_writes_nothing(store: Store, write: Callable[[Store], object], opened_by: str):
    """Nor does a worker in its process, which opened the store itself. Both notice the loss without a heartbeat."""
    clock = Clock()
    lease = store.lease("first", clock=clock)
    lease.__enter__()
    user = store if opened_by == "planner" else storage.open(store.url)
    user.write_images("trained", 0, noise(0, (4, 8, 6, 3), "uint8"))
    clock.now += 121
    second = json.dumps(json.loads(store.get(LEASE)) | {"token": "another", "host": "elsewhere"}).encode()
    store.files.put(LEASE, [second])
    before = contents(store)
    with pytest.raises(LeaseHeld, match="another run took this store over"):
        write(user)
    lease.__exit__(None, None, None)
    assert contents(store) == before


def test_a_holder_that_was_silent_but_not_replaced_works_on(store: Store):
    clock = Clock()
    with store.lease("first", clock=clock):
        clock.now += 500
        store.put("note", b"x")
    assert store.get("note") == b"x"


PLANNER = """
import sys, storage
from support.storage_fakes import fill_shard
store = storage.open(sys.argv[1])
with store.lease("first", expiry=float(sys.argv[2])):
    fill_shard(store, "trained", 0)
    print("ready", flush=True)
    sys.stdin.readline()
    fill_shard(store, "trained", 1)
"""


@pytest.mark.slow
def test_a_planner_paused_past_its_lease_stops_when_it_continues(tmp_path: Path):
    """Another process takes over meanwhile; a third, a worker without a lease, may write all the time."""
    expiry = 1.0
    store = Store.create(str(tmp_path / "out"), tiny_layout(), durable=False)
    planner = subprocess.Popen(
        [sys.executable, "-c", PLANNER, store.url, str(expiry)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
    )  # fmt: skip
    assert planner.stdout is not None
    assert planner.stdout.readline() == "ready\n"
    planner.send_signal(signal.SIGSTOP)
    time.sleep(2 * expiry)
    with Store.open(store.url).lease("second", expiry=expiry):
        fill_shard(store, "trained", 2)
        before = {path: data for path, data in contents(store).items() if path != LEASE}
        planner.send_signal(signal.SIGCONT)
        _, error = planner.communicate("go on\n", timeout=60)
        assert planner.returncode == 1
        assert "LeaseHeld" in error.strip().splitlines()[-1]
        assert json.loads(store.get(LEASE))["owner"] == "second"
        assert {path: data for path, data in contents(store).items() if path != LEASE} == before
    assert store.completed("sample", "trained") == {0, 2}


def test_heartbeats_keep_the_lease(store: Store):
    clock = Clock()
    with store.lease("first", clock=clock) as lease:
        for _ in range(5):
            clock.now += 100
            assert lease.beat()
            lease.check()
        with pytest.raises(LeaseHeld, match="0 s ago"):
            store.lease("second", clock=clock).__enter__()


def test_heartbeats_come_by_themselves(store: Store):
    with Lease(store.files, "first", expiry=0.06):
        before, end = store.get(LEASE), time.monotonic() + 10
        while store.get(LEASE) == before:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert not store.exists(LEASE)


def test_a_dead_holder_on_this_machine_is_replaced_at_once(store: Store):
    """On another machine its lease has to expire first."""
    clock = Clock()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with store.lease("first", clock=clock):
        holder = json.loads(store.get(LEASE)) | {"pid": dead.pid}
    store.put(LEASE, json.dumps(holder | {"host": "elsewhere"}).encode())
    with pytest.raises(LeaseHeld, match="on elsewhere"):
        store.lease("second", clock=clock).__enter__()
    store.put(LEASE, json.dumps(holder).encode())
    with store.lease("second", clock=clock):
        assert json.loads(store.get(LEASE))["owner"] == "second"


def test_another_process_with_the_same_id_is_not_the_holder(store: Store):
    clock = Clock()
    with store.lease("first", clock=clock):
        holder = json.loads(store.get(LEASE))
    store.put(LEASE, json.dumps(holder | {"started": "1"}).encode())
    with store.lease("second", clock=clock):
        pass


def test_an_unreadable_lease_does_not_block_for_ever(store: Store):
    store.put(LEASE, b"garbage")
    with store.lease("first"):
        assert json.loads(store.get(LEASE))["owner"] == "first"


def test_an_unreachable_store_does_not_lose_the_lease(store: Store, monkeypatch: pytest.MonkeyPatch):
    with store.lease("first") as lease:

        def down(*_: object) -> bool:
            raise OSError("unreachable")

        with monkeypatch.context() as patch:
            patch.setattr(type(store.files), "swap", down)
            assert lease.beat()
        assert lease.beat()
        assert not lease.lost
