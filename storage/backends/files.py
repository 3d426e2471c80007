"""Named bytes with atomic replacement: the interface, and files on a local or shared disk."""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import stat
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from storage.backends.paths import local_path
from storage.codec import Part, crc32c
from storage.keys import PARTIAL, is_foreign

SYNC_EACH = 1
"""Up to this number, files are synced one by one; more by one syncfs of their file system."""
RESERVE = 1 << 20
"""The space of a file of at least this many bytes is reserved before it is written."""
_BLOCK = 1 << 20
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def checked_path(path: str) -> str:
    """Return `path`. Raises ValueError if it is absolute or leaves the store."""
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"path {path!r} must be relative to the store and must not leave it")
    return path


class Entry(NamedTuple):
    """One file of a listing."""

    path: str
    size: int
    """in bytes"""
    stamp: int
    """another one after every write of other content; comparable within one process"""


class Files(ABC):
    """Bytes under relative paths. Every write appears whole or not at all.

    Methods raise OSError when the storage does not answer or refuses, which may pass.
    """

    url: str
    threads: int
    """Number of parallel reads or writes that suits this kind of storage."""
    readers: int
    """The same for small files, of which each takes little more than the time to reach it."""

    @abstractmethod
    def put(self, path: str, parts: Sequence[Part], *, sync: bool = False) -> None:
        """Write the parts, concatenated, as one file, replacing an existing one."""

    @abstractmethod
    def get(self, path: str) -> bytes:
        """The whole file. Raises FileNotFoundError if there is none."""

    @abstractmethod
    def read_chunk(self, path: str, body: np.ndarray, tail: np.ndarray) -> tuple[int, int]:
        """Fill two flat uint8 arrays from a file of their total size; return (size of the file, crc32c of body).

        Fills nothing if the size differs. Raises FileNotFoundError if there is no such file.
        """

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Write the file if it is absent; return whether it was written."""

    @abstractmethod
    def swap(self, path: str, old: bytes, new: bytes) -> bool:
        """Replace the file if it holds `old`; return whether it was replaced."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Size of a file in bytes; None if there is none. One request, whatever else is stored."""

    @abstractmethod
    def walk(self, prefix: str = "") -> Iterator[Entry]:
        """Every file whose path starts with `prefix`, in no order, read as far as the caller iterates.

        Leaves out what is in `.partial/` and what operating systems put into folders.
        """

    def list(self, prefix: str = "") -> dict[str, int]:
        """Path -> size of every file whose path starts with `prefix`, sorted."""
        return dict(sorted((entry.path, entry.size) for entry in self.walk(prefix)))

    @abstractmethod
    def intact(self, groups: Iterable[Mapping[str, int]]) -> Iterator[bool]:
        """For each group of chunks, path -> size in bytes: whether all of them exist with these sizes.

        Keeps no paths, so that there may be millions of groups.
        """

    @abstractmethod
    def delete(self, paths: Iterable[str]) -> None:
        """Remove files, skipping absent ones."""

    @abstractmethod
    def sync(self, paths: Collection[str]) -> None:
        """Return when the files and their names would survive a power failure."""

    @abstractmethod
    def partials(self) -> Sequence[str]:
        """Half-written files that a killed process left behind."""


class LocalFiles(Files):
    """Files in a folder, written under a temporary name in `.partial/` and renamed; synced on request."""

    threads = 2
    readers = 1

    def __init__(self, root: str | Path) -> None:
        self.root = local_path(root).absolute()
        self.url = str(self.root)

    def _at(self, path: str) -> str:
        return f"{self.root}/{checked_path(path)}"

    @contextlib.contextmanager
    def _written(self, parts: Sequence[Part], sync: bool) -> Iterator[str]:
        """Path of a temporary file that holds the parts; removed if the block fails."""
        temporary = f"{self.root}/{PARTIAL}/{uuid.uuid4().hex}"
        try:
            try:
                fd = os.open(temporary, _NEW, 0o666)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(temporary), exist_ok=True)
                fd = os.open(temporary, _NEW, 0o666)
            try:
                _reserve(fd, sum(memoryview(part).nbytes for part in parts))
                _write_all(fd, parts)
                if sync:
                    os.fsync(fd)
            finally:
                os.close(fd)
            yield temporary
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def put(self, path: str, parts: Sequence[Part], *, sync: bool = False) -> None:
        target = self._at(path)
        folder = os.path.dirname(target)
        with self._written(parts, sync) as temporary:
            try:
                os.replace(temporary, target)
                fresh = False
            except FileNotFoundError:
                os.makedirs(folder, exist_ok=True)
                os.replace(temporary, target)
                fresh = True
        if sync:
            _fsync_folders(self.root, [path]) if fresh else _fsync(folder)

    def get(self, path: str) -> bytes:
        with open(self._at(path), "rb") as file:
            return file.read()

    def read_chunk(self, path: str, body: np.ndarray, tail: np.ndarray) -> tuple[int, int]:
        fd = os.open(self._at(path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            if size != body.nbytes + tail.nbytes:
                return size, 0
            crc = 0
            for start in range(0, body.nbytes, _BLOCK):  # checksum each block while it is in the cache
                block = body[start : start + _BLOCK]
                _read_all(fd, block)
                crc = crc32c(block, crc)
            _read_all(fd, tail)
            return size, crc
        finally:
            os.close(fd)

    def create(self, path: str, data: bytes) -> bool:
        target = self._at(path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with self._written([data], sync=True) as temporary:
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            finally:
                os.unlink(temporary)
        return True

    def swap(self, path: str, old: bytes, new: bytes) -> bool:
        os.makedirs(self.root / PARTIAL, exist_ok=True)
        fd = os.open(
            self.root / PARTIAL / f"{os.path.basename(path)}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666
        )
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            try:
                if self.get(path) != old:
                    return False
            except FileNotFoundError:
                return False
            self.put(path, [new], sync=True)
            return True
        finally:
            os.close(fd)

    def size(self, path: str) -> int | None:
        try:
            status = os.stat(self._at(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def walk(self, prefix: str = "") -> Iterator[Entry]:
        folder = prefix.rpartition("/")[0]
        start = self.root / folder if folder else self.root
        return (entry for entry in _walk(str(start), folder) if entry.path.startswith(prefix))

    def intact(self, groups: Iterable[Mapping[str, int]]) -> Iterator[bool]:
        return (all(self.size(path) == size for path, size in group.items()) for group in groups)

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            target = self._at(path)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(target)
            folder = os.path.dirname(target)
            with contextlib.suppress(OSError):  # until a folder is not empty
                while folder != str(self.root) and os.path.basename(folder) != PARTIAL:
                    os.rmdir(folder)
                    folder = os.path.dirname(folder)

    def sync(self, paths: Collection[str]) -> None:
        if len(paths) > SYNC_EACH and _syncfs(str(self.root)):
            return
        for path in paths:
            _fsync(self._at(path))
        _fsync_folders(self.root, paths)

    def partials(self) -> Sequence[str]:
        folder = self.root / PARTIAL
        names = os.listdir(folder) if folder.is_dir() else []
        own = [f"{PARTIAL}/{name}" for name in names if not (name.endswith(".lock") or is_foreign(name))]
        return sorted(own)

    def free(self) -> int:
        """Free bytes on the disk that holds (or would hold) this folder."""
        return shutil.disk_usage(next(folder for folder in (self.root, *self.root.parents) if folder.exists())).free


def _reserve(fd: int, size: int) -> None:
    """Reserve a large file's space, which makes writing cheaper and reports a full disk at once."""
    fallocate = _libc("fallocate")
    if size >= RESERVE and fallocate is not None:
        length = ctypes.c_int64(size)
        if fallocate(fd, _KEEP_SIZE, ctypes.c_int64(0), length) and (ctypes.get_errno() == errno.ENOSPC):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_all(fd: int, parts: Sequence[Part]) -> None:
    views = [memoryview(part).cast("B") for part in parts]
    while views:
        done = os.writev(fd, views)
        while views and done >= views[0].nbytes:
            done -= views.pop(0).nbytes
        if done:
            views[0] = views[0][done:]


def _read_all(fd: int, out: Part) -> None:
    view = memoryview(out)
    while view.nbytes:
        done = os.readv(fd, [view])
        if not done:
            raise OSError("the file became shorter while it was read")
        view = view[done:]


def _walk(folder: str, relative: str) -> Iterator[Entry]:
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        path = f"{relative}/{entry.name}" if relative else entry.name
        if is_foreign(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, path)
        else:
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat()
                yield Entry(path, status.st_size, hash((status.st_ino, status.st_mtime_ns, status.st_size)))


def _fsync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _fsync_folders(root: Path, paths: Iterable[str]) -> None:
    """Sync every folder from the files up to the root, so that the names survive too."""
    folders = {str(root)}
    for path in paths:
        folder = os.path.dirname(f"{root}/{path}")
        while folder not in folders:
            folders.add(folder)
            folder = os.path.dirname(folder)
    for folder in sorted(folders, key=len, reverse=True):
        _fsync(folder)


@cache
def _libc(name: str) -> Callable | None:
    """A function of the C library, or None if this platform has none."""
    return getattr(ctypes.CDLL(None, use_errno=True), name, None)


def _syncfs(path: str) -> bool:
    """Sync the whole file system of `path` in one call; return False if that is not supported."""
    syncfs = _libc("syncfs")
    if syncfs is None:
        return False
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return syncfs(fd) == 0
    finally:
        os.close(fd)
