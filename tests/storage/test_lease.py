"""The lease: one planner at a time, takeover from the dead and the silent, loss noticed."""

import json
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from storage import LeaseHeld, Store
from storage.keys import LEASE
from storage.lease import Lease
from support.storage_fakes import tiny_layout


class Clock:
    """A clock that tests turn by hand."""

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
        with pytest.raises(LeaseHeld, match=r"in use by first .*last sign of life 30 s ago.*wait"):
            store.lease("second", clock=clock).__enter__()
    assert not store.exists(LEASE)
    with store.lease("second", clock=clock):
        assert json.loads(store.get(LEASE))["owner"] == "second"


def test_the_lease_ends_with_an_error_inside(store: Store):
    with pytest.raises(RuntimeError, match="inside"), store.lease("first"):
        raise RuntimeError("inside")
    assert not store.exists(LEASE)


def elsewhere(store: Store) -> None:
    """Make the holder look like a process of another machine."""
    store.put(LEASE, json.dumps(json.loads(store.get(LEASE)) | {"host": "elsewhere"}).encode())


def test_a_silent_holder_is_replaced_and_notices(store: Store):
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
    lease = Lease(store.files, "first", expiry=0.06)
    with lease:
        before = store.get(LEASE)
        for _ in range(200):
            if store.get(LEASE) != before:
                break
            lease._stop.wait(0.01)
        assert store.get(LEASE) != before
    assert not store.exists(LEASE)


def test_the_dead_of_this_machine_hold_nothing(store: Store):
    """A killed run can be started again at once; one elsewhere must fall silent first."""
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


def test_a_number_used_again_by_another_process_is_not_the_holder(store: Store):
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


def test_an_unreachable_place_is_not_a_lost_lease(store: Store, monkeypatch: pytest.MonkeyPatch):
    with store.lease("first") as lease:

        def down(*_: object) -> bool:
            raise OSError("unreachable")

        with monkeypatch.context() as patch:
            patch.setattr(type(store.files), "swap", down)
            assert lease.beat()
        assert lease.beat()
        assert not lease.lost
