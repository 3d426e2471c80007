"""A lease on a store: one planner at a time; another may take over when the holder is dead or silent."""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storage.backends.files import Files
from storage.errors import LeaseHeld
from storage.format import encode_json
from storage.keys import LEASE

EXPIRY = 120.0
"""Seconds without a heartbeat after which a lease may be taken over."""
BEATS = 6
"""Heartbeats per expiry."""


Holder = dict[str, Any]
"""Content of `lease.json`, section 7 of FORMAT.md."""
_UNKNOWN: Holder = {"owner": "unknown", "host": "", "pid": 0, "boot": "", "started": "", "beat": 0.0}


class Lease:
    """Context manager that holds the lease of a store and renews it from a thread.

    Entering raises LeaseHeld if another planner holds it.
    """

    def __init__(self, files: Files, owner: str, *, expiry: float = EXPIRY, clock: Callable[[], float] = time.time):
        self.url = files.url
        self._files = files
        self._expiry = expiry
        self._clock = clock
        self._pid = os.getpid()
        process = {"host": socket.gethostname(), "pid": self._pid, "boot": _boot(), "started": _started(self._pid)}
        self._holder = process | {"owner": owner, "token": uuid.uuid4().hex}
        self._held = b""
        """The document that this lease wrote last."""
        self._confirmed = 0.0
        """When the store was last seen to hold that document."""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_stopped, name="lease", daemon=True)
        self.lost = False
        """Whether another planner took the lease over."""

    def __enter__(self) -> "Lease":
        self._take()
        self._thread.start()
        _held_here.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _held_here.remove(self)
        self._stop.set()
        self._thread.join()
        if not self.lost and self._stored() == self._held:
            self._files.delete([LEASE])
        self._held = b""

    def check(self) -> None:
        """Raise LeaseHeld if another planner took the lease over, as it may after a pause of this process.

        Reads the store only if no heartbeat succeeded lately. Passes if the lease is not held, and in
        forked children, which are workers.
        """
        if os.getpid() != self._pid:
            return
        # By the wall clock, which also runs while the process or the machine is suspended.
        fresh = 0 <= self._clock() - self._confirmed < self._expiry / BEATS
        if self._held and not (self.lost or fresh):
            with self._lock:
                self._confirm()
        if self.lost:
            raise LeaseHeld(
                f"{self.url}: another run took this store over while this one was paused or out of reach; "
                "this one stops and writes nothing more: let the other finish, or stop it and run again"
            )

    def beat(self) -> bool:
        """Renew the lease; return whether it is still ours, as far as the store can be reached."""
        with self._lock:
            document = self._document()
            try:
                if self._files.swap(LEASE, self._held, document):
                    self._held, self._confirmed = document, self._clock()
                else:
                    self._confirm()
            except OSError:
                pass  # the next beat may reach the store
            return not self.lost

    def held_by_other(self) -> bool:
        """Whether another planner that is alive, as far as can be known, holds the lease."""
        stored = self._stored()
        return stored is not None and stored != self._held and not self._over(_parsed(stored))

    def _confirm(self) -> None:
        if self._stored() == self._held:
            self._confirmed = self._clock()
        else:
            self.lost = True

    def _document(self) -> bytes:
        return encode_json(self._holder | {"beat": self._clock()})

    def _stored(self) -> bytes | None:
        try:
            return self._files.get(LEASE)
        except FileNotFoundError:
            return None

    def _take(self) -> None:
        document = self._document()
        if not self._files.create(LEASE, document):
            old = self._stored()
            if old is not None:
                self._refuse_living(_parsed(old))
            # None: the holder has just left.
            if not (self._files.create(LEASE, document) if old is None else self._files.swap(LEASE, old, document)):
                raise LeaseHeld(f"{self.url}: another run took the store just now")
        self._held, self._confirmed = document, self._clock()

    def _refuse_living(self, holder: Holder) -> None:
        if self._over(holder):
            return
        age = self._clock() - holder["beat"]
        raise LeaseHeld(
            f"{self.url}: in use by {holder['owner']} (process {holder['pid']} on "
            f"{holder['host']}, last heartbeat {max(age, 0):.0f} s ago): wait or stop it; "
            f"the lease of a dead run ends after {self._expiry:.0f} s"
        )

    def _over(self, holder: Holder) -> bool:
        """Whether the lease may be taken over: silent for too long, or certainly gone from this machine."""
        here = holder["host"] == socket.gethostname() and holder["boot"] == _boot() != ""
        dead = here and _started(holder["pid"]) != holder["started"]
        return dead or self._clock() - holder["beat"] > self._expiry

    def _beat_until_stopped(self) -> None:
        while not self._stop.wait(self._expiry / BEATS) and self.beat():
            pass


_held_here: list[Lease] = []
"""Leases held by this process, so that workers inside it, which open stores of their own, respect them too."""


def lease_guarding(url: str) -> Lease | None:
    """The lease by which this process holds the store at `url`, or the store around it; None if there is none.

    A worker in another process has none and works on.
    """
    held = (lease for lease in reversed(_held_here) if f"{url}/".startswith(f"{lease.url}/"))
    return next(held, None)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Start time of a process in clock ticks since boot; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _parsed(stored: bytes) -> Holder:
    """The lease document; one that can't be read counts as long expired."""
    try:
        return _UNKNOWN | json.loads(stored)
    except (ValueError, TypeError):
        return _UNKNOWN
