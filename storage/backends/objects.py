"""The same named bytes in an object store (S3, GCS, Azure) or in memory, through obstore."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from storage.backends.files import Files, LocalFiles, checked_path
from storage.codec import Part, crc32c

SCHEMES = ("s3", "gs", "az", "memory")
_memories: dict[str, Any] = {}


class ObjectFiles(Files):
    """Files in an object store. One PUT per file: it appears whole or not at all."""

    threads = 8

    def __init__(self, url: str, store: Any = None) -> None:
        self.url = url
        self._store = _open_store(url) if store is None else store

    def __reduce__(self) -> tuple:
        return ObjectFiles, (self.url,)

    def put(self, path: str, parts: Sequence[Part], *, sync: bool = False) -> None:
        import obstore

        obstore.put(self._store, checked_path(path), b"".join(parts), use_multipart=False)

    def get(self, path: str) -> bytes:
        return self._get(path).bytes().to_bytes()

    def _get(self, path: str) -> Any:
        import obstore

        return obstore.get(self._store, checked_path(path))

    def read_chunk(self, path: str, body: np.ndarray, tail: np.ndarray) -> tuple[int, int]:
        data = np.frombuffer(self._get(path).bytes(), np.uint8)
        if data.nbytes != body.nbytes + tail.nbytes:
            return data.nbytes, 0
        body[:], tail[:] = data[: body.nbytes], data[body.nbytes :]
        return data.nbytes, crc32c(body)

    def create(self, path: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            obstore.put(self._store, checked_path(path), data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    def swap(self, path: str, old: bytes, new: bytes) -> bool:
        import obstore
        from obstore.exceptions import NotFoundError, PreconditionError

        try:
            found = self._get(path)
            if found.bytes().to_bytes() != old:
                return False
            version: Any = {k: found.meta[k] for k in ("e_tag", "version") if found.meta[k] is not None}
            obstore.put(self._store, path, new, mode=version, use_multipart=False)
        except (FileNotFoundError, NotFoundError, PreconditionError):
            return False
        return True

    def sizes(self, paths: Collection[str]) -> dict[str, int]:
        """One listing per array rather than one request per file."""
        wanted = set(paths)
        folders = {path.partition("/c/")[0] for path in wanted}
        found: dict[str, int] = {}
        for folder in folders:
            listed = self.list(f"{folder}/") or self.list(folder)
            found.update((path, size) for path, size in listed.items() if path in wanted)
        return found

    def list(self, prefix: str = "") -> dict[str, int]:
        import obstore

        # obstore lists whole path segments, so the last, perhaps unfinished, one is matched here
        folder = prefix.rpartition("/")[0]
        found: dict[str, int] = {}
        for batch in obstore.list(self._store, folder or None):
            found.update((entry["path"], entry["size"]) for entry in batch)
        return {path: found[path] for path in sorted(found) if path.startswith(prefix)}

    def delete(self, paths: Iterable[str]) -> None:
        import obstore

        todo = [checked_path(path) for path in paths]
        for start in range(0, len(todo), 1000):
            try:
                obstore.delete(self._store, todo[start : start + 1000])
            except FileNotFoundError:
                self._delete_each(todo[start : start + 1000])

    def _delete_each(self, paths: Sequence[str]) -> None:
        import obstore

        for path in paths:
            try:
                obstore.delete(self._store, path)
            except FileNotFoundError:
                continue

    def sync(self, paths: Collection[str]) -> None:
        """Nothing to do: a PUT that returned is durable."""

    def partials(self) -> Sequence[str]:
        return [path for path in self.list() if path.endswith(".partial")]

    def zarr_store(self):  # noqa: ANN201
        from zarr.storage import ObjectStore

        return ObjectStore(self._store, read_only=True)


def _open_store(url: str) -> Any:
    try:
        from obstore.store import MemoryStore, from_url
    except ImportError:
        raise ValueError(f"{url}: object stores need a package: pip install obstore") from None
    if url.startswith("memory://"):
        return _memories.setdefault(url, MemoryStore())
    return from_url(url, **_options(url))


def _options(url: str) -> dict[str, Any]:
    """Retry for three minutes what is worth retrying (500, 503, timeouts)."""
    from datetime import timedelta

    return {"retry_config": {"max_retries": 20, "retry_timeout": timedelta(minutes=3)}}


def open_files(url: str) -> Files:
    """Files at a path or URL: `/path`, `file://`, `s3://`, `gs://`, `az://`, `memory://`."""
    scheme, separator, rest = str(url).partition("://")
    if not separator:
        return LocalFiles(url)
    if scheme == "file":
        return LocalFiles("/" + rest.lstrip("/"))
    if scheme not in SCHEMES:
        schemes = ", ".join(f"{s}://" for s in SCHEMES)
        raise ValueError(f"{url}: scheme {scheme!r} is not known: use a path or {schemes}")
    return ObjectFiles(url.rstrip("/"))
