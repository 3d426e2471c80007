"""The lease: one planner at a time; another takes over from a dead or silent one, which then writes nothing more."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import storage
from storage import LeaseHeld, Store, Unavailable
from storage.backends import open_files
from storage.keys import LEASE
from storage.lease import BEATS, EXPIRY, LOOKS, Follower, Lease, follow, held_tokens
from support.storage_fakes import contents, fill_shard, noise, tiny_layout

ROOT = Path(__file__).parents[2]


class Clock:
    """A clock that tests set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Watch:
    """The time that a planner spends watching; meanwhile the holder may renew its lease at every heartbeat."""

    def __init__(self, renew: Callable[[], object] = lambda: None) -> None:
        self.slept, self.renew = 0.0, renew

    def __call__(self, seconds: float) -> None:
        beat, before = EXPIRY / BEATS, self.slept
        self.slept += seconds
        if int(before / beat) < int(self.slept / beat):
            self.renew()


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty tiny store of each kind."""
    local = request.param == "local"
    url = str(tmp_path / "out") if local else f"memory://{uuid.uuid4().hex}"
    return Store.create(url, tiny_layout(), durable=False)


def stored(store: Store) -> dict[str, Any]:
    """The lease document."""
    return json.loads(store.get(LEASE))


def hold(store: Store, **changes: object) -> None:
    """Write the lease of another planner: by default of a process like this one on another machine."""
    url = f"memory://{uuid.uuid4().hex}"
    with storage.hold(url, "other"):
        document = json.loads(open_files(url).get(LEASE))
    store.files.put(LEASE, [json.dumps(document | {"token": "t", "host": "elsewhere"} | changes).encode()])


def ours(store: Store, watch: Watch | None = None) -> Lease:
    """A planner that wants the lease."""
    return Lease(store.files, "ours", sleep=watch or Watch())


@contextmanager
def child(*, state: str) -> Iterator[int]:
    """Process id of a child that runs, is stopped, or has ended without its parent noticing."""
    process = subprocess.Popen(["true" if state == "ended" else "cat"], stdin=subprocess.PIPE)
    try:
        if state == "stopped":
            process.send_signal(signal.SIGSTOP)
        wanted, end = {"stopped": "T", "ended": "Z", "running": "RSD"}[state], time.monotonic() + 10
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] not in wanted:
            assert time.monotonic() < end
            time.sleep(0.01)
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def start_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def on_this_machine(pid: int) -> dict[str, object]:
    """What names a process of this machine in a lease document."""
    return {"host": os.uname().nodename, "pid": pid, "started": start_of(pid)}


def test_one_holder_at_a_time(store: Store):
    watch = Watch()
    with store.lease("first"):
        with pytest.raises(LeaseHeld, match=rf"in use by first \(process {os.getpid()} on .*wait until it has ended"):
            ours(store, watch).__enter__()
        assert stored(store)["owner"] == "first"
    assert watch.slept == 0  # a running process of this machine is known to live
    assert not store.exists(LEASE)
    with store.lease("second"):
        assert stored(store)["owner"] == "second"


def test_the_lease_of_a_store_that_does_not_exist_yet(tmp_path: Path):
    url = str(tmp_path / "new")
    with storage.hold(url, "first"):
        with pytest.raises(LeaseHeld):
            storage.hold(url, "second").__enter__()
        Store.create(url, tiny_layout())
    assert not Store.open(url).exists(LEASE)


def test_the_lease_ends_with_an_error_inside(store: Store):
    with pytest.raises(RuntimeError, match="inside"), store.lease("first"):
        raise RuntimeError("inside")
    assert not store.exists(LEASE)


@pytest.mark.parametrize("ahead_s", [0, 200, 6 * 3600, -6 * 3600, -1e9])
def test_a_holder_elsewhere_is_judged_by_watching_whatever_its_clock_says(store: Store, ahead_s: float, caplog: Any):
    beat = time.time() + ahead_s
    hold(store, beat=beat)
    watch = Watch(lambda: hold(store, beat=beat + watch.slept))
    with caplog.at_level(logging.WARNING), pytest.raises(LeaseHeld, match="in use by other"):
        ours(store, watch).__enter__()
    assert watch.slept <= EXPIRY / BEATS + EXPIRY / BEATS / LOOKS
    assert "to see whether other (process" in caplog.text
    silent = Watch()
    with ours(store, silent):
        assert stored(store)["owner"] == "ours"
    assert EXPIRY <= silent.slept <= EXPIRY * 1.1


def test_a_holder_that_leaves_while_one_watches_is_followed(store: Store):
    hold(store)
    watch = Watch(lambda: store.files.delete([LEASE]))
    with ours(store, watch):
        assert stored(store)["owner"] == "ours"
    assert watch.slept <= 2 * EXPIRY / BEATS


@pytest.mark.parametrize("state", ["running", "stopped", "ended"])
def test_a_process_of_this_machine_is_known_to_live_or_to_be_dead_unless_it_is_stopped(store: Store, state: str):
    watch = Watch()
    with child(state=state) as pid:
        hold(store, **on_this_machine(pid))
        if state == "running":
            with pytest.raises(LeaseHeld, match=f"process {pid} on"):
                ours(store, watch).__enter__()
        else:
            with ours(store, watch):
                assert stored(store)["owner"] == "ours"
    assert (watch.slept > 0) == (state == "stopped")


@pytest.mark.parametrize("change", [{"started": "1"}, {"pid": 2**22 + 1}])
def test_a_process_that_is_gone_is_replaced_at_once_also_if_its_id_is_in_use_again(store: Store, change: dict):
    watch = Watch()
    hold(store, **on_this_machine(os.getpid()) | change)
    with ours(store, watch):
        assert stored(store)["owner"] == "ours"
    assert watch.slept == 0


@pytest.mark.parametrize("change", [{"namespace": "pid:[1]"}, {"namespace": ""}, {"boot": "another"}, {"boot": ""}])
@pytest.mark.parametrize("pid", [{"pid": 2**22 + 1}, {}])
def test_process_ids_of_another_container_or_boot_prove_nothing(store: Store, change: dict, pid: dict):
    """Neither that its holder is dead, for such an id is free here, nor that it lives, for it is taken here."""
    process = on_this_machine(os.getpid()) | change | pid
    hold(store, **process)
    watch = Watch(lambda: hold(store, **process, beat=watch.slept))
    with pytest.raises(LeaseHeld):
        ours(store, watch).__enter__()
    assert watch.slept > 0
    with ours(store):
        assert stored(store)["owner"] == "ours"


@pytest.mark.parametrize("document", [b"garbage", b"[]", b"\xff", b'{"pid": "x", "beat": null, "owner": 3}'])
def test_an_unreadable_lease_does_not_block_for_ever(store: Store, document: bytes):
    store.files.put(LEASE, [document])
    assert store.in_use() is False
    with ours(store):
        assert stored(store)["owner"] == "ours"


@pytest.mark.parametrize("step", ["create", "swap"])
def test_a_lease_that_was_written_though_the_answer_was_lost_is_held(
    store: Store, step: str, monkeypatch: pytest.MonkeyPatch
):
    hold(store) if step == "swap" else None
    write = getattr(type(store.files), step)

    def unanswered(*args: object) -> bool:
        write(*args)
        return False

    with monkeypatch.context() as patch:
        patch.setattr(type(store.files), step, unanswered)
        lease = ours(store)
        with lease:
            assert stored(store)["owner"] == "ours"
            assert lease.beat()
            lease.check()
            store.put("note", b"x")
    assert not store.exists(LEASE)


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
@pytest.mark.parametrize("opened_by", ["planner", "worker", "worker elsewhere"])
def test_a_planner_that_lost_its_lease_writes_nothing(store: Store, write: Callable[[Store], object], opened_by: str):
    """Nor does a worker, in its process or in another one. All notice the loss without a heartbeat."""
    clock = Clock()
    user = store if opened_by == "planner" else storage.open(store.url)
    lease = Lease(store.files, "first", clock=clock)
    lease.__enter__()
    message = "another run took this store over"
    if opened_by == "worker elsewhere":
        token, message = held_tokens()[store.url], "no longer holds the store"
        lease.__exit__(None, None, None)
        store.files.put(LEASE, [json.dumps({"token": token}).encode()])
        follow({store.url: token})
    user.write_images("trained", 0, noise(0, (4, 8, 6, 3), "uint8"))
    clock.now += 121
    store.files.put(LEASE, [json.dumps({"token": "another"}).encode()])
    before = contents(store)
    try:
        if opened_by == "worker elsewhere":
            follow({store.url: token})  # as if a heartbeat's time had passed
        with pytest.raises(LeaseHeld, match=message):
            write(user)
        assert contents(store) == before
    finally:
        follow({})
        if opened_by != "worker elsewhere":
            lease.__exit__(None, None, None)
    assert contents(store) == before


def test_a_worker_reads_the_lease_once_per_heartbeat(store: Store, monkeypatch: pytest.MonkeyPatch):
    clock, reads = Clock(), []
    with store.lease("planner"):
        follower = Follower(store.url, held_tokens()[store.url], clock=clock)
        get = type(store.files).get
        monkeypatch.setattr(type(store.files), "get", lambda *args: reads.append(args) or get(*args))
        for _ in range(5):
            follower.check()
            clock.now += 5
        assert len(reads) == 2


def test_whatever_breaks_after_the_loss_the_loss_is_reported(store: Store):
    lease = Lease(store.files, "first")

    def lose() -> None:
        with lease:
            hold(store)
            assert not lease.beat()
            raise RuntimeError("Tune failed")

    with pytest.raises(LeaseHeld, match="another run took this store over"):
        lose()
    assert stored(store)["owner"] == "other"


def test_a_holder_that_was_silent_but_not_replaced_works_on(store: Store):
    clock = Clock()
    with Lease(store.files, "first", clock=clock):
        clock.now += 500
        store.put("note", b"x")
    assert store.get("note") == b"x"


PLANNER = """
import sys, storage
from storage.lease import Lease
from support.storage_fakes import fill_shard
store = storage.open(sys.argv[1])
with Lease(store.files, "first", expiry=float(sys.argv[2])):
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
    second = Store.open(store.url)
    with Lease(second.files, "second", expiry=expiry):
        fill_shard(store, "trained", 2)
        before = {path: data for path, data in contents(store).items() if path != LEASE}
        planner.send_signal(signal.SIGCONT)
        _, error = planner.communicate("go on\n", timeout=60)
        assert planner.returncode == 1
        assert "LeaseHeld" in error.strip().splitlines()[-1]
        assert stored(store)["owner"] == "second"
        assert {path: data for path, data in contents(store).items() if path != LEASE} == before
    assert store.completed("sample", "trained") == {0, 2}


def test_heartbeats_come_by_themselves(store: Store):
    with Lease(store.files, "first", expiry=0.06):
        before, end = store.get(LEASE), time.monotonic() + 10
        while store.get(LEASE) == before:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert not store.exists(LEASE)


def test_an_unreachable_store_does_not_lose_the_lease(store: Store, monkeypatch: pytest.MonkeyPatch):
    with store.lease("first") as lease:
        for error in (OSError, Unavailable):

            def down(*_: object, error: type[Exception] = error) -> bool:
                raise error("unreachable")

            with monkeypatch.context() as patch:
                patch.setattr(type(store.files), "swap", down)
                assert lease.beat()
            assert lease.beat()
        assert not lease.lost


def test_an_unexpected_error_on_the_heartbeat_thread_loses_the_lease(store: Store, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> bool:
        raise RuntimeError("no such thing")

    raised = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    with Lease(store.files, "first", expiry=0.06) as lease:
        with monkeypatch.context() as patch:
            patch.setattr(type(store.files), "swap", broken)
            lease._thread.join(10)
        assert lease.lost
        with pytest.raises(LeaseHeld, match=r"could not be renewed \(RuntimeError: no such thing\)"):
            store.put("note", b"x")
    assert not store.exists("note")
    assert raised == []
