"""Completion records: written last, they list the chunks that a stage wrote for a shard."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from storage.backends.files import Files
from storage.documents import seal, unseal
from storage.errors import CorruptFile
from storage.format import encode_json
from storage.keys import FAILED, failure_path, record_path, record_prefix

RECORD_VERSION = 1
"""Version of completion records and failure notes; it is the same in formats 1 and 2 of the store."""
AT_ONCE = 512
"""Records that are read before the next ones are requested; a record of the paper's run takes 90 kB of memory."""


@dataclass(frozen=True)
class Record:
    """What one stage wrote for one shard, without time or host, so that equal runs give equal bytes."""

    stage: str
    variant: str
    shard: int
    chunks: dict[str, tuple[int, int]] = field(hash=False)
    """Path -> (size of the file in bytes, crc32c of its body, which the last 4 bytes repeat)."""
    stage_hash: str | None = None
    """Hash of the stage's scientific settings; None if the caller gave none."""

    @property
    def path(self) -> str:
        """Path of the record."""
        return record_path(self.stage, self.variant, self.shard)

    def to_json(self) -> bytes:
        """Canonical bytes."""
        return encode_json(
            {
                "format": RECORD_VERSION,
                "stage": self.stage,
                "variant": self.variant,
                "shard": self.shard,
                "stage_hash": self.stage_hash,
                "chunks": {p: [size, f"{crc:08x}"] for p, (size, crc) in self.chunks.items()},
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> "Record":
        """Read a record. Raises ValueError if it is damaged or has another format version."""
        try:
            document = json.loads(data)
            if document["format"] != RECORD_VERSION:
                raise ValueError(f"format version {document['format']}")
            chunks = {path: (int(size), int(crc, 16)) for path, (size, crc) in document["chunks"].items()}
            if not all(0 <= size < 1 << 63 and 0 <= crc < 1 << 32 for size, crc in chunks.values()):
                raise ValueError("a size or checksum that no file has")
            return cls(document["stage"], document["variant"], int(document["shard"]), chunks, document["stage_hash"])
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise ValueError(f"not a completion record ({error!r})") from None


class _Complete(NamedTuple):
    """What is remembered of a record whose chunks were all there."""

    stamp: int
    shard: int
    stage_hash: str | None


class Records:
    """The completion records and failure notes of a store."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._complete: dict[tuple[str, str, tuple[str, ...]], dict[str, _Complete]] = {}
        """By stage, variant and removed prefixes: path -> what was found complete, so that a command reads each record
        once, however often it asks."""

    def write(self, record: Record, *, sync: bool) -> None:
        """Sync the record's chunks, write the record, then remove an older failure note."""
        if sync:
            self._files.sync(list(record.chunks))
        self._files.put(record.path, [record.to_json()], sync=sync)
        self._files.delete([failure_path(record.stage, record.variant, record.shard)])

    def fail(self, stage: str, variant: str, shard: int, reason: str) -> None:
        """Note why a shard failed."""
        data = seal({"format": RECORD_VERSION, "shard": shard, "reason": reason})
        self._files.put(failure_path(stage, variant, shard), [data])

    def failures(self, stage: str, variant: str) -> dict[int, str]:
        """Shard -> reason, for every failed shard without a completion record; damaged notes are left out."""
        paths = {entry.path for entry in self._files.walk(record_prefix(stage, variant))}
        reasons = {}
        for path in sorted(path for path in paths if path.endswith(FAILED)):
            with suppress(CorruptFile, KeyError):
                note = unseal(self._files.get(path), path)
                reasons[note["shard"]] = note["reason"]
        return {shard: reason for shard, reason in reasons.items() if record_path(stage, variant, shard) not in paths}

    def read(self, prefix: str) -> Iterator[tuple[str, Record | ValueError]]:
        """(path, completion record) for each one under a prefix, ascending, or the error if it is not valid."""
        return self._read(sorted(entry.path for entry in self._files.walk(prefix) if _is_record(entry.path)))

    def _read(self, paths: Sequence[str]) -> Iterator[tuple[str, Record | ValueError]]:
        if self._files.readers == 1:
            yield from ((path, self._read_one(path)) for path in paths)
            return
        left = iter(paths)
        with ThreadPoolExecutor(self._files.readers) as pool:
            while batch := list(islice(left, AT_ONCE)):
                yield from zip(batch, pool.map(self._read_one, batch), strict=True)

    def _read_one(self, path: str) -> Record | ValueError:
        try:
            record = Record.from_json(self._files.get(path))
        except ValueError as error:
            return error
        if record.path != path:
            return ValueError(f"the record names itself {record.path}")
        return record

    def any(self) -> bool:
        """Whether there is a completion record, valid or not."""
        return any(_is_record(entry.path) for entry in self._files.walk("shards/"))

    def any_completed(self, stage: str, variant: str, stage_hash: str | None, removed: tuple[str, ...] = ()) -> bool:
        """Whether `completed` would return a shard; reads no more than it must."""
        for entry in self._files.walk(record_prefix(stage, variant)):
            record = self._read_one(entry.path) if _is_record(entry.path) else None
            if isinstance(record, Record) and stage_hash in (None, record.stage_hash):
                if all(self._files.intact([_sizes(record, removed)])):
                    return True
        return False

    def completed(
        self, stage: str, variant: str, stage_hash: str | None, removed: tuple[str, ...] = ()
    ) -> Iterator[int]:
        """Shards with a record that parses and whose chunks exist with the recorded sizes.

        Chunks under the prefixes in `removed` were deleted on purpose and may be absent. Records that were found
        complete before, and were not written since, are not read again.
        """
        stamps = {e.path: e.stamp for e in self._files.walk(record_prefix(stage, variant)) if _is_record(e.path)}
        known = self._complete.get((stage, variant, removed), {})
        known = {path: one for path, one in known.items() if stamps.get(path) == one.stamp}
        read: list[tuple[str, _Complete]] = []

        def chunks() -> Iterator[Mapping[str, int]]:
            for path, record in self._read(sorted(stamps.keys() - known.keys())):
                if isinstance(record, Record):
                    read.append((path, _Complete(stamps[path], record.shard, record.stage_hash)))
                    yield _sizes(record, removed)

        for number, intact in enumerate(self._files.intact(chunks())):
            path, found = read[number]
            if intact:
                known[path] = found
        self._complete[stage, variant, removed] = known
        return (one.shard for one in known.values() if stage_hash in (None, one.stage_hash))


def _sizes(record: Record, removed: tuple[str, ...]) -> dict[str, int]:
    """Path -> size of the chunks that should be there."""
    return {path: size for path, (size, _) in record.chunks.items() if not path.startswith(removed)}


def _is_record(path: str) -> bool:
    return path.endswith(".json") and not path.endswith(FAILED)
