"""Compare a store with its records and its format: every disagreement, and how to repair it."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from storage import keys
from storage.codec import all_finite
from storage.errors import CorruptChunk, MissingChunk
from storage.format import ArraySpec
from storage.keys import ChunkKey
from storage.records import Record
from storage.store import Store
from storage.tables import SCHEMAS

Progress = Callable[[int, int], None]
"""Called with (chunks read, chunks to read)."""
ShardName = tuple[str, str, int]
"""(stage, variant, shard)."""

SHARD_KINDS = ("bad_record", "missing", "size", "checksum", "nonfinite", "incomplete", "recomputed")
"""Kinds repaired by redoing the shard. `recomputed` comes from a caller with the model: it computed other values."""
FILE_KINDS = ("partial", "surplus", "table")
"""Kinds repaired by removing the file."""


@dataclass(frozen=True, order=True)
class Disagreement:
    """One difference between a store and its format or its records."""

    kind: str
    """One of SHARD_KINDS, FILE_KINDS, `metadata`, `samples` or, from a caller, `rounding`."""
    path: str
    stage: str = ""
    variant: str = ""
    shard: int = -1
    """-1 if it concerns no shard."""
    detail: str = ""

    def __str__(self) -> str:
        where = f" [{self.stage} {self.variant} shard {self.shard}]" if self.stage else ""
        return f"{self.kind}: {self.path}{where}: {self.detail}"


@dataclass(frozen=True)
class _View:
    """The input of all checks: the chunks of the layout, one listing, the valid records."""

    store: Store
    by_path: dict[str, ChunkKey]
    listed: dict[str, int]
    """Path -> size of every file inside a Zarr array or group."""
    records: list[Record]


def verify(store: Store, deep: bool = True, progress: Progress | None = None) -> list[Disagreement]:
    """Return every disagreement, sorted. With `deep`, reread and checksum every recorded chunk.

    Chunks of shards without a completion record are unfinished work, not disagreements.
    """
    by_path = {key.path: key for spec in store.layout.arrays.values() for key in spec.keys()}
    listed = {path: size for path, size in store.files.list().items() if path.split("/")[0].endswith(".zarr")}
    view = _View(store, by_path, listed, [])
    found = list(_records(view))
    for check in (_metadata, _incomplete, _sizes, _surplus, _tables):
        found += check(view)
    left_over = "half-written by a process that was killed"
    found += (Disagreement("partial", path, detail=left_over) for path in store.files.partials())
    if deep:
        wrong = {disagreement.path for disagreement in found}
        recorded = ((path, record) for record in view.records for path in record.chunks)
        chunks = [(path, record) for path, record in recorded if path in listed and path not in wrong]
        found += _contents(view, sorted(chunks, key=lambda chunk: chunk[0]), progress)
    return sorted(found)


def _records(view: _View) -> Iterator[Disagreement]:
    """Add the valid completion records to the view; yield the others."""
    layout = view.store.layout
    for path, record in view.store.records.read("shards/").items():
        if not isinstance(record, Record):
            reason = str(record)
        elif not 0 <= record.shard < layout.shards:
            reason = "the layout has no such shard"
        elif unknown := record.chunks.keys() - view.by_path.keys():
            reason = f"lists {min(unknown)}, which is not in the layout"
        else:
            view.records.append(record)
            continue
        # An invalid record may name another shard, so the shard comes from the path, which is built, not parsed.
        stage = path.split("/")[1]
        shards = [(variant, shard) for variant in layout.variants for shard in range(layout.shards)]
        named = [(v, s) for v, s in shards if keys.record_path(stage, v, s) == path] or [("", -1)]
        yield Disagreement("bad_record", path, stage, *named[0], reason)


def _metadata(view: _View) -> Iterator[Disagreement]:
    for path, data in view.store.layout.documents().items():
        try:
            if view.store.get(path) != data:
                yield Disagreement("metadata", path, detail="differs from the layout")
        except FileNotFoundError:
            yield Disagreement("metadata", path, detail="is missing")


def _about(record: Record, kind: str, path: str, detail: str) -> Disagreement:
    return Disagreement(kind, path, record.stage, record.variant, record.shard, detail)


def _sizes(view: _View) -> Iterator[Disagreement]:
    for record in view.records:
        for path, (size, _) in record.chunks.items():
            if path not in view.listed:
                if not (view.store.cleaned and path.startswith("activations.zarr/")):
                    yield _about(record, "missing", path, "recorded, but there is no such chunk")
            elif view.listed[path] != size:
                yield _about(record, "size", path, f"{view.listed[path]} bytes, recorded are {size}")


def _incomplete(view: _View) -> Iterator[Disagreement]:
    """Records that list fewer chunks than others of the same stage and variant do."""
    groups: dict[tuple, set[tuple[str, int | None]]] = {}
    for record in view.records:
        group = groups.setdefault((record.stage, record.variant, record.stage_hash), set())
        group |= {(view.by_path[path].array, view.by_path[path].step) for path in record.chunks}
    arrays = view.store.layout.arrays
    for record in view.records:
        group = groups[record.stage, record.variant, record.stage_hash]
        expected = {arrays[array].key(record.shard, step).path for array, step in group}
        if lacking := sorted(expected - record.chunks.keys()):
            detail = f"lists {len(lacking)} chunks fewer than other shards do, such as {lacking[0]}"
            yield _about(record, "incomplete", record.path, detail)


def _contents(view: _View, chunks: list[tuple[str, Record]], progress: Progress | None) -> Iterator[Disagreement]:
    """Reread recorded chunks in threads: checksum against file and record, then finite values."""
    scratch = threading.local()

    def check(chunk: tuple[str, Record]) -> Disagreement | None:
        path, record = chunk
        spec = view.store.layout.arrays[view.by_path[path].array]
        if getattr(scratch, "array", None) != spec.path:
            scratch.array, scratch.block = spec.path, np.empty(spec.chunk_shape, spec.dtype)
        return _content(view.store, record, spec, view.by_path[path], scratch.block)

    with ThreadPoolExecutor(view.store.files.threads) as pool:
        for count, disagreement in enumerate(pool.map(check, chunks), 1):
            if disagreement:
                yield disagreement
            if progress:
                progress(count, len(chunks))


def _content(store: Store, record: Record, spec: ArraySpec, key: ChunkKey, block: np.ndarray) -> Disagreement | None:
    recorded = record.chunks[key.path][1]
    try:
        crc = store.chunks.read(spec, key, block)
    except MissingChunk:
        return _about(record, "missing", key.path, "vanished while the store was read")
    except CorruptChunk as error:
        return _about(record, "checksum", key.path, str(error).removeprefix(f"{key.path}: "))
    if crc != recorded:
        return _about(record, "checksum", key.path, f"crc32c is {crc:08x}, recorded is {recorded:08x}")
    if not all_finite(block[: len(spec.rows(key.shard))]):
        return _about(record, "nonfinite", key.path, "NaN or infinity among the values")
    return None


def _surplus(view: _View) -> Iterator[Disagreement]:
    """Files outside the layout, and chunks of a finished shard that its record does not list."""

    def work(path: str) -> tuple[str, int]:
        """Identifies the chunks that one stage writes together: (`activations.zarr/trained`, shard)."""
        key = view.by_path[path]
        return "/".join(key.array.split("/")[:2]), key.shard

    recorded = {path for record in view.records for path in record.chunks}
    finished = {work(path) for path in recorded}
    for path in sorted(view.listed.keys() - recorded - view.store.layout.documents().keys()):
        if path not in view.by_path:
            if not path.endswith(keys.PARTIAL):
                yield Disagreement("surplus", path, detail="the layout has no such file")
        elif work(path) in finished:
            yield Disagreement("surplus", path, detail="its shard is complete without it")


def _tables(view: _View) -> Iterator[Disagreement]:
    store = view.store
    parts = [path for name in SCHEMAS for path in store.list(keys.part_prefix(name))]
    for path in [*parts, *filter(store.exists, (keys.SAMPLES, keys.CURATION))]:
        kind = "samples" if path == keys.SAMPLES else "table"
        try:
            rows = store.read_parquet(path).num_rows
        except ValueError as error:
            yield Disagreement(kind, path, detail=str(error).removeprefix(f"{path}: "))
            continue
        if path == keys.SAMPLES and rows != store.layout.samples:
            yield Disagreement(kind, path, detail=f"{rows} rows, but the layout has {store.layout.samples} samples")


def repair(store: Store, found: Iterable[Disagreement]) -> list[ShardName]:
    """Undo what `verify` found, so that the next run redoes it; return the shards that it will redo.

    Removes damaged chunks and their completion records, surplus and partial files and unreadable
    tables, and rewrites metadata. Can't repair `samples`, because the prompts are lost.
    """
    documents = store.layout.documents()
    redo: set[ShardName] = set()
    for item in found:
        if item.kind == "metadata":
            store.put(item.path, documents[item.path])
        elif item.kind in FILE_KINDS:
            store.delete(item.path)
        elif item.kind in SHARD_KINDS:
            if item.shard >= 0:  # the record first: without it the shard counts as unfinished
                store.delete(keys.record_path(item.stage, item.variant, item.shard))
            store.delete(item.path)
            redo.add((item.stage, item.variant, item.shard))
    return sorted(redo)
