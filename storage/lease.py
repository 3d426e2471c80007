"""A lease on a store: one planner at a time; another may take over when the holder is dead or silent."""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from storage.backends import open_files
from storage.backends.files import Files
from storage.errors import LeaseHeld
from storage.format import encode_json
from storage.keys import LEASE

EXPIRY = 120.0
"""Seconds that the document has to stay the same, while one watches, before a lease may be taken over."""
BEATS = 6
"""Heartbeats per expiry."""
LOOKS = 4
"""Looks per heartbeat of a planner that watches another's lease."""

Holder = dict[str, Any]
"""Content of `lease.json`, section 7 of FORMAT.md."""
_UNKNOWN: Holder = {
    "owner": "unknown", "token": "", "host": "", "boot": "", "namespace": "", "pid": 0, "started": "", "beat": 0.0,
}  # fmt: skip

logger = logging.getLogger(__name__)


def now() -> float:
    """Seconds of a clock that nobody sets and that also runs while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Guard(Protocol):
    """What stands before every write to a store."""

    url: str

    def check(self) -> None:
        """Raise LeaseHeld if another planner took the lease over."""
        ...


class Lease:
    """Context manager that holds the lease of a store and renews it from a thread.

    Entering raises LeaseHeld if another planner holds it. Whether that one lives is judged by whether its
    document changes, never by comparing clocks of two machines. So entering takes up to a heartbeat
    if the holder lives elsewhere, and up to `expiry` if it died elsewhere.
    """

    def __init__(
        self,
        files: Files,
        owner: str,
        *,
        expiry: float = EXPIRY,
        clock: Callable[[], float] = now,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.url = files.url
        self._files = files
        self._expiry = expiry
        self._clock, self._sleep = clock, sleep
        self._pid = os.getpid()
        process: Holder = {"host": socket.gethostname(), "boot": _boot(), "namespace": _namespace()}
        process |= {"pid": self._pid, "started": _stat(self._pid)[1]}
        self.token = uuid.uuid4().hex
        self._holder = process | {"owner": owner, "token": self.token}
        self._held = b""
        """The document that this lease wrote last."""
        self._confirmed = 0.0
        """When the store was last seen to hold a document of this lease."""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_stopped, name="lease", daemon=True)
        self.lost = False
        """Whether another planner took the lease over, or renewing it failed for good."""
        self._problem = "another run took this store over while this one was paused or out of reach"
        """Why it was lost, if it was."""

    def __enter__(self) -> "Lease":
        self._take()
        self._thread.start()
        _guards.append(self)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        _guards.remove(self)
        self._stop.set()
        self._thread.join()
        with suppress(OSError):  # the lease then ends by its expiry
            if not self.lost and _token(self._stored()) == self.token:
                self._files.delete([LEASE])
        self._held = b""
        if self.lost and isinstance(error, Exception) and not isinstance(error, LeaseHeld):
            raise LeaseHeld(self._loss()) from error  # whatever broke, the loss is the reason to stop

    def check(self) -> None:
        """Raise LeaseHeld if another planner took the lease over, as it may after a pause of this process.

        Reads the store only if no heartbeat succeeded lately. Passes if the lease is not held, and in
        forked children, which are workers.
        """
        if os.getpid() != self._pid:
            return
        fresh = 0 <= self._clock() - self._confirmed < self._expiry / BEATS
        if self._held and not (self.lost or fresh):
            with self._lock:
                self._confirm()
        if self.lost:
            raise LeaseHeld(self._loss())

    def _loss(self) -> str:
        return (
            f"{self.url}: {self._problem}; this one stops and writes nothing more: "
            "let the other finish, or stop it and run again"
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
            except OSError as error:
                logger.info("%s: a heartbeat failed, the next may succeed: %s", self.url, error)
            except Exception as error:  # whatever it is: nobody would renew the lease after this thread
                self.lost, self._problem = True, f"its lease could not be renewed ({type(error).__name__}: {error})"
            return not self.lost

    def held_by_other(self) -> bool:
        """Whether another planner seems to hold the lease. For display: unlike entering, it does not watch."""
        stored = self._stored()
        if stored is None or _token(stored) == self.token:
            return False
        holder = _parsed(stored)
        alive = _lives(holder)
        return abs(time.time() - holder["beat"]) <= self._expiry if alive is None else alive

    def _confirm(self) -> None:
        """Note that the store holds a document of this lease, perhaps one whose writing was not answered, or a loss."""
        stored = self._stored()
        if stored is not None and _token(stored) == self.token:
            self._held, self._confirmed = stored, self._clock()
        else:
            self.lost = True

    def _document(self) -> bytes:
        return encode_json(self._holder | {"beat": time.time()})

    def _stored(self) -> bytes | None:
        try:
            return self._files.get(LEASE)
        except FileNotFoundError:
            return None

    def _take(self) -> None:
        document, watched, looks = self._document(), b"", 0
        while not self._files.create(LEASE, document):
            stored = self._stored()
            if stored is None:
                continue  # the holder has just left
            if _token(stored) == self.token:
                break  # written, but the answer was lost
            holder = _parsed(stored)
            alive = _lives(holder)
            who = f"{holder['owner']} (process {holder['pid']} on {holder['host']})"
            if alive or (watched and stored != watched):
                raise LeaseHeld(f"{self.url}: in use by {who}: wait until it has ended, or stop it")
            if alive is None and looks <= BEATS * LOOKS:
                if not looks:
                    logger.warning("%s: waiting up to %.0f s to see whether %s is alive", self.url, self._expiry, who)
                watched, looks = stored, looks + 1
                self._sleep(self._expiry / BEATS / LOOKS)
            elif self._files.swap(LEASE, stored, document):
                break
        self._held, self._confirmed = document, self._clock()

    def _beat_until_stopped(self) -> None:
        while not self._stop.wait(self._expiry / BEATS) and self.beat():
            pass


def hold(url: str, owner: str) -> Lease:
    """`with hold(url, owner):` is the lease of a store that need not exist yet."""
    return Lease(open_files(url), owner)


class Follower:
    """Respects, in a worker's process, the lease of the planner that the worker belongs to."""

    def __init__(self, url: str, token: str, *, expiry: float = EXPIRY, clock: Callable[[], float] = now):
        self.url, self.token = url, token
        self._files, self._recent, self._clock = open_files(url), expiry / BEATS, clock
        self._confirmed = -expiry

    def check(self) -> None:
        """Raise LeaseHeld if the planner no longer holds the lease. Reads the store at most once per heartbeat."""
        if 0 <= self._clock() - self._confirmed < self._recent:
            return
        try:
            stored = self._files.get(LEASE)
        except FileNotFoundError:
            stored = None
        if _token(stored) != self.token:
            raise LeaseHeld(f"{self.url}: this worker's run no longer holds the store; it writes nothing more")
        self._confirmed = self._clock()


_guards: list[Guard] = []
"""Leases held by this process, and those that it follows. Workers inside it open stores of their own and respect
them too."""


def guarding(url: str) -> list[Guard]:
    """The leases by which this process, or the planner that it works for, holds the store at `url` or one around it."""
    return [guard for guard in _guards if f"{url}/".startswith(f"{guard.url}/")]


def held_tokens() -> dict[str, str]:
    """URL -> token of the leases of this process, for `follow` in its workers' processes."""
    return {guard.url: guard.token for guard in _guards if isinstance(guard, Lease)}


def follow(tokens: Mapping[str, str]) -> None:
    """Make this process write only while these leases are held, until the next call."""
    _guards[:] = [guard for guard in _guards if isinstance(guard, Lease)]
    own = held_tokens()
    _guards.extend(Follower(url, token) for url, token in tokens.items() if url not in own)


def unshared(tokens: Mapping[str, str]) -> str:
    """Why this machine does not share the stores that a planner holds, in one line; empty if it does.

    A folder of the same path that is another one on this machine has no lease.
    """
    for url in tokens:
        try:
            open_files(url).get(LEASE)
        except FileNotFoundError:
            return f"{url} is another folder there"
        except OSError as error:
            return f"{url} can't be read there: {error}"
    return ""


def _lives(holder: Holder) -> bool | None:
    """Whether the process of a holder runs; None if that can't be known: it is elsewhere, or stopped.

    Process ids count only within one namespace of one running kernel.
    """
    here = (holder["host"], holder["boot"], holder["namespace"]) == (socket.gethostname(), _boot(), _namespace())
    if not here or "" in (holder["boot"], holder["namespace"]):
        return None
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it runs as another user
    state, started = _stat(holder["pid"])
    if state in ("Z", "X") or started not in ("", holder["started"]):
        return False
    return True if started and state not in ("T", "t") else None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    """The namespace of this process's id; containers on one machine have their own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _stat(pid: int) -> tuple[str, str]:
    """State of a process as one letter, and its start time in clock ticks since boot; empty if they can't be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "", ""


def _parsed(stored: bytes) -> Holder:
    """The lease document, with defaults for entries that are absent or of another type."""
    try:
        document = json.loads(stored)
    except ValueError:
        document = None
    known = document if isinstance(document, dict) else {}
    return _UNKNOWN | {name: known[name] for name in _UNKNOWN if type(known.get(name)) is type(_UNKNOWN[name])}


def _token(stored: bytes | None) -> str:
    """The token in a lease document; empty if there is none."""
    return "" if stored is None else _parsed(stored)["token"]
