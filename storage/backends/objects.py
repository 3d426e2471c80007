"""Files in an object store (S3, GCS, Azure) or in memory, through obstore."""

from array import array
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import wraps
from itertools import pairwise
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote

import numpy as np
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError
from obstore.store import MemoryStore, ObjectStore, from_url

from storage.backends.files import Entry, Files, checked_path
from storage.codec import Part, crc32c
from storage.errors import Unavailable
from storage.keys import is_foreign

P = ParamSpec("P")
R = TypeVar("R")

MOST_DELETIONS = 1000
"""Most files per request for deletion; S3 allows no more."""
FEW_SHARDS = 8
"""Up to this number of an array's shards are listed one by one; for more, the array is listed once."""

URL_SAFE = "/:%@!$&'()*+,;=~"
"""Characters of a URL that keep their meaning; without this, `#` and `?` in a name would end the URL unseen."""

NO_CREDENTIALS = {
    "/latest/api/token": "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role",
    "/latest/meta-data": "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role",
    "metadata.google": "no credentials: set GOOGLE_APPLICATION_CREDENTIALS, or give this machine a role",
    "/metadata/identity": "no credentials: set AZURE_STORAGE_ACCOUNT_KEY, or give this machine an identity",
}
FIXES = NO_CREDENTIALS | {
    "NoSuchBucket": "there is no such bucket; create it, or give output=ANOTHER",
    "403": "access denied; give credentials that may read and write there",
    "401": "access denied; give credentials that may read and write there",
}
"""part of a service's message -> what it means to a user"""

IMPATIENT: dict[str, Any] = {
    "client_options": {"connect_timeout": "3s", "timeout": "5s"},
    "retry_config": {"max_retries": 1, "retry_timeout": timedelta(seconds=5)},
}
"""of the first request to a bucket"""

_memories: dict[str, MemoryStore] = {}
_asked: set[str] = set()
"""buckets that this process has asked"""


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Raise every error of the service but those of absent and present files as Unavailable."""
    try:
        yield
    except (FileNotFoundError, NotFoundError) as error:
        if "NoSuchBucket" not in str(error):
            raise
        raise Unavailable(f"{url}: {_reason(error)}") from error
    except BaseError as error:
        raise Unavailable(f"{url}: {_reason(error)}") from error


def _mapped(method: Callable[P, R]) -> Callable[P, R]:
    """The method of an ObjectFiles, with its errors as in `_translated`."""

    @wraps(method)
    def mapped(*args: P.args, **options: P.kwargs) -> R:
        with _translated(args[0].url):  # type: ignore[attr-defined]
            return method(*args, **options)

    return mapped


def _reason(error: Exception) -> str:
    """One line from a service's message of many."""
    text = str(error)
    first = " ".join(text.partition("Debug source:")[0].split())[:200]
    fix = next((fix for part, fix in FIXES.items() if part in text), "")
    return f"{fix} ({first})" if fix else f"the object store does not do its part: {first}"


def _check_credentials(url: str) -> None:
    """Raise Unavailable if there are no credentials, by one request that is not repeated for minutes.

    Without any in the environment they are asked of the machine's metadata service. Where there is none, as on a
    laptop, every attempt times out, and the retries that a busy bucket needs would take three minutes.
    """
    bucket = "/".join(url.split("/")[:3])
    if bucket in _asked:
        return
    try:
        obstore.head(from_url(quote(url, safe=URL_SAFE), **IMPATIENT), "layout.json")
    except (BaseError, FileNotFoundError) as error:
        if any(part in str(error) for part in NO_CREDENTIALS):
            raise Unavailable(f"{url}: {_reason(error)}") from error
    _asked.add(bucket)


class ObjectFiles(Files):
    """Files in an object store. Each is written by one PUT, so it appears whole or not at all."""

    threads = 8
    readers = 32

    def __init__(self, url: str, store: ObjectStore | None = None) -> None:
        self.url = url
        if store is None and url.startswith("memory://"):
            store = _memories.setdefault(url, MemoryStore())
        if store is None:
            # Retries for three minutes what may succeed on a retry (500, 503, timeouts).
            retries: Any = {"max_retries": 20, "retry_timeout": timedelta(minutes=3)}
            try:
                store = from_url(quote(url, safe=URL_SAFE), retry_config=retries)
                _check_credentials(url)
            except (BaseError, ValueError) as error:
                raise ValueError(f"{url}: not the URL of a place in a bucket: {str(error).splitlines()[0]}") from error
        self.store = store

    def __reduce__(self) -> tuple:
        return ObjectFiles, (self.url,)

    @_mapped
    def put(self, path: str, parts: Sequence[Part], *, sync: bool = False) -> None:
        obstore.put(self.store, checked_path(path), b"".join(parts), use_multipart=False)

    @_mapped
    def get(self, path: str) -> bytes:
        return obstore.get(self.store, checked_path(path)).bytes().to_bytes()

    @_mapped
    def read_chunk(self, path: str, body: np.ndarray, tail: np.ndarray) -> tuple[int, int]:
        data = np.frombuffer(memoryview(obstore.get(self.store, checked_path(path)).bytes()), np.uint8)
        if data.nbytes != body.nbytes + tail.nbytes:
            return data.nbytes, 0
        body[:], tail[:] = data[: body.nbytes], data[body.nbytes :]
        return data.nbytes, crc32c(body)

    @_mapped
    def create(self, path: str, data: bytes) -> bool:
        try:
            obstore.put(self.store, checked_path(path), data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    @_mapped
    def swap(self, path: str, old: bytes, new: bytes) -> bool:
        try:
            current = obstore.get(self.store, checked_path(path))
            if current.bytes().to_bytes() != old:
                return False
            # The service refuses the PUT if the entity tag or version has changed since.
            version: Any = {key: current.meta[key] for key in ("e_tag", "version") if current.meta[key] is not None}
            obstore.put(self.store, path, new, mode=version, use_multipart=False)
        except (FileNotFoundError, NotFoundError, PreconditionError):
            return False
        return True

    @_mapped
    def size(self, path: str) -> int | None:
        try:
            return obstore.head(self.store, checked_path(path))["size"]
        except (FileNotFoundError, NotFoundError):
            return None

    def walk(self, prefix: str = "") -> Iterator[Entry]:
        # obstore lists whole path segments, so the last one, which may be incomplete, is matched here.
        with _translated(self.url):
            for batch in obstore.list(self.store, prefix.rpartition("/")[0] or None):
                for meta in batch:
                    path, size = meta["path"], meta["size"]
                    if path.startswith(prefix) and not any(map(is_foreign, path.split("/"))):
                        yield Entry(path, size, hash((meta["e_tag"], meta["last_modified"], size)))

    def intact(self, groups: Iterable[Mapping[str, int]]) -> Iterator[bool]:
        """Lists arrays, a thousand chunks in a request, and compares hashes of (path, size)."""
        recorded, ends = array("q"), array("q", [0])
        shards: dict[str, set[str]] = defaultdict(set)
        for group in groups:
            for path, size in group.items():
                recorded.append(hash((path, size)))
                folder, _, index = path.rpartition("/c/")
                if len(shards[folder]) <= FEW_SHARDS:
                    shards[folder].add(f"{folder}/c/{index.partition('/')[0]}/")
            ends.append(len(recorded))
        stored = array("q")
        for folder, few in shards.items():
            for prefix in few if len(few) <= FEW_SHARDS else [f"{folder}/c/"]:
                stored.extend(hash((entry.path, entry.size)) for entry in self.walk(prefix))
        found = _isin(recorded, stored)
        return (bool(found[start:end].all()) for start, end in pairwise(ends))

    @_mapped
    def delete(self, paths: Iterable[str]) -> None:
        pending = [checked_path(path) for path in paths]
        for start in range(0, len(pending), MOST_DELETIONS):
            batch = pending[start : start + MOST_DELETIONS]
            try:
                obstore.delete(self.store, batch)
            except FileNotFoundError:  # some services refuse the whole batch because of one absent file
                for path in batch:
                    with suppress(FileNotFoundError):
                        obstore.delete(self.store, path)

    def sync(self, paths: Collection[str]) -> None:
        """Does nothing: a PUT that returned is durable."""

    def partials(self) -> Sequence[str]:
        return []


def _isin(values: array, stored: array) -> np.ndarray:
    """Bool (values): whether each of the numbers is among `stored`, which is sorted in place."""
    ordered = np.frombuffer(stored, np.int64)
    ordered.sort()
    wanted = np.frombuffer(values, np.int64)
    if not len(ordered):
        return np.zeros(len(wanted), bool)
    places = np.searchsorted(ordered, wanted)
    places[places == len(ordered)] = 0
    return ordered[places] == wanted
