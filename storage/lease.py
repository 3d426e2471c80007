"""A lease on a store: one planner at a time, taken over when its holder is dead or silent."""

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
"""Heartbeats in one expiry."""


class Lease:
    """Context manager. `lost` becomes true if somebody else took the lease over meanwhile."""

    def __init__(self, files: Files, owner: str, *, expiry: float = EXPIRY,
                 clock: Callable[[], float] = time.time) -> None:  # fmt: skip
        self._files = files
        self._expiry = expiry
        self._clock = clock
        self._token = uuid.uuid4().hex
        self._me = {"owner": owner, "token": self._token, **_process()}
        self._held = b""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.lost = False

    def __enter__(self) -> "Lease":
        self._take()
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat_on, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join()
        if not self.lost and self._stored() == self._held:
            self._files.delete([LEASE])

    def check(self) -> None:
        """Raise LeaseHeld if the lease was lost."""
        if self.lost:
            raise LeaseHeld(f"{self._files.url}: another run took this store over: stop one")

    def held_by_other(self) -> bool:
        """Whether somebody else holds the lease and is alive, as far as can be told."""
        stored = self._stored()
        return stored is not None and stored != self._held and not self._over(_parsed(stored))

    def _document(self) -> bytes:
        return encode_json({**self._me, "beat": self._clock()})

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
                self._refuse_living(old)
            taken = self._files.create(LEASE, document) if old is None else (
                self._files.swap(LEASE, old, document))  # fmt: skip
            if not taken:
                raise LeaseHeld(f"{self._files.url}: another run took the store just now")
        self._held = document

    def _refuse_living(self, stored: bytes) -> None:
        """Raise LeaseHeld unless the holder is silent for too long, or dead on this machine."""
        holder = _parsed(stored)
        if self._over(holder):
            return
        age = self._clock() - holder["beat"]
        raise LeaseHeld(
            f"{self._files.url}: in use by {holder['owner']} (process {holder['pid']} on "
            f"{holder['host']}, last sign of life {max(age, 0):.0f} s ago): wait or stop it; "
            f"a dead one's hold ends after {self._expiry:.0f} s"
        )

    def _over(self, holder: dict[str, Any]) -> bool:
        return self._clock() - holder["beat"] > self._expiry or _dead(holder)

    def _beat_on(self) -> None:
        while not self._stop.wait(self._expiry / BEATS):
            if not self.beat():
                return

    def beat(self) -> bool:
        """Renew the lease; False, and `lost`, if it is no longer ours."""
        document = self._document()
        try:
            renewed = self._files.swap(LEASE, self._held, document)
        except OSError:
            return True  # the place can't be reached just now: the next beat may succeed
        if renewed:
            self._held = document
        elif self._stored() != self._held:
            self.lost = True
        return not self.lost


def _process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "boot": _boot(),
            "started": _started(os.getpid())}  # fmt: skip


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Start time of a process in clock ticks since boot; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _dead(holder: dict[str, Any]) -> bool:
    """Whether the holder certainly no longer runs: it was on this machine and is gone."""
    here = holder["host"] == socket.gethostname() and holder["boot"] == _boot() != ""
    return here and _started(holder["pid"]) != holder["started"]


def _parsed(stored: bytes) -> dict[str, Any]:
    """The lease document; one that can't be read counts as long expired."""
    unknown = {"owner": "unknown", "host": "", "pid": 0, "boot": "", "started": "", "beat": 0.0}
    try:
        return unknown | json.loads(stored)
    except (ValueError, TypeError):
        return unknown
