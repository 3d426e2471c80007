"""The store: one output folder or bucket with its arrays, records, tables and small files."""

import json
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from storage import keys, reading
from storage.backends import open_files
from storage.backends.files import Files
from storage.chunks import Chunks
from storage.documents import (
    FILES,
    Checksum,
    check_recorded,
    checksum,
    decode_checksums,
    encode_checksums,
    seal,
    unseal,
)
from storage.errors import CorruptFile, MissingChunk
from storage.format import KINDS, ArraySpec, Layout, encode_json
from storage.lease import Lease, guarding
from storage.records import Record, Records
from storage.tables import TablePart, Tables

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import xarray

Samples = Sequence[int] | np.ndarray | None
"""Sample numbers in any order; None for all of them."""

T = TypeVar("T")
TRAINED = "trained"
_LABELS = "/labels/"
"""Owner of label chunks among those written but not yet recorded; no variant can have this name."""


class Store:
    """One store. Thread-safe and picklable; a copy does not know what was written but not yet recorded.

    Every method that writes raises LeaseHeld, and writes nothing, once another planner has taken
    over the lease that this process held.
    """

    def __init__(self, files: Files, layout: Layout, *, durable: bool = True) -> None:
        self.files = files
        self.layout = layout
        self.durable = durable
        """Whether commits wait until the disk has them (local and shared file systems)."""
        self.chunks = Chunks(files)
        self.records = Records(files)
        self._tables = Tables(files)
        self._written: dict[tuple[str, int], dict[str, tuple[int, int]]] = {}
        """(owner, shard) -> chunks written but not yet recorded, as in `Record.chunks`. Used by several threads, which
        needs no lock, because each operation on it is atomic and each chunk is written by one thread."""
        self._checksums: dict[str, Checksum] = {}
        """Of the small files and parts that this object wrote."""
        self._unsynced: deque[str] = deque()
        """Small files written since the last commit; the next one syncs them first."""
        self._cleaned = False

    def __reduce__(self) -> tuple:
        return partial(Store, durable=self.durable), (self.files, self.layout)

    def __repr__(self) -> str:
        return f"Store({self.url!r}, {self.layout.samples} samples)"

    @property
    def url(self) -> str:
        """Path or URL of the store."""
        return self.files.url

    @classmethod
    def create(cls, url: str, layout: Layout, *, durable: bool = True) -> "Store":
        """Write the metadata of every array, then `layout.json`; a store of equal layout is reopened as it is.

        Raises ValueError, listing the differences, if a store of another layout is there. If only
        `layout.json` differs, and no array does, then it is damaged and written again.
        """
        files = open_files(url)
        problem: ValueError | None = None
        try:
            stored = _stored_layout(files)
        except CorruptFile as error:
            stored, problem = None, error
        if stored is not None and (difference := "; ".join(stored.diff(layout))):
            problem = ValueError(
                f"{files.url}: holds a store of another layout ({difference}): choose another output folder"
            )
        if problem or (stored is not None and stored.to_json() != replace(layout, format=stored.format).to_json()):
            if found := _layout_of_arrays(files, layout):
                files.put(keys.LAYOUT, [found.to_json()], sync=durable)
                stored, problem = found, None
        if problem:
            raise problem
        if stored is None:
            documents = layout.documents()
            with ThreadPoolExecutor(files.threads) as pool:
                list(pool.map(lambda path: files.put(path, [documents[path]]), documents))
            if durable:
                files.sync(documents)
            files.put(keys.LAYOUT, [layout.to_json()], sync=durable)
        return cls(files, stored or layout, durable=durable)

    @classmethod
    def open(cls, url: str, *, durable: bool = True) -> "Store":
        """Open an existing store. Raises ValueError if there is none."""
        files = open_files(url)
        layout = _stored_layout(files)
        if layout is None:
            raise ValueError(f"{files.url}: not a store (there is no {keys.LAYOUT} in it)")
        return cls(files, layout, durable=durable)

    # -- arrays

    def array(self, path: str) -> ArraySpec:
        """Specification of one array. Raises ValueError if the layout has no such array."""
        if path not in self.layout.arrays:
            folder = path.rpartition("/")[0]
            near = [p for p in self.layout.arrays if p.startswith(folder)] or self.layout.arrays
            raise ValueError(f"{self.url}: no array {path!r}; there are {', '.join(near)}")
        return self.layout.arrays[path]

    def _write(self, path: str, owner: str, shard: int, step: int | None, values: np.ndarray) -> None:
        self._check_lease()
        spec = self.array(path)
        key = spec.key(shard, step)
        size, crc = self.chunks.write(spec, key, values)
        self._written.setdefault((owner, shard), {})[key.path] = (size, crc)

    def _read(self, path: str, step: int | None, samples: Samples) -> np.ndarray:
        spec = self.array(path)
        chosen = _chosen(spec, samples)
        out = np.empty((1, len(chosen), *spec.inner), spec.dtype)
        self._read_into(spec, [step], chosen, out)
        return out[0]

    def _read_into(self, spec: ArraySpec, steps: Sequence[int | None], samples: np.ndarray, out: np.ndarray) -> None:
        try:
            self.chunks.read_rows(spec, steps, samples, out, self.files.threads)
        except MissingChunk:
            if self.cleaned and spec.path.startswith(keys.ACTIVATIONS):
                raise MissingChunk(f"{spec.path}: activations of {self.url} were cleaned") from None
            raise

    def write_activation(self, variant: str, site: str, step: int, shard: int, values: np.ndarray) -> None:
        """Write a site's activations at a step for all n samples of a shard: float16 (n, T, C)."""
        self._write(self.layout.activations(variant, site), variant, shard, step, values)

    def read_activations(self, variant: str, site: str, step: int, samples: Samples = None) -> np.ndarray:
        """float16 (n, T, C). Raises MissingChunk or CorruptChunk if a chunk is absent or damaged."""
        return self._read(self.layout.activations(variant, site), step, samples)

    def read_activations_into(
        self, variant: str, site: str, steps: Sequence[int], samples: Samples, out: np.ndarray
    ) -> None:
        """Fill `out`, float16 (len(steps), n, T, C), chunk by chunk in threads.

        Makes no copies if whole shards are requested in order.
        """
        spec = self.array(self.layout.activations(variant, site))
        chosen = _chosen(spec, samples)
        expected = (len(steps), len(chosen), *spec.inner)
        if out.shape != expected or out.dtype != spec.dtype:
            raise ValueError(f"{spec.path}: expected `out` {spec.dtype} {expected}, got {out.dtype} {out.shape}")
        self._read_into(spec, list(steps), chosen, out)

    def write_images(self, variant: str, shard: int, values: np.ndarray) -> None:
        """Write the finished images of a shard: uint8 (n, H, W, 3)."""
        self._write(self.layout.images(variant), variant, shard, None, values)

    def read_images(self, variant: str, samples: Samples = None) -> np.ndarray:
        """uint8 (n, H, W, 3)."""
        return self._read(self.layout.images(variant), None, samples)

    def write_latents(self, variant: str, shard: int, step: int, xt: np.ndarray, x0: np.ndarray) -> None:
        """Write both latents of a step: float32 (n, C, h, w) each.

        `xt` is the latent after the step. `x0` = x - sigma * eps (guided) is the clean estimate of
        the step's network call, x being the latent that entered the step.
        """
        for kind, values in zip(KINDS, (xt, x0), strict=True):
            self._write(self.layout.latents(variant, kind), variant, shard, step, values)

    def read_latents(self, variant: str, step: int, samples: Samples = None) -> tuple[np.ndarray, np.ndarray]:
        """(xt, x0) as in `write_latents`, float32 (n, C, h, w) each."""
        xt, x0 = (self._read(self.layout.latents(variant, kind), step, samples) for kind in KINDS)
        return xt, x0

    def write_labels(self, task: str, shard: int, values: np.ndarray) -> None:
        """Write the label maps of a shard's images of the trained model: (n, H, W)."""
        self._write(self.layout.labels(task), _LABELS, shard, None, values)

    def read_labels(self, task: str, samples: Samples = None) -> np.ndarray:
        """(n, H, W) of the task's dtype."""
        return self._read(self.layout.labels(task), None, samples)

    # -- for notebooks

    def to_xarray(self, variant: str, site: str) -> "xarray.DataArray":
        """A site's activations (sample, step, token, channel) with coordinates; values are read when needed.

        Raises MissingChunk if a chunk is absent, which xarray would read as NaN.
        """
        spec = self.array(self.layout.activations(variant, site))
        paths = [key.path for key in spec.keys()]
        if absent := sorted(set(paths) - self.files.list(f"{spec.path}/c/").keys()):
            if self.cleaned:
                raise MissingChunk(f"{spec.path}: activations of {self.url} were cleaned")
            raise MissingChunk(f"{absent[0]}: no such chunk in {self.url} ({len(absent)} of {len(paths)} are missing)")
        return reading.as_xarray(self.files, self.layout, spec, "activations")

    def scores(self) -> "pd.DataFrame":
        """One row for each finished probe of the run's present settings; `storage.SCORES` explains the columns."""
        stages = self.readable_document(keys.MANIFEST).get("stages", {})
        hashes = {*stages.values(), *self.readable_document(keys.EXPERIMENTS).values()} if stages else set()
        return reading.scores(self.table("probes"), hashes, [site.name for site in self.layout.sites])

    def torch_dataset(
        self, site: str, step: int, task: str, *, split: str = "train", variant: str = TRAINED
    ) -> reading.Examples:
        """Activations and label maps of one split (`train`, `val` or `test`) for a torch DataLoader, in memory.

        Raises ValueError if the samples are not curated yet, or the split is empty.
        """
        try:
            curated = self.curation().to_pylist()
        except FileNotFoundError:
            raise ValueError(f"{self.url}: the samples are not curated yet, so there is no split") from None
        samples = np.array([row["sample"] for row in curated if row["keep"] and row["split"] == split], np.int64)
        if not samples.size:
            there = sorted({row["split"] for row in curated if row["keep"] and row["split"]})
            raise ValueError(f"{self.url}: no samples in split {split!r}; there are {', '.join(there)}")
        activations = self.read_activations(variant, site, step, samples)
        return reading.Examples(samples, activations, self.read_labels(task, samples))

    # -- completion

    def complete(self, stage: str, variant: str, shard: int, *, stage_hash: str | None = None) -> Record:
        """Sync what this object wrote for the shard, then write its completion record.

        Stages whose name starts with `label` own labels.zarr; any other stage owns the rest.
        Raises ValueError if this object wrote nothing for the shard.
        """
        self._check_lease()
        chunks = self._written.pop((_owner(stage, variant), shard), None)
        if not chunks:
            raise ValueError(
                f"{keys.record_path(stage, variant, shard)}: this process wrote no chunk of it: "
                "complete() belongs to the Store object that wrote the shard"
            )
        record = Record(stage, variant, shard, dict(sorted(chunks.items())), stage_hash)
        self._sync_small_files()
        self.records.write(record, sync=self.durable)
        return record

    def _sync_small_files(self) -> None:
        """Sync the small files written since the last commit, which may rest on them."""
        paths = []
        while self._unsynced:
            paths.append(self._unsynced.popleft())
        if paths and self.durable:
            self.files.sync(paths)

    def completed(self, stage: str, variant: str, *, stage_hash: str | None = None) -> set[int]:
        """Shards whose record parses and whose chunks exist with the recorded sizes."""
        return set(self.records.completed(stage, variant, stage_hash, self._removed))

    @property
    def _removed(self) -> tuple[str, ...]:
        """Prefixes of chunks that were removed on purpose."""
        return (keys.ACTIVATIONS,) if self.cleaned else ()

    def any_completed(self, stage: str, variant: str, *, stage_hash: str | None = None) -> bool:
        """Whether any shard is completed; reads no more than it must."""
        return self.records.any_completed(stage, variant, stage_hash, self._removed)

    def fail(self, stage: str, variant: str, shard: int, reason: str) -> None:
        """Note that a shard failed and why; forget what was written for it."""
        self._check_lease()
        self._written.pop((_owner(stage, variant), shard), None)
        self.records.fail(stage, variant, shard, reason)

    def failures(self, stage: str, variant: str) -> dict[int, str]:
        """Shard -> reason, for failed shards that were not completed since."""
        return self.records.failures(stage, variant)

    @property
    def cleaned(self) -> bool:
        """Whether the activations were removed on purpose."""
        if not self._cleaned:
            self._cleaned = self.exists(keys.CLEANED)
        return self._cleaned

    def drop_activations(self) -> int:
        """Remove the activations and keep everything else; return the number of bytes freed."""
        self._check_lease()
        note = encode_json({"removed": [keys.ACTIVATIONS]})
        self.files.put(keys.CLEANED, [note], sync=self.durable)
        return self._remove(keys.ACTIVATIONS, kept=self.layout.documents().keys())

    def _remove(self, prefix: str, kept: Collection[str] = ()) -> int:
        """Delete the files under a prefix, a thousand at a time, except some; return the number of bytes freed."""
        freed = 0
        entries = (entry for entry in self.files.walk(prefix) if entry.path not in kept)
        while batch := list(islice(entries, 1000)):
            self.files.delete([entry.path for entry in batch])
            freed += sum(entry.size for entry in batch)
        return freed

    # -- files

    def put(self, path: str, data: bytes) -> None:
        """Write a small file atomically; the next `complete` or `append` makes it durable."""
        self._check_lease()
        self.files.put(path, [data])
        self._checksums[path] = checksum(data)
        self._unsynced.append(path)

    def get(self, path: str, recorded_in: str = "") -> bytes:
        """Read a small file. Raises FileNotFoundError if there is none.

        Raises CorruptFile if the file is not the one that the document `recorded_in` records.
        """
        data = self.files.get(path)
        if recorded_in and (recorded := self.recorded(recorded_in).get(path)):
            check_recorded(data, path, recorded)
        return data

    def put_document(self, path: str, document: Mapping[str, Any], files: Mapping[str, Checksum] | None = None) -> None:
        """Write a JSON object with its own checksum and those of `files`, unless it is stored already."""
        recorded = {FILES: encode_checksums(files)} if files else {}
        data = seal({**document, **recorded})
        if not self.exists(path) or self.files.get(path) != data:
            self.put(path, data)

    def document(self, path: str) -> dict[str, Any]:
        """Read a JSON object. Raises FileNotFoundError if there is none, CorruptFile if it is damaged."""
        document = unseal(self.files.get(path), path)
        document.pop(FILES, None)
        return document

    def readable_document(self, path: str) -> dict[str, Any]:
        """Read a JSON object, an empty one if it is absent or damaged: for what is written again then."""
        try:
            return self.document(path)
        except (FileNotFoundError, CorruptFile):
            return {}

    def recorded(self, path: str) -> dict[str, Checksum]:
        """Path -> checksum of the files that a document records.

        None if the document is absent, of an earlier version, or damaged, which the audit reports.
        """
        try:
            return decode_checksums(unseal(self.files.get(path), path).get(FILES, {}))
        except (FileNotFoundError, ValueError):
            return {}

    def set_aside(self, path: str) -> None:
        """Move a file, if there is one, to where nothing reads it: `set_aside/` and its path."""
        self._check_lease()
        try:
            data = self.files.get(path)
        except FileNotFoundError:
            return
        self.files.put(keys.SET_ASIDE + path, [data])
        self.files.delete([path])

    def read_json(self, path: str, kind: type[T], recorded_in: str = "") -> T:
        """A small JSON file that holds a `kind`, such as list.

        Raises ValueError that names the file if it is absent, damaged, or not the one that `recorded_in` records.
        """
        again = "run the command that made the output again"
        try:
            document = json.loads(self.get(path, recorded_in))
        except FileNotFoundError:
            raise ValueError(f"{self.url}: {path} is missing; {again}") from None
        except ValueError as error:
            raise ValueError(f"{self.url}: {path} is damaged ({error}); {again}") from None
        if not isinstance(document, kind):
            raise ValueError(f"{self.url}: {path} is damaged (no {kind.__name__}); {again}")
        return document

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return self.files.size(path) is not None

    def holds(self, prefix: str) -> bool:
        """Whether there is any file whose path starts with `prefix`."""
        return any(True for _ in self.files.walk(prefix))

    def list(self, prefix: str = "") -> Sequence[str]:
        """Sorted paths that start with `prefix`, without half-written files."""
        return list(self.files.list(prefix))

    def delete(self, path: str) -> None:
        """Remove a file, if there is one."""
        self._check_lease()
        self.files.delete([path])

    def erase(self) -> None:
        """Remove the arrays, records and documents of a run, so that another one can begin here.

        The layout goes last: until then this is a store, which can be erased again.
        """
        self._check_lease()
        documents = (keys.MANIFEST, keys.SAMPLES, keys.PROMPTS, keys.INPUTS, keys.CONFIG)
        folders = (keys.ACTIVATIONS, "images.zarr/", "labels.zarr/", "latents.zarr/", "shards/")
        self.files.delete(documents)
        for folder in folders:
            self._remove(folder)
        self.files.delete([keys.LAYOUT])

    def remove_partial_files(self) -> Sequence[str]:
        """Remove the half-written files of killed processes; return their paths. Only for the lease holder."""
        self._check_lease()
        paths = self.files.partials()
        self.files.delete(paths)
        return paths

    # -- lease

    def lease(self, owner: str) -> Lease:
        """`with store.lease(owner):` keeps other planners off. Entering raises LeaseHeld if one is at work."""
        return Lease(self.files, owner)

    def in_use(self) -> bool:
        """Whether a planner seems to hold the lease; for display, since only entering it is certain."""
        return Lease(self.files, "status").held_by_other()

    def _check_lease(self) -> None:
        for guard in guarding(self.url):
            guard.check()

    # -- tables

    def append(self, table: str, rows: Iterable[dict], files: Iterable[str] = ()) -> str:
        """Add rows to a results table as one new Parquet part; return its path.

        `files` are paths of what this object wrote before and the rows rest on: small files and other
        parts. The part records their checksums.
        """
        self._check_lease()
        self._sync_small_files()
        recorded = {path: self._checksums[path] for path in files}
        path, self._checksums[path] = self._tables.append(table, rows, recorded, sync=self.durable)
        return path

    def parts(self, table: str) -> "dict[str, TablePart | CorruptFile]":
        """Path -> part of a results table in the order of writing, or the error if it is damaged."""
        return self._tables.parts(table)

    def table(
        self, name: str, stage_hash: str | Collection[str] | None = None, current: bool = True, encoded: bool = False
    ) -> "pa.Table":
        """All rows of a results table; with `current`, only the latest attempt of each key.

        Also the tables `samples` and `curation`, which have neither stage hashes nor attempts. With `encoded`, which
        takes a third of the memory for millions of rows, names are dictionaries, samples, steps and attempts have
        32 bits, and the rows of each part are sorted by task.
        """
        if name in ("samples", "curation"):
            return getattr(self, name)()
        return self._tables.read(name, stage_hash, current, encoded)

    def read_parquet(self, path: str) -> "pa.Table":
        """One Parquet file of the store. Raises ValueError if it can't be read."""
        return self._tables.read_file(path)

    def write_samples(self, rows: Iterable[dict]) -> None:
        """Write `samples.parquet` if it is absent or damaged. Raises ValueError if it holds other samples."""
        self._check_lease()
        recorded = self.recorded(keys.MANIFEST).get(keys.SAMPLES)
        self._checksums[keys.SAMPLES] = self._tables.write_samples(rows, self.layout, recorded, sync=self.durable)

    def samples(self) -> "pa.Table":
        """Table with the columns sample, prompt, seed, shard. Raises CorruptFile if it is damaged."""
        return self._tables.read_file(keys.SAMPLES, self.recorded(keys.MANIFEST).get(keys.SAMPLES))

    def write_curation(self, rows: Iterable[dict], note: Mapping[str, Any] | None = None) -> None:
        """Write, or replace, `curation.parquet`: one row per sample; then its checksum and `note`: `curation.json`."""
        self._check_lease()
        written = self._tables.write_curation(rows, sync=self.durable)
        if note is not None or self.exists(keys.CURATED):
            self.put_document(keys.CURATED, note or self.readable_document(keys.CURATED), {keys.CURATION: written})

    def curation(self) -> "pa.Table":
        """Table with the columns sample, keep, reason, split. Raises CorruptFile if it is damaged."""
        return self._tables.read_file(keys.CURATION, self.recorded(keys.CURATED).get(keys.CURATION))

    def checksums(self, paths: Iterable[str]) -> dict[str, Checksum]:
        """Checksums of those of the small files that exist, as they are on the disk."""
        return {path: checksum(self.files.get(path)) for path in paths if self.exists(path)}


def _owner(stage: str, variant: str) -> str:
    return _LABELS if stage.startswith("label") else variant


def _layout_of_arrays(files: Files, layout: Layout) -> Layout | None:
    """The layout, in the version of the format in which all files of its arrays' metadata are there; else None."""
    every = len(layout.recorded_steps) == layout.steps
    for candidate in (layout, *([replace(layout, format=1)] if every else [])):
        with suppress(FileNotFoundError):
            if all(files.get(path) == data for path, data in candidate.documents().items()):
                return candidate
    return None


def _stored_layout(files: Files) -> Layout | None:
    try:
        return Layout.from_json(files.get(keys.LAYOUT), files.url)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _chosen(spec: ArraySpec, samples: Samples) -> np.ndarray:
    """Sample numbers as int64. Raises ValueError if one is outside the array."""
    count = spec.shape[0]
    if samples is None:
        return np.arange(count)
    chosen = np.asarray(samples, dtype=np.int64).reshape(-1)
    outside = chosen[(chosen < 0) | (chosen >= count)]
    if outside.size:
        raise ValueError(f"{spec.path}: sample {outside[0]} is outside 0..{count - 1}")
    return chosen
