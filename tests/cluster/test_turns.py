"""A run on a cluster waits for the lease of a dead run, but not for that of a living one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from cluster import turns
from storage import Layout, SiteShape, Store
from storage.errors import LeaseHeld
from storage.keys import LEASE
from storage.lease import EXPIRY


@pytest.fixture
def store(tmp_path: Path) -> Store:
    layout = Layout(samples=2, shard=2, variants=("trained",), sites=(SiteShape("mid.0", 4, 2),), image=(8, 8),
                    latent=(4, 2, 2))  # fmt: skip
    return Store.create(str(tmp_path / "run"), layout)


START = 1_000_000


class Elsewhere:
    """A run on another machine that holds the lease; while it lives it renews the lease every 20 s."""

    def __init__(self, store: Store, lives_s: float) -> None:
        self.store, self.lives_s, self.now = store, lives_s, START
        self.renew()

    def renew(self) -> None:
        document = {"owner": "holder", "token": "t", "host": "elsewhere", "pid": 1, "boot": "b", "started": "1"}
        self.store.put(LEASE, json.dumps({**document, "beat": self.now}).encode())

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.now += 1
            if self.now - START <= self.lives_s and (self.now - START) % 20 == 0:
                self.renew()

    def wait(self, wait: bool = True) -> Any:
        return turns.lease(self.store, "ours", wait=wait, sleep=self.sleep, clock=self.clock)


@pytest.mark.parametrize("lives_s", [0, 25])
def test_a_dead_runs_lease_is_waited_for(store: Store, lives_s: float) -> None:
    holder = Elsewhere(store, lives_s=lives_s)
    if lives_s:
        with pytest.raises(LeaseHeld), holder.wait():
            pass
    with holder.wait():
        assert json.loads(store.get(LEASE))["owner"] == "ours"
    assert EXPIRY <= holder.now - START - (20 if lives_s else 0) <= EXPIRY + turns.LOOK_S
    assert not store.exists(LEASE)


def test_a_living_runs_lease_is_refused_soon(store: Store) -> None:
    holder = Elsewhere(store, lives_s=math.inf)
    with pytest.raises(LeaseHeld, match="in use by holder"), holder.wait():
        pass
    assert holder.now - START <= 2 * turns.LOOK_S
    assert json.loads(store.get(LEASE))["owner"] == "holder"


def test_without_a_cluster_a_run_does_not_wait(store: Store) -> None:
    holder = Elsewhere(store, lives_s=0)
    with pytest.raises(LeaseHeld), holder.wait(wait=False):
        pass
    assert holder.now == START


def test_an_exception_in_the_block_passes_and_the_lease_is_released(store: Store) -> None:
    with pytest.raises(KeyError), turns.lease(store, "ours", wait=True):
        raise KeyError("x")
    with turns.lease(store, "ours", wait=False):
        assert store.exists(LEASE)
