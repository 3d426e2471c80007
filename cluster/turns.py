"""A store's lease for runs on a cluster, which wait for the lease of a dead run, never for that of a living one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from storage import Store
from storage.errors import LeaseHeld
from storage.keys import LEASE
from storage.lease import BEATS, EXPIRY

LOOK_S = 1.5 * EXPIRY / BEATS
"""Seconds between two looks at a lease; a living holder renews it in between."""


@contextmanager
def lease(
    store: Store,
    owner: str,
    *,
    wait: bool,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> Iterator[None]:
    """Hold the store's lease inside the block.

    A driver that was killed together with its machine leaves its lease behind, and the retry
    arrives before the lease expires. With `wait`, wait for the expiry unless the holder renews the lease.

    Raises LeaseHeld if the holder is alive; without `wait`, also if it is not known to be dead.
    """
    with ExitStack() as stack:
        seen = None
        while True:
            try:
                stack.enter_context(store.lease(owner, clock=clock))
                break
            except LeaseHeld:
                try:
                    document = store.get(LEASE)
                except FileNotFoundError:
                    document = b""  # the holder has just left
                if not wait or seen not in (None, document):
                    raise
                seen = document
            sleep(LOOK_S)
        yield
