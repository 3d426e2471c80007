"""Compare a store with its records and its format: every disagreement, and how to repair it."""

import threading
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from storage import keys
from storage.codec import all_finite
from storage.documents import Checksum, check_recorded
from storage.errors import CorruptChunk, CorruptFile, MissingChunk
from storage.format import ArraySpec, ChunkNumbers
from storage.keys import ChunkKey
from storage.records import AT_ONCE, Record
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


class _Shard(NamedTuple):
    """What a valid completion record is of."""

    stage: str
    variant: str
    shard: int
    stage_hash: str | None


class _Recorded:
    """What the valid completion records of a store list: one entry for each of their chunks, in columns."""

    def __init__(self) -> None:
        self.shards: list[_Shard] = []
        """by number of the record"""
        self._columns = {"chunk": array("q"), "size": array("q"), "crc": array("I"), "record": array("I")}

    def add(self, record: Record, numbers: Iterable[int]) -> None:
        """Take up a record whose chunks have these numbers."""
        for number, (size, crc) in zip(numbers, record.chunks.values(), strict=True):
            entry = (number, size, crc, len(self.shards))
            for column, value in zip(self._columns.values(), entry, strict=True):
                column.append(value)
        self.shards.append(_Shard(record.stage, record.variant, record.shard, record.stage_hash))

    def column(self, name: str) -> np.ndarray:
        """`chunk` (number in the layout), `size` (bytes), `crc` or `record` (number) of each entry."""
        return np.frombuffer(self._columns[name], self._columns[name].typecode)


@dataclass(frozen=True)
class _View:
    """The input of all checks. A store may have a hundred million chunks, of which no path is kept."""

    store: Store
    chunks: ChunkNumbers
    listed: np.ndarray
    """int64 (chunks): size of the file of each chunk of the layout; -1 if there is none"""
    others: list[str]
    """further files inside Zarr arrays and groups"""
    recorded: _Recorded = field(default_factory=_Recorded)


def verify(
    store: Store, deep: bool = True, progress: Progress | None = None, hashes: Collection[str] | None = None
) -> list[Disagreement]:
    """Return every disagreement, sorted. With `deep`, reread and checksum every recorded chunk.

    `hashes` are the stage hashes of the present settings, as in `small_files`.

    Chunks of shards without a completion record are unfinished work, not disagreements.
    """
    chunks = ChunkNumbers(store.layout)
    view = _View(store, chunks, np.full(len(chunks), -1, np.int64), [])
    partials = list(store.files.partials())
    for path, size, _ in store.files.walk():
        if path.endswith(keys.PARTIAL):
            partials.append(path)
        elif path.partition("/")[0].endswith(".zarr"):
            number = chunks.number(path)
            if number is None:
                view.others.append(path)
            else:
                view.listed[number] = size
    left_over = "half-written by a process that was killed"
    found = [Disagreement("partial", path, detail=left_over) for path in partials]
    found += _records(view)
    for check in (_metadata, _incomplete, _sizes, _surplus):
        found += check(view)
    found += small_files(store, hashes)
    if deep:
        found += _contents(view, progress)
    return sorted(found)


def _records(view: _View) -> Iterator[Disagreement]:
    """Add the valid completion records to the view; yield the others."""
    layout = view.store.layout
    # An invalid record may name another shard, so the shard comes from the path, which is built, not parsed.
    named: dict[str, dict[str, tuple[str, int]]] = {}
    for path, record in view.store.records.read("shards/"):
        if not isinstance(record, Record):
            reason = str(record)
        elif not 0 <= record.shard < layout.shards:
            reason = "the layout has no such shard"
        else:
            numbers = [number for chunk in record.chunks if (number := view.chunks.number(chunk)) is not None]
            if len(numbers) == len(record.chunks):
                view.recorded.add(record, numbers)
                continue
            unknown = min(chunk for chunk in record.chunks if view.chunks.number(chunk) is None)
            reason = f"lists {unknown}, which is not in the layout"
        stage = path.split("/")[1]
        if stage not in named:
            every = [(variant, shard) for variant in layout.variants for shard in range(layout.shards)]
            named[stage] = {keys.record_path(stage, *one): one for one in every}
        yield Disagreement("bad_record", path, stage, *named[stage].get(path, ("", -1)), reason)


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


def _about(shard: _Shard, kind: str, path: str, detail: str) -> Disagreement:
    return Disagreement(kind, path, shard.stage, shard.variant, shard.shard, detail)


def _entries(view: _View, chosen: np.ndarray) -> Iterator[tuple[int, _Shard, str]]:
    """(number of an entry, its shard, path of its chunk) of some entries of the records."""
    chunk, record = view.recorded.column("chunk"), view.recorded.column("record")
    for entry in chosen.tolist():
        yield entry, view.recorded.shards[record[entry]], view.chunks.key(int(chunk[entry])).path


def _sizes(view: _View) -> Iterator[Disagreement]:
    chunk, size = view.recorded.column("chunk"), view.recorded.column("size")
    listed = view.listed[chunk]
    wrong = listed != size
    if view.store.cleaned:
        activations = np.array([spec.path.startswith(keys.ACTIVATIONS) for spec in view.chunks.specs])
        wrong &= (listed >= 0) | ~activations[view.chunks.array(chunk)]
    for entry, shard, path in _entries(view, np.flatnonzero(wrong)):
        if listed[entry] < 0:
            yield _about(shard, "missing", path, "recorded, but there is no such chunk")
        else:
            yield _about(shard, "size", path, f"{listed[entry]} bytes, recorded are {size[entry]}")


def _incomplete(view: _View) -> Iterator[Disagreement]:
    """Records that list fewer chunks than others of the same stage and variant do."""
    shards, chunks = view.recorded.shards, view.chunks
    if not shards:
        return
    kinds = list(dict.fromkeys((s.stage, s.variant, s.stage_hash) for s in shards))
    numbers = {kind: number for number, kind in enumerate(kinds)}
    kind = np.array([numbers[s.stage, s.variant, s.stage_hash] for s in shards])
    chunk, record = view.recorded.column("chunk"), view.recorded.column("record")
    slots = np.unique(kind[record] * chunks.slots + chunks.slot(chunk))  # of each kind, what any of its records lists
    expected = np.bincount(slots // chunks.slots, minlength=len(kinds))
    own = chunks.shard(chunk) == np.array([s.shard for s in shards])[record]
    listed = np.bincount(record[own], minlength=len(shards))
    for number in np.flatnonzero(listed < expected[kind]).tolist():
        shard = shards[number]
        all_of_kind = chunks.at(shard.shard, slots[slots // chunks.slots == kind[number]] % chunks.slots)
        lacking = sorted(chunks.key(one).path for one in np.setdiff1d(all_of_kind, chunk[record == number]).tolist())
        detail = f"lists {len(lacking)} chunks fewer than other shards do, such as {lacking[0]}"
        yield _about(shard, "incomplete", keys.record_path(*shard[:3]), detail)


def _contents(view: _View, progress: Progress | None) -> Iterator[Disagreement]:
    """Reread recorded chunks in threads: checksum against file and record, then finite values.

    Leaves out chunks that are missing or of another size than a record has, which `_sizes` reports.
    """
    scratch = threading.local()
    chunk, crc = view.recorded.column("chunk"), view.recorded.column("crc")
    wrong = np.zeros(len(view.chunks), bool)
    wrong[chunk[view.listed[chunk] != view.recorded.column("size")]] = True
    chosen = np.flatnonzero(~wrong[chunk])
    chosen = chosen[np.argsort(chunk[chosen], kind="stable")]

    def check(entry: int) -> Disagreement | None:
        key, spec = view.chunks.key(int(chunk[entry])), view.chunks.spec(int(chunk[entry]))
        if getattr(scratch, "array", None) != spec.path:
            scratch.array, scratch.block = spec.path, np.empty(spec.chunk_shape, spec.dtype)
        shard = view.recorded.shards[view.recorded.column("record")[entry]]
        return _content(view.store, shard, int(crc[entry]), spec, key, scratch.block)

    count = 0
    with ThreadPoolExecutor(view.store.files.threads) as pool:
        for start in range(0, len(chosen), AT_ONCE):
            for disagreement in pool.map(check, chosen[start : start + AT_ONCE].tolist()):
                count += 1
                if disagreement:
                    yield disagreement
                if progress:
                    progress(count, len(chosen))


def _content(
    store: Store, shard: _Shard, recorded: int, spec: ArraySpec, key: ChunkKey, block: np.ndarray
) -> Disagreement | None:
    try:
        crc = store.chunks.read(spec, key, block)
    except MissingChunk:
        return _about(shard, "missing", key.path, "vanished while the store was read")
    except CorruptChunk as error:
        return _about(shard, "checksum", key.path, str(error).removeprefix(f"{key.path}: "))
    if crc != recorded:
        return _about(shard, "checksum", key.path, f"crc32c is {crc:08x}, recorded is {recorded:08x}")
    if not all_finite(block[: len(spec.rows(key.shard))]):
        return _about(shard, "nonfinite", key.path, "NaN or infinity among the values")
    return None


def _surplus(view: _View) -> Iterator[Disagreement]:
    """Files outside the layout, and chunks of a finished shard that its record does not list."""
    for path in sorted(set(view.others) - view.store.layout.documents().keys()):
        yield Disagreement("surplus", path, detail="the layout has no such file")
    chunks, chunk = view.chunks, view.recorded.column("chunk")
    owners = ["/".join(spec.path.split("/")[:2]) for spec in chunks.specs]
    owner = np.array([owners.index(one) for one in owners])

    def work(numbers: np.ndarray) -> np.ndarray:
        """Identifies the chunks that one stage writes together: (`activations.zarr/trained`, shard)."""
        return owner[chunks.array(numbers)] * chunks.shards + chunks.shard(numbers)

    unrecorded = view.listed >= 0
    unrecorded[chunk] = False
    loose = np.flatnonzero(unrecorded)
    for number in loose[np.isin(work(loose), work(chunk))].tolist():
        yield Disagreement("surplus", chunks.key(number).path, detail="its shard is complete without it")


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
    found = list(found)
    layout_files = store.layout.documents() if any(item.kind == "metadata" for item in found) else {}
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
