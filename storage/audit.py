"""Compare a store with its records and its format: every disagreement, and how to repair it."""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from storage import keys
from storage.codec import all_finite
from storage.documents import Checksum, check_recorded
from storage.errors import CorruptChunk, CorruptFile, MissingChunk
from storage.format import ArraySpec
from storage.keys import ChunkKey
from storage.records import Record
from storage.store import Store
from storage.tables import SCHEMAS, TablePart

Progress = Callable[[int, int], None]
"""Called with (chunks read, chunks to read)."""
ShardName = tuple[str, str, int]
"""(stage, variant, shard)."""

SHARD_KINDS = ("bad_record", "missing", "size", "checksum", "nonfinite", "incomplete", "recomputed")
"""Kinds repaired by redoing the shard. `recomputed` comes from a caller with the model: it computed other values."""
FILE_KINDS = ("partial", "surplus")
"""Kinds repaired by removing the file."""
SMALL_KINDS = ("table", "file", "document")
"""Kinds of small files: a part of a table, a file that rows rest on, and others, which runs write for themselves."""
REWRITTEN = (keys.MANIFEST, keys.CONFIG, keys.PROMPTS, keys.LAYOUT, keys.SAMPLES, keys.CURATION, keys.CURATED,
             keys.EXPERIMENTS, keys.DECISIONS, keys.INPUTS)  # fmt: skip
"""Documents that a run writes again if they are damaged, or reports as lost; repair leaves them where they are."""


@dataclass(frozen=True, order=True)
class Disagreement:
    """One difference between a store and its format or its records."""

    kind: str
    """One of SHARD_KINDS, FILE_KINDS, SMALL_KINDS, `metadata` or, from a caller, `rounding`."""
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


def verify(
    store: Store, deep: bool = True, progress: Progress | None = None, hashes: Collection[str] | None = None
) -> list[Disagreement]:
    """Return every disagreement, sorted. With `deep`, reread and checksum every recorded chunk.

    `hashes` are the stage hashes of the present settings, as in `small_files`.

    Chunks of shards without a completion record are unfinished work, not disagreements.
    """
    by_path = {key.path: key for spec in store.layout.arrays.values() for key in spec.keys()}
    listed = {path: size for path, size in store.files.list().items() if path.split("/")[0].endswith(".zarr")}
    view = _View(store, by_path, listed, [])
    found = list(_records(view))
    for check in (_metadata, _incomplete, _sizes, _surplus):
        found += check(view)
    found += small_files(store, hashes)
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
    def check(document: tuple[str, bytes]) -> Disagreement | None:
        path, data = document
        try:
            same = view.store.get(path) == data
        except FileNotFoundError:
            return Disagreement("metadata", path, detail="is missing")
        return None if same else Disagreement("metadata", path, detail="differs from the layout")

    with ThreadPoolExecutor(view.store.files.threads) as pool:
        yield from filter(None, pool.map(check, view.store.layout.documents().items()))


def _about(record: Record, kind: str, path: str, detail: str) -> Disagreement:
    return Disagreement(kind, path, record.stage, record.variant, record.shard, detail)


def _sizes(view: _View) -> Iterator[Disagreement]:
    for record in view.records:
        for path, (size, _) in record.chunks.items():
            if path not in view.listed:
                if not (view.store.cleaned and path.startswith(keys.ACTIVATIONS)):
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


def small_files(store: Store, hashes: Collection[str] | None = None) -> list[Disagreement]:
    """Return what is wrong with the tables, the files that their rows rest on, and the documents, sorted.

    Every small file is read. With `hashes`, only the files of rows with these stage hashes are compared: files of
    rows of other settings may have been replaced since.
    """
    found = {item.path: item for item in (*_tables(store), *documents(store))}
    recorded = {path: one for path, one in _recorded(store, hashes).items() if path not in found}

    def check(path: str) -> Disagreement | None:
        if path in parts:
            return None  # read already
        try:
            check_recorded(store.get(path), path, recorded[path])
        except FileNotFoundError:
            gone = store.cleaned and store.exists(keys.SET_ASIDE + path)  # nothing can make it again
            return None if gone else Disagreement("file", path, detail="is missing")
        except CorruptFile as error:
            return Disagreement("file", path, detail=error.detail)
        return None

    parts = {path for name in SCHEMAS for path in store.parts(name)}
    with ThreadPoolExecutor(store.files.threads) as pool:
        return sorted([*found.values(), *filter(None, pool.map(check, recorded))])


def _recorded(store: Store, hashes: Collection[str] | None) -> dict[str, Checksum]:
    """Path -> checksum of the files that rows rest on; if several parts record a file, the last one counts."""
    parts = [(path, part) for name in SCHEMAS for path, part in store.parts(name).items()]
    recorded: dict[str, Checksum] = {}
    for _, part in sorted(parts, key=lambda item: item[0].rpartition("/")[2]):
        if isinstance(part, TablePart) and (hashes is None or not part.stage_hashes.isdisjoint(hashes)):
            recorded |= part.files
    return recorded


def _tables(store: Store) -> Iterator[Disagreement]:
    for name in SCHEMAS:
        for path, part in store.parts(name).items():
            if isinstance(part, CorruptFile):
                yield Disagreement("table", path, detail=part.detail)
    for path, read in ((keys.SAMPLES, store.samples), (keys.CURATION, store.curation)):
        try:
            rows = read().num_rows
        except CorruptFile as error:
            yield Disagreement("document", path, detail=error.detail)
            continue
        except FileNotFoundError:
            continue
        if path == keys.SAMPLES and rows != store.layout.samples:
            yield Disagreement(
                "document", path, detail=f"{rows} rows, but the layout has {store.layout.samples} samples"
            )


def documents(store: Store) -> Iterator[Disagreement]:
    """Damaged sealed documents, and files that differ from what one of them records."""
    notes = [path for path in store.list("shards/") if path.endswith(keys.FAILED)]
    folders = [path for folder in keys.DOCUMENT_FOLDERS for path in store.list(folder)]
    for path in [*filter(store.exists, keys.DOCUMENTS), *folders, *notes]:
        try:
            store.document(path)
        except CorruptFile as error:
            yield Disagreement("document", path, detail=error.detail)
        for inner, recorded in store.recorded(path).items():
            try:
                check_recorded(store.get(inner), inner, recorded)
            except FileNotFoundError:
                yield Disagreement("document", inner, detail="is missing")
            except CorruptFile as error:
                yield Disagreement("document", inner, detail=f"{error.detail} in {path}")
    is_run = any(map(store.exists, (keys.MANIFEST, keys.CONFIG, keys.PROMPTS, keys.CURATED)))
    for path in (keys.MANIFEST, keys.CONFIG) if is_run else ():
        if not store.exists(path):
            yield Disagreement("document", path, detail="is missing")
    probed = bool(store.layout.sites)  # a preview records no site
    if probed and keys.SAMPLES in store.recorded(keys.MANIFEST) and not store.exists(keys.EXPERIMENTS):
        yield Disagreement("document", keys.EXPERIMENTS, detail="is missing")


def repair(store: Store, found: Iterable[Disagreement], hashes: Collection[str] | None = None) -> list[ShardName]:
    """Undo what `verify` found, so that the next run redoes it; return the shards that it will redo.

    Removes damaged chunks and their completion records, surplus and partial files, and rewrites metadata. Sets aside
    damaged parts and files, and the parts whose rows rest on them: the next run makes those rows again. If the
    activations were removed, it can't, so then sound parts stay. `hashes` as in `small_files`. Only for the lease
    holder.
    """
    layout_files = store.layout.documents()
    redo: set[ShardName] = set()
    aside: set[str] = set()
    for item in found:
        if item.kind == "metadata":
            store.put(item.path, layout_files[item.path])
        elif item.kind in FILE_KINDS:
            store.delete(item.path)
        elif item.kind in ("table", "file"):
            aside.add(item.path)
        elif item.kind == "document" and item.path not in REWRITTEN:
            store.set_aside(item.path)
        elif item.kind in SHARD_KINDS:
            if item.shard >= 0:  # the record first: without it the shard counts as unfinished
                store.delete(keys.record_path(item.stage, item.variant, item.shard))
            store.delete(item.path)
            redo.add((item.stage, item.variant, item.shard))
    for path in aside | (set() if store.cleaned else _resting_on(store, aside, hashes)):
        store.set_aside(path)
    return sorted(redo)


def _resting_on(store: Store, damaged: Collection[str], hashes: Collection[str] | None) -> set[str]:
    """The parts whose rows rest on damaged files, directly or through other parts."""
    parts = {path: part for name in SCHEMAS for path, part in store.parts(name).items() if isinstance(part, TablePart)}
    recorded = _recorded(store, hashes)
    bad = set(damaged)

    def rests_on_bad(part: TablePart) -> bool:
        # A part that records another checksum than the one that counts described an earlier file of that name.
        return any(path in bad and recorded.get(path) == one for path, one in part.files.items())

    while more := {path for path, part in parts.items() if path not in bad and rests_on_bad(part)}:
        bad |= more
    return bad - set(damaged)
