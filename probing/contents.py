"""Digests of files' contents. Those of large files are kept, so that an unchanged file is read once on a machine."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

LARGE = 1 << 20
"""bytes from which a digest is worth keeping"""
SETTLED = 2.0
"""seconds since its last change after which a file's times identify its content: clocks of file systems are coarse"""
KEPT = 4096
"""digests that are kept, the latest ones"""


def digests(files: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256, as hex digits, of each file's content, by the given names.

    A kept digest is used if path, size, inode and times of the file are the same. Raises OSError if a file cannot be
    read.
    """
    cache = _read_cache()
    known, result = len(cache), {}
    for name, path in files.items():
        result[name] = _digest(path, cache)
    if len(cache) != known:
        _write_cache(cache)
    return result


def tree(path: Path) -> dict[str, Path]:
    """All files of a directory by their relative paths, through symbolic links; a file itself by its name.

    Names that begin with a dot are left out: they are what systems and tools leave behind.
    """
    if path.is_file():
        return {path.name: path}
    found = {}
    for folder, _, names in os.walk(path, followlinks=True):
        for name in (name for name in names if not name.startswith(".")):
            file = Path(folder) / name
            found[file.relative_to(path).as_posix()] = file
    return dict(sorted(found.items()))


def _digest(path: Path, cache: dict[str, str]) -> str:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size < LARGE:
            return hashlib.sha256(file.read()).hexdigest()
        times = (status.st_mtime_ns, status.st_ctime_ns)
        key = json.dumps([os.path.realpath(path), status.st_size, *times, status.st_ino])
        if key in cache:
            return cache[key]
        value = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - max(times) / 1e9 > SETTLED:
        cache[key] = value
    return value


def _cache_file() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "scenesweep" / "digests.json"


def _read_cache() -> dict[str, str]:
    try:
        kept = json.loads(_cache_file().read_bytes())
    except (OSError, ValueError, RuntimeError):  # none yet, damaged, or no home folder
        return {}
    return {str(key): str(value) for key, value in kept.items()} if isinstance(kept, dict) else {}


def _write_cache(cache: Mapping[str, str]) -> None:
    """Write the cache if that is possible; without it files are read again."""
    with suppress(OSError, RuntimeError):
        path = _cache_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(dict(list(cache.items())[-KEPT:])))
        partial.replace(path)
