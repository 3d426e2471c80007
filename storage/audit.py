"""Comparing a store with its records and its format: every disagreement, and how to repair it."""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
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
"""Kinds that are cured by redoing the shard; `recomputed`, from a caller with the model: other values came out."""
FILE_KINDS = ("partial", "surplus", "table")
"""Kinds that are cured by removing the file."""


@dataclass(frozen=True, order=True)
class Disagreement:
    """One thing about a store that is not as its format or its records say."""

    kind: str
    """One of SHARD_KINDS, FILE_KINDS, `metadata`, `samples` or, from a caller, `rounding`."""
    path: str
    stage: str = ""
    variant: str = ""
    shard: int = -1
    """-1 where no shard is meant."""
    detail: str = ""

    def __str__(self) -> str:
        where = f" [{self.stage} {self.variant} shard {self.shard}]" if self.stage else ""
        return f"{self.kind}: {self.path}{where}: {self.detail}"


@dataclass(frozen=True)
class _View:
    """What the checks look at: one listing, the readable records, the chunks of the layout."""

    store: Store
    records: list[Record]
    listed: dict[str, int]
    """Path -> size of every file inside a Zarr array or group."""
    by_path: dict[str, ChunkKey]


def verify(store: Store, deep: bool = True, progress: Progress | None = None) -> list[Disagreement]:
    """Every disagreement, sorted. `deep` rereads and checksums every recorded chunk.

    Chunks of shards without a completion record are unfinished work, not disagreements.
    """
    by_path = {key.path: key for spec in store.layout.arrays.values() for key in spec.keys()}
    records, found = _records(store, by_path)
    listed = {p: size for p, size in store.files.list().items() if p.split("/")[0].endswith(".zarr")}
    view = _View(store, records, listed, by_path)
    for check in (_metadata, _incomplete, _sizes, _surplus, _partial, _tables):
        found += check(view)
    if deep:
        bad = {disagreement.path for disagreement in found}
        items = [(r, path) for r in records for path in r.chunks if path in listed.keys() - bad]
        found += _contents(view, items, progress)
    return sorted(found)


def _records(store: Store, by_path: dict[str, ChunkKey]) -> tuple[list[Record], list[Disagreement]]:
    """The completion records that can be read, and a disagreement for each that can't."""
    good, bad = [], []
    for path, record in store.records.read("shards/").items():
        reason = _record_fault(store, by_path, record)
        if reason is None:
            assert isinstance(record, Record)
            good.append(record)
        else:
            bad.append(Disagreement("bad_record", path, *_named(store, path), reason))
    return good, bad


def _record_fault(store: Store, by_path: dict[str, ChunkKey],
                  record: Record | ValueError) -> str | None:  # fmt: skip
    if not isinstance(record, Record):
        return str(record)
    if not 0 <= record.shard < store.layout.shards:
        return "the layout has no such shard"
    strange = [chunk for chunk in record.chunks if chunk not in by_path]
    return f"lists {strange[0]}, which the layout has not" if strange else None


def _named(store: Store, path: str) -> ShardName:
    """The shard whose record has this path."""
    stage = path.split("/")[1]
    for variant in store.layout.variants:
        for shard in range(store.layout.shards):
            if keys.record_path(stage, variant, shard) == path:
                return stage, variant, shard
    return stage, "", -1


def _metadata(view: _View) -> Iterator[Disagreement]:
    for path, data in view.store.layout.documents().items():
        try:
            if view.store.get(path) == data:
                continue
            detail = "differs from what the layout demands"
        except FileNotFoundError:
            detail = "is not there"
        yield Disagreement("metadata", path, detail=detail)


def _about(record: Record, kind: str, path: str, detail: str) -> Disagreement:
    return Disagreement(kind, path, record.stage, record.variant, record.shard, detail)


def _sizes(view: _View) -> Iterator[Disagreement]:
    for record in view.records:
        for path, (size, _) in record.chunks.items():
            if path not in view.listed:
                if not (view.store.cleaned and path.startswith("activations.zarr/")):
                    yield _about(record, "missing", path, "recorded, but there is no such chunk")
            elif view.listed[path] != size:
                detail = f"{view.listed[path]} bytes, recorded are {size}"
                yield _about(record, "size", path, detail)


def _incomplete(view: _View) -> Iterator[Disagreement]:
    """Records that list fewer chunks than their siblings of the same stage and variant do."""
    groups: dict[tuple, set[tuple[str, int | None]]] = {}
    for record in view.records:
        group = groups.setdefault((record.stage, record.variant, record.stage_hash), set())
        group |= {(view.by_path[path].array, view.by_path[path].step) for path in record.chunks}
    arrays = view.store.layout.arrays
    for record in view.records:
        due = {
            arrays[array].key(record.shard, step).path
            for array, step in groups[record.stage, record.variant, record.stage_hash]
            if record.shard < arrays[array].shards
        }
        if lacking := sorted(due - set(record.chunks)):
            detail = f"lists {len(lacking)} chunks fewer than other shards do, such as {lacking[0]}"
            yield _about(record, "incomplete", record.path, detail)


def _contents(view: _View, items: Collection[tuple[Record, str]],
              progress: Progress | None) -> Iterator[Disagreement]:  # fmt: skip
    """Reread recorded chunks: checksum against file and record, then finite values."""
    scratch = threading.local()

    def look(item: tuple[Record, str]) -> Disagreement | None:
        record, path = item
        spec = view.store.layout.arrays[view.by_path[path].array]
        if getattr(scratch, "array", None) != spec.path:
            scratch.array, scratch.block = spec.path, np.empty(spec.chunk_shape, spec.dtype)
        return _content(view.store, record, spec, view.by_path[path], scratch.block)

    ordered = sorted(items, key=lambda item: item[1])
    with ThreadPoolExecutor(view.store.files.threads) as pool:
        for count, disagreement in enumerate(pool.map(look, ordered), 1):
            if disagreement:
                yield disagreement
            if progress:
                progress(count, len(ordered))


def _content(store: Store, record: Record, spec: ArraySpec, key: ChunkKey,
             block: np.ndarray) -> Disagreement | None:  # fmt: skip
    recorded = record.chunks[key.path][1]
    try:
        crc = store.chunks.read(spec, key, block)
    except MissingChunk:
        return _about(record, "missing", key.path, "vanished while the store was read")
    except CorruptChunk as error:
        return _about(record, "checksum", key.path, str(error).removeprefix(f"{key.path}: "))
    if crc != recorded:
        detail = f"crc32c is {crc:08x}, recorded is {recorded:08x}"
        return _about(record, "checksum", key.path, detail)
    if not all_finite(block[: len(spec.rows(key.shard))]):
        return _about(record, "nonfinite", key.path, "NaN or infinity among the values")
    return None


def _surplus(view: _View) -> Iterator[Disagreement]:
    """Files outside the layout, and chunks of a finished shard that its record does not list."""
    recorded = {path for record in view.records for path in record.chunks}
    finished = {_work(view.by_path[path]) for path in recorded}
    documents = view.store.layout.documents()
    for path in sorted(view.listed.keys() - recorded - documents.keys()):
        if path not in view.by_path:
            if not path.endswith(".partial"):
                yield Disagreement("surplus", path, detail="the layout has no such file")
        elif _work(view.by_path[path]) in finished:
            yield Disagreement("surplus", path, detail="its shard is complete without it")


def _work(key: ChunkKey) -> tuple[str, int]:
    """Chunks that one stage writes together: (`activations.zarr/trained`, shard)."""
    return "/".join(key.array.split("/")[:2]), key.shard


def _partial(view: _View) -> Iterator[Disagreement]:
    for path in view.store.files.partials():
        yield Disagreement("partial", path, detail="half-written by a process that was killed")


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
            detail = f"{rows} rows where the layout has {store.layout.samples} samples"
            yield Disagreement(kind, path, detail=detail)


def repair(store: Store, found: Iterable[Disagreement]) -> list[ShardName]:
    """Undo what `verify` found, so that the next run redoes it; the shards that it will redo.

    Damaged chunks and their completion records, surplus and partial files and unreadable tables
    are removed, metadata are written again. `samples` can't be repaired: the prompts are lost.
    """
    documents = store.layout.documents()
    redo: set[ShardName] = set()
    for disagreement in found:
        if disagreement.kind == "metadata":
            store.put(disagreement.path, documents[disagreement.path])
        elif disagreement.kind in FILE_KINDS:
            store.delete(disagreement.path)
        elif disagreement.kind in SHARD_KINDS:
            redo.add(_unrecord(store, disagreement))
    return sorted(redo)


def _unrecord(store: Store, found: Disagreement) -> ShardName:
    """Remove the completion record first, then the damaged chunk."""
    if found.shard >= 0:
        store.delete(keys.record_path(found.stage, found.variant, found.shard))
    store.delete(found.path)
    return found.stage, found.variant, found.shard
