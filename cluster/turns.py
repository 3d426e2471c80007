"""A store's lease for runs on a cluster: a run waits for one that died elsewhere, never for a living one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from storage import Store
from storage.errors import LeaseHeld
from storage.keys import LEASE
from storage.lease import BEATS, EXPIRY

LOOK_S = 1.5 * EXPIRY / BEATS
"""Between two looks at a lease, a holder that lives has given a sign of life."""


@contextmanager
def lease(
    store: Store, owner: str, *, wait: bool, sleep: Callable[[float], None] = time.sleep, **options: Any
) -> Iterator[None]:
    """Hold the store's lease inside the block.

    A driver that was killed with its machine leaves its lease behind, and the retry comes sooner than
    the lease expires. With `wait` it is waited for, as long as its holder shows no sign of life.
    `options` are those of `Store.lease`.

    Raises:
        LeaseHeld: by a living holder; without `wait` by any that is not known to be dead.
    """
    with ExitStack() as stack:
        seen = None
        while True:
            try:
                stack.enter_context(store.lease(owner, **options))
                break
            except LeaseHeld:
                now = _document(store)
                if not wait or seen not in (None, now):
                    raise
                seen = now
            sleep(LOOK_S)
        yield


def _document(store: Store) -> bytes:
    """What the holder has written last; nothing where it has just left."""
    try:
        return store.get(LEASE)
    except FileNotFoundError:
        return b""
