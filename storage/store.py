"""The store: one output folder or bucket, its arrays, records, tables and small files."""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from storage import keys
from storage.backends.files import Files
from storage.backends.objects import open_files
from storage.chunks import Chunks
from storage.errors import MissingChunk
from storage.format import KINDS, ArraySpec, Layout, encode_json
from storage.lease import Lease
from storage.records import Record, Records, Written
from storage.tables import Tables

if TYPE_CHECKING:
    import pyarrow as pa

Samples = Sequence[int] | np.ndarray | None
"""Sample numbers in any order; None for all of them."""


class Store:
    """One store. Thread-safe, picklable (what was written but not yet recorded stays behind)."""

    def __init__(self, files: Files, layout: Layout, *, durable: bool = True) -> None:
        self.files = files
        self.layout = layout
        self.durable = durable
        """Whether commits wait until the disk has them (local and shared file systems)."""
        self.chunks = Chunks(files)
        self.records = Records(files)
        self._tables = Tables(files)
        self._written = Written()
        self._loose: deque[str] = deque()
        """Files put but not yet synced; the next commit syncs them first."""
        self._cleaned = False

    def __reduce__(self) -> tuple:
        return _rebuild, (self.files, self.layout, self.durable)

    def __repr__(self) -> str:
        return f"Store({self.url!r}, {self.layout.samples} samples)"

    @property
    def url(self) -> str:
        """Path or URL of the store."""
        return self.files.url

    @classmethod
    def create(cls, url: str, layout: Layout, *, durable: bool = True) -> "Store":
        """Make every array's metadata, then `layout.json`; a store of equal layout is reopened.

        ValueError with a diff if a store of another layout is there.
        """
        files = open_files(url)
        stored = _stored_layout(files)
        if stored is None:
            _write_documents(files, layout, durable)
        elif difference := stored.diff(layout):
            raise ValueError(
                f"{files.url}: holds a store of another layout ({'; '.join(difference)}): choose another output folder"
            )
        return cls(files, layout, durable=durable)

    @classmethod
    def open(cls, url: str, *, durable: bool = True) -> "Store":
        """Open an existing store; ValueError if there is none."""
        files = open_files(url)
        layout = _stored_layout(files)
        if layout is None:
            raise ValueError(f"{files.url}: not a store (there is no {keys.LAYOUT} in it)")
        return cls(files, layout, durable=durable)

    def grown(self, samples: int) -> "Store":
        """Append whole shards: rewrite the metadata for more samples. Only for the lease holder."""
        layout = self.layout.grown(samples)
        _write_documents(self.files, layout, self.durable)
        return Store(self.files, layout, durable=self.durable)

    # -- arrays

    def array(self, path: str) -> ArraySpec:
        """Specification of one array; ValueError if the layout has no such array."""
        if path not in self.layout.arrays:
            folder = path.rpartition("/")[0]
            near = [p for p in self.layout.arrays if p.startswith(folder)] or self.layout.arrays
            raise ValueError(f"{self.url}: no array {path!r}; there are {', '.join(near)}")
        return self.layout.arrays[path]

    def _write(self, path: str, owner: str, shard: int, step: int | None, values: Any) -> None:
        spec = self.array(path)
        key = spec.key(shard, step)
        size, crc = self.chunks.write(spec, key, values)
        self._written.add(owner, shard, key.path, size, crc)

    def _read(self, path: str, steps: Sequence[int | None], samples: Samples) -> np.ndarray:
        spec = self.array(path)
        chosen = _chosen(spec, samples)
        out = np.empty((len(steps), len(chosen), *spec.inner), spec.dtype)
        self._read_into(spec, steps, chosen, out)
        return out

    def _read_into(self, spec: ArraySpec, steps: Sequence[int | None], samples: np.ndarray,
                   out: np.ndarray) -> None:  # fmt: skip
        try:
            self.chunks.read_rows(spec, steps, samples, out, self.files.threads)
        except MissingChunk as error:
            if self.cleaned and spec.path.startswith("activations.zarr/"):
                raise MissingChunk(f"{spec.path}: activations of {self.url} were cleaned") from None
            raise error

    def write_activation(self, variant: str, site: str, step: int, shard: int,
                         values: np.ndarray) -> None:  # fmt: skip
        """Write what a site gave at a step for all n samples of a shard: float16 (n, T, C)."""
        self._write(f"activations.zarr/{variant}/{site}", variant, shard, step, values)

    def read_activations(self, variant: str, site: str, step: int,
                         samples: Samples = None) -> np.ndarray:  # fmt: skip
        """float16 (n, T, C). MissingChunk or CorruptChunk if any of them is not whole."""
        return self._read(f"activations.zarr/{variant}/{site}", [step], samples)[0]

    def read_activations_into(self, variant: str, site: str, steps: Sequence[int],
                              samples: Samples, out: np.ndarray) -> None:  # fmt: skip
        """Fill `out`, float16 (len(steps), n, T, C), chunk by chunk in threads, without copies
        where whole shards are asked for in order."""
        spec = self.array(f"activations.zarr/{variant}/{site}")
        chosen = _chosen(spec, samples)
        expected = (len(steps), len(chosen), *spec.inner)
        if out.shape != expected or out.dtype != spec.dtype:
            raise ValueError(f"{spec.path}: `out` is {out.dtype} {out.shape}, due is {spec.dtype} "
                             f"{expected}")  # fmt: skip
        self._read_into(spec, list(steps), chosen, out)

    def write_images(self, variant: str, shard: int, values: np.ndarray) -> None:
        """uint8 (n, H, W, 3): the finished images of a shard."""
        self._write(f"images.zarr/{variant}", variant, shard, None, values)

    def read_images(self, variant: str, samples: Samples = None) -> np.ndarray:
        """uint8 (n, H, W, 3)."""
        return self._read(f"images.zarr/{variant}", [None], samples)[0]

    def write_latents(self, variant: str, shard: int, step: int, xt: np.ndarray,
                      x0: np.ndarray) -> None:  # fmt: skip
        """float32 (n, C, h, w) each: the noisy latent that entered a step, and its clean estimate
        x0 = x - sigma * eps (guided)."""
        for kind, values in zip(KINDS, (xt, x0), strict=True):
            self._write(f"latents.zarr/{variant}/{kind}", variant, shard, step, values)

    def read_latents(self, variant: str, step: int,
                     samples: Samples = None) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """(xt, x0), float32 (n, C, h, w) each."""
        xt, x0 = (self._read(f"latents.zarr/{variant}/{k}", [step], samples)[0] for k in KINDS)
        return xt, x0

    def write_labels(self, task: str, shard: int, values: np.ndarray) -> None:
        """(n, H, W): label maps of the trained model's images of a shard."""
        self._write(f"labels.zarr/{task}", _LABELS, shard, None, values)

    def read_labels(self, task: str, samples: Samples = None) -> np.ndarray:
        """(n, H, W) of the task's dtype."""
        return self._read(f"labels.zarr/{task}", [None], samples)[0]

    def write_step_images(self, variant: str, step: int, kind: str, shard: int,
                          values: np.ndarray) -> None:  # fmt: skip
        """uint8 (n, H, W, 3): decoded `xt` or `x0` of a step, for the shard's samples among the
        first `layout.step_images`."""
        self._write(f"images_steps.zarr/{variant}/{kind}", variant, shard, step, values)

    def read_step_images(self, variant: str, step: int, kind: str,
                         samples: Samples = None) -> np.ndarray:  # fmt: skip
        """uint8 (n, H, W, 3)."""
        return self._read(f"images_steps.zarr/{variant}/{kind}", [step], samples)[0]

    def write_step_labels(self, variant: str, step: int, kind: str, task: str, shard: int,
                          values: np.ndarray) -> None:  # fmt: skip
        """(n, H, W): labels of the partial images of a step."""
        path = f"labels_steps.zarr/{variant}/{kind}/{task}"
        self._write(path, _LABELS + variant, shard, step, values)

    def read_step_labels(self, variant: str, step: int, kind: str, task: str,
                         samples: Samples = None) -> np.ndarray:  # fmt: skip
        """(n, H, W) of the task's dtype."""
        return self._read(f"labels_steps.zarr/{variant}/{kind}/{task}", [step], samples)[0]

    def zarr(self) -> Any:
        """The same arrays through zarr-python, read-only: `store.zarr()["images.zarr/trained"]`.

        Zarr answers a missing chunk with the fill value; the read methods above refuse it.
        """
        return _ZarrArrays(self.files.zarr_store())

    # -- completion

    def complete(self, stage: str, variant: str, shard: int, *,
                 stage_hash: str | None = None) -> Record:  # fmt: skip
        """Sync what this process wrote for the shard, then write its completion record.

        Stages whose name starts with `label` own labels.zarr and labels_steps.zarr; any other
        stage owns the rest. ValueError if nothing was written here.
        """
        chunks: dict[str, tuple[int, int]] = {}
        for owner in self._owners(stage, variant):
            chunks |= self._written.take(owner, shard)
        if not chunks:
            raise ValueError(
                f"{keys.record_path(stage, variant, shard)}: this process wrote no chunk of it: "
                "complete() belongs to the Store object that wrote the shard"
            )
        record = Record(stage, variant, shard, dict(sorted(chunks.items())), stage_hash)
        self._sync_loose()
        self.records.write(record, sync=self.durable)
        return record

    def _sync_loose(self) -> None:
        """Sync the files put since the last commit, so that no commit outlives what it rests on."""
        paths = []
        while self._loose:
            paths.append(self._loose.popleft())
        if paths and self.durable:
            self.files.sync(paths)

    def _owners(self, stage: str, variant: str) -> tuple[str, ...]:
        return (_LABELS, _LABELS + variant) if stage.startswith("label") else (variant,)

    def completed(self, stage: str, variant: str, *, stage_hash: str | None = None) -> set[int]:
        """Shards whose record parses and whose chunks exist with the recorded sizes."""
        return set(self.records.valid(stage, variant, stage_hash, self._removed()))

    def complete_samples(self, stage: str, variant: str, *,
                         stage_hash: str | None = None) -> np.ndarray:  # fmt: skip
        """Sample numbers of all completed shards, ascending."""
        shards = sorted(self.completed(stage, variant, stage_hash=stage_hash))
        found = [np.arange(r.start, r.stop) for r in map(self.layout.shard_samples, shards)]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def fail(self, stage: str, variant: str, shard: int, reason: str) -> None:
        """Note that a shard failed and why; what it wrote is forgotten."""
        for owner in self._owners(stage, variant):
            self._written.take(owner, shard)
        self.records.fail(stage, variant, shard, reason)

    def failures(self, stage: str, variant: str) -> dict[int, str]:
        """Shard -> reason of the failed shards that were not completed since."""
        return self.records.failures(stage, variant)

    @property
    def cleaned(self) -> bool:
        """Whether the activations were removed on purpose."""
        if not self._cleaned:
            self._cleaned = self.exists(keys.CLEANED)
        return self._cleaned

    def _removed(self) -> Sequence[str]:
        return ["activations.zarr/"] if self.cleaned else []

    def drop_activations(self) -> int:
        """Free the activations' space and keep everything else; the bytes freed."""
        note = encode_json({"removed": ["activations.zarr/"]})
        self.files.put(keys.CLEANED, [note], sync=self.durable)
        chunks = {p: n for p, n in self.files.list("activations.zarr/").items()
                  if not p.endswith("/zarr.json")}  # fmt: skip
        self.files.delete(chunks)
        return sum(chunks.values())

    # -- files

    def put(self, path: str, data: bytes) -> None:
        """Write a small file atomically; the next `complete` or `append` makes it durable."""
        self.files.put(path, [data])
        self._loose.append(path)

    def get(self, path: str) -> bytes:
        """Read a small file; FileNotFoundError if there is none."""
        return self.files.get(path)

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return bool(self.files.sizes([path]))

    def list(self, prefix: str = "") -> Sequence[str]:
        """Paths that start with `prefix`, sorted, without half-written files."""
        return list(self.files.list(prefix))

    def delete(self, path: str) -> None:
        """Remove a file, if there is one."""
        self.files.delete([path])

    def remove_partial_files(self) -> Sequence[str]:
        """Remove the half-written files of killed processes. Only for the lease holder."""
        return self.files.remove_partial_files()

    def lease(self, owner: str, **options: Any) -> Lease:
        """`with store.lease(owner):` keeps other planners off; LeaseHeld if one is at work."""
        return Lease(self.files, owner, **options)

    def in_use(self) -> bool:
        """Whether a living planner holds the lease."""
        return Lease(self.files, "status").held_by_other()

    # -- tables

    def append(self, table: str, rows: Iterable[dict]) -> str:
        """Add rows to a results table as one new Parquet part; its path."""
        self._sync_loose()
        return self._tables.append(table, rows, sync=self.durable)

    def table(self, name: str, stage_hash: str | Collection[str] | None = None,
              current: bool = True) -> "pa.Table":  # fmt: skip
        """All rows of a results table; with `current`, only the latest attempt of each key."""
        return self._tables.read(name, stage_hash, current)

    def read_parquet(self, path: str) -> "pa.Table":
        """One Parquet file of the store; ValueError if it can't be read."""
        return self._tables.read_file(path)

    def write_samples(self, rows: Iterable[dict]) -> None:
        """Write `samples.parquet` once; later calls may only append rows."""
        self._tables.write_samples(rows, self.layout, sync=self.durable)

    def samples(self) -> "pa.Table":
        """sample, prompt, seed, shard."""
        return self._tables.read_file(keys.SAMPLES)

    def write_curation(self, rows: Iterable[dict]) -> None:
        """Write, or replace, `curation.parquet`: one row for each sample."""
        self._tables.write_curation(rows, sync=self.durable)

    def curation(self) -> "pa.Table":
        """sample, keep, reason, split."""
        return self._tables.read_file(keys.CURATION)


_LABELS = "/labels/"
"""Owner of label chunks in the memory of what was written; no variant can be called so."""


class _ZarrArrays:
    """`[path]` opens one array with zarr-python."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def __getitem__(self, path: str) -> Any:
        import zarr

        return zarr.open(self.store, path=path, mode="r")


def _rebuild(files: Files, layout: Layout, durable: bool) -> Store:
    return Store(files, layout, durable=durable)


def _stored_layout(files: Files) -> Layout | None:
    try:
        return Layout.from_json(files.get(keys.LAYOUT), files.url)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write_documents(files: Files, layout: Layout, durable: bool) -> None:
    """Metadata of every array, then `layout.json`, which makes it a store."""
    documents = layout.documents()
    for path, data in documents.items():
        files.put(path, [data])
    if durable:
        files.sync(documents)
    files.put(keys.LAYOUT, [layout.to_json()], sync=durable)


def _chosen(spec: ArraySpec, samples: Samples) -> np.ndarray:
    """Sample numbers as int64; ValueError if one is outside the array."""
    count = spec.shape[0]
    if samples is None:
        return np.arange(count)
    chosen = np.asarray(samples, dtype=np.int64).reshape(-1)
    bad = chosen[(chosen < 0) | (chosen >= count)]
    if bad.size:
        raise ValueError(f"{spec.path}: sample {bad[0]} is outside 0..{count - 1}")
    return chosen
