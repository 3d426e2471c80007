"""Completion records: facts written last, that say which chunks a stage wrote for a shard."""

import json
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from storage.backends.files import Files
from storage.format import FORMAT_VERSION, encode_json
from storage.keys import failure_path, record_path, record_prefix


@dataclass(frozen=True)
class Record:
    """What one stage wrote for one shard. No time, no host: equal runs, equal bytes."""

    stage: str
    variant: str
    shard: int
    chunks: dict[str, tuple[int, int]] = field(hash=False)
    """Path -> (size of the file in bytes, crc32c of its body, which is also its last 4 bytes)."""
    stage_hash: str | None = None
    """Hash of the stage's scientific settings, where the caller gave one."""

    @property
    def path(self) -> str:
        """Where the record lies."""
        return record_path(self.stage, self.variant, self.shard)

    def to_json(self) -> bytes:
        """Canonical bytes."""
        return encode_json(
            {
                "format": FORMAT_VERSION,
                "stage": self.stage,
                "variant": self.variant,
                "shard": self.shard,
                "stage_hash": self.stage_hash,
                "chunks": {p: [size, f"{crc:08x}"] for p, (size, crc) in self.chunks.items()},
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> "Record":
        """Read a record; ValueError if anything about it is not as written."""
        try:
            found = json.loads(data)
            if found["format"] != FORMAT_VERSION:
                raise ValueError(f"format version {found['format']}")
            chunks = {p: (int(size), int(crc, 16)) for p, (size, crc) in found["chunks"].items()}
            return cls(found["stage"], found["variant"], int(found["shard"]), chunks,
                       found["stage_hash"])  # fmt: skip
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise ValueError(f"not a completion record ({error!r})") from None


class Written:
    """Thread-safe memory of the chunks that this process wrote and has not yet recorded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunks: dict[tuple[str, int], dict[str, tuple[int, int]]] = {}

    def add(self, variant: str, shard: int, path: str, size: int, crc: int) -> None:
        """Remember one chunk."""
        with self._lock:
            self._chunks.setdefault((variant, shard), {})[path] = (size, crc)

    def take(self, variant: str, shard: int) -> dict[str, tuple[int, int]]:
        """Forget and return the chunks of one variant and shard."""
        with self._lock:
            return self._chunks.pop((variant, shard), {})


class Records:
    """The completion records and failure notes of a store."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def write(self, record: Record, *, sync: bool) -> None:
        """Sync the record's chunks, write the record, then drop an older failure note."""
        if sync:
            self._files.sync(list(record.chunks))
        self._files.put(record.path, [record.to_json()], sync=sync)
        self._files.delete([failure_path(record.stage, record.variant, record.shard)])

    def fail(self, stage: str, variant: str, shard: int, reason: str) -> None:
        """Note why a shard failed."""
        data = encode_json({"format": FORMAT_VERSION, "shard": shard, "reason": reason})
        self._files.put(failure_path(stage, variant, shard), [data])

    def failures(self, stage: str, variant: str) -> dict[int, str]:
        """Shard -> reason of every failed shard that has no completion record."""
        names = self._files.list(record_prefix(stage, variant))
        notes = [json.loads(self._files.get(p)) for p in names if p.endswith(".failed.json")]
        return {
            note["shard"]: note["reason"] for note in notes if record_path(stage, variant, note["shard"]) not in names
        }

    def read(self, prefix: str) -> dict[str, Record | ValueError]:
        """Every completion record under a prefix, or the reason why it is none."""
        paths = [p for p in self._files.list(prefix)
                 if p.endswith(".json") and not p.endswith(".failed.json")]  # fmt: skip
        with ThreadPoolExecutor(self._files.threads) as pool:
            return dict(zip(paths, pool.map(self._read, paths), strict=True))

    def _read(self, path: str) -> Record | ValueError:
        try:
            record = Record.from_json(self._files.get(path))
        except ValueError as error:
            return error
        if record.path != path:
            return ValueError(f"the record says that it is {record.path}")
        return record

    def valid(self, stage: str, variant: str, stage_hash: str | None,
              ignore: Iterable[str] = ()) -> dict[int, Record]:  # fmt: skip
        """Shard -> record, where the record parses and its chunks exist with the right sizes.

        `ignore`: prefixes of chunks that were removed on purpose.
        """
        found = self.read(record_prefix(stage, variant)).values()
        records = [r for r in found if isinstance(r, Record) and stage_hash in (None, r.stage_hash)]
        skip = tuple(ignore)
        wanted = {path: size for record in records for path, (size, _) in record.chunks.items()
                  if not path.startswith(skip)}  # fmt: skip
        sizes = self._files.sizes(wanted)
        bad = {path for path, size in wanted.items() if sizes.get(path) != size}
        return {r.shard: r for r in records if bad.isdisjoint(r.chunks)}
