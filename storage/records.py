"""Completion records: written last, they list the chunks that a stage wrote for a shard."""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from storage.backends.files import Files
from storage.documents import seal, unseal
from storage.errors import CorruptFile
from storage.format import encode_json
from storage.keys import FAILED, failure_path, record_path, record_prefix

RECORD_VERSION = 1
"""Version of completion records and failure notes; it is the same in formats 1 and 2 of the store."""


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
            return cls(document["stage"], document["variant"], int(document["shard"]), chunks, document["stage_hash"])
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise ValueError(f"not a completion record ({error!r})") from None


class Records:
    """The completion records and failure notes of a store."""

    def __init__(self, files: Files) -> None:
        self._files = files

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
        paths = self._files.list(record_prefix(stage, variant))
        reasons = {}
        for path in (path for path in paths if path.endswith(FAILED)):
            with suppress(CorruptFile, KeyError):
                note = unseal(self._files.get(path), path)
                reasons[note["shard"]] = note["reason"]
        return {shard: reason for shard, reason in reasons.items() if record_path(stage, variant, shard) not in paths}

    def read(self, prefix: str) -> dict[str, Record | ValueError]:
        """Path -> completion record for each one under a prefix, or the error if it is not valid."""
        listed = self._files.list(prefix)
        paths = [path for path in listed if path.endswith(".json") and not path.endswith(FAILED)]
        with ThreadPoolExecutor(self._files.threads) as pool:
            return dict(zip(paths, pool.map(self._read, paths), strict=True))

    def _read(self, path: str) -> Record | ValueError:
        try:
            record = Record.from_json(self._files.get(path))
        except ValueError as error:
            return error
        if record.path != path:
            return ValueError(f"the record names itself {record.path}")
        return record

    def valid(self, stage: str, variant: str, stage_hash: str | None, removed: Iterable[str] = ()) -> dict[int, Record]:
        """Shard -> record, for records that parse and whose chunks exist with the recorded sizes.

        Chunks under the prefixes in `removed` were deleted on purpose and may be absent.
        """
        read = self.read(record_prefix(stage, variant)).values()
        records = [r for r in read if isinstance(r, Record) and stage_hash in (None, r.stage_hash)]
        prefixes = tuple(removed)
        recorded = {
            path: size
            for record in records
            for path, (size, _) in record.chunks.items()
            if not path.startswith(prefixes)
        }
        sizes = self._files.sizes(recorded)
        damaged = {path for path, size in recorded.items() if sizes.get(path) != size}
        return {record.shard: record for record in records if damaged.isdisjoint(record.chunks)}
