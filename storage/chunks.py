"""Moving whole chunks between numpy arrays and files: checked, padded, checksummed, in threads."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from storage.backends.files import Files
from storage.codec import CRC_BYTES, Part, as_bytes, codec_for, crc32c, refuse_nonfinite
from storage.errors import CorruptChunk, MissingChunk, NonFinite
from storage.format import ArraySpec
from storage.keys import ChunkKey

REDO = "redo its shard (scenesweep verify --repair, then run again)"


@dataclass(frozen=True)
class _Job:
    """One chunk to read, and where its samples go."""

    key: ChunkKey
    out: np.ndarray
    """(n, *inner): the requested step's part of the answer."""
    positions: np.ndarray
    """Where in `out` the samples go."""
    rows: np.ndarray
    """Which samples of the chunk they are."""

    def direct(self, size: int) -> np.ndarray | None:
        """The part of `out` that is exactly the whole chunk, if there is one."""
        start = self.positions[0]
        whole = len(self.rows) == size and np.array_equal(self.rows, np.arange(size))
        if whole and np.array_equal(self.positions, np.arange(start, start + size)):
            part = self.out[start : start + size]
            return part if part.flags.c_contiguous else None
        return None


class Chunks:
    """Reads and writes the chunks of a store's arrays."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def write(self, spec: ArraySpec, key: ChunkKey, values: np.ndarray) -> tuple[int, int]:
        """Write one chunk from (n, *inner) values, n the samples of this shard.

        Returns the file's size and crc32c. ValueError for another shape or a type that does not
        convert safely; NonFinite for NaN or infinity (also from overflow in the conversion).
        """
        parts, size, crc = self._encoded(spec, key, self._converted(spec, key, values))
        self._files.put(key.path, parts)
        return size, crc

    def _encoded(self, spec: ArraySpec, key: ChunkKey,
                 values: np.ndarray) -> tuple[list[Part], int, int]:  # fmt: skip
        codec = codec_for(spec.codec, spec.dtype)
        try:
            if len(values) == spec.chunk[0]:
                return codec.encode_finite(values)
            refuse_nonfinite(values)
            return codec.encode(self._padded(spec, values))
        except NonFinite as error:
            raise NonFinite(f"{key.path}: {error}") from None

    def _converted(self, spec: ArraySpec, key: ChunkKey, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values)
        expected = (len(spec.rows(key.shard)), *spec.inner)
        if values.shape != expected:
            raise ValueError(
                f"{key.path}: shape {values.shape} where {expected} is due: write the whole shard "
                f"(samples {spec.rows(key.shard)}) at once"
            )
        if not np.can_cast(values.dtype, spec.dtype, "same_kind"):
            raise ValueError(f"{key.path}: {values.dtype} can't be stored as {spec.dtype}")
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values, dtype=np.dtype(spec.dtype).newbyteorder("<"))

    def _padded(self, spec: ArraySpec, values: np.ndarray) -> np.ndarray:
        block = np.full(spec.chunk_shape, spec.fill, spec.dtype)
        block[: len(values)] = values
        return block

    def read(self, spec: ArraySpec, key: ChunkKey, out: np.ndarray) -> int:
        """Fill `out` (C-contiguous, whole chunk) and return the crc32c, which was checked.

        MissingChunk if there is no such file. CorruptChunk if its size or checksum is wrong, read
        twice: network file systems are known to serve passing errors.
        """
        try:
            try:
                return self._read_once(spec, key, out)
            except CorruptChunk:
                return self._read_once(spec, key, out)
        except FileNotFoundError:
            raise MissingChunk(f"{key.path}: no such chunk in {self._files.url}: {REDO}") from None

    def _read_once(self, spec: ArraySpec, key: ChunkKey, out: np.ndarray) -> int:
        codec = codec_for(spec.codec, spec.dtype)
        if codec.decompress is None:
            body, tail = as_bytes(out), np.empty(CRC_BYTES, np.uint8)
            size, crc = self._files.read_chunk(key.path, body, tail)
            self._check_size(key, size, body.nbytes + CRC_BYTES)
            return self._checked(key, crc, tail)
        data = np.frombuffer(self._files.get(key.path), np.uint8)
        body, tail = data[:-CRC_BYTES], data[-CRC_BYTES:]
        crc = self._checked(key, crc32c(body), tail)
        try:
            codec.decompress(body, out)
        except (RuntimeError, ValueError) as error:
            raise CorruptChunk(f"{key.path}: {spec.codec}: {error}: {REDO}") from None
        return crc

    def _check_size(self, key: ChunkKey, size: int, due: int) -> None:
        if size != due:
            raise CorruptChunk(f"{key.path}: {size} bytes where {due} are due: {REDO}")

    def _checked(self, key: ChunkKey, crc: int, tail: np.ndarray) -> int:
        if tail.tobytes() != crc.to_bytes(CRC_BYTES, "little"):
            raise CorruptChunk(f"{key.path}: crc32c is {crc:08x}, stored is {tail[::-1].tobytes().hex()}: {REDO}")
        return crc

    def read_rows(self, spec: ArraySpec, steps: Sequence[int | None], samples: np.ndarray,
                  out: np.ndarray, threads: int) -> None:  # fmt: skip
        """Fill `out` (len(steps), n, *inner) with the samples, chunk by chunk in threads."""
        jobs = list(_jobs(spec, steps, samples, out))
        scratch = threading.local()

        def run(job: _Job) -> None:
            direct = job.direct(spec.chunk[0])
            if direct is not None:
                self.read(spec, job.key, direct)
                return
            if not hasattr(scratch, "block"):
                scratch.block = np.empty(spec.chunk_shape, spec.dtype)
            self.read(spec, job.key, scratch.block)
            job.out[job.positions] = scratch.block[job.rows]

        if len(jobs) < 2 or threads < 2:
            for job in jobs:
                run(job)
            return
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(run, jobs):
                pass


def _jobs(spec: ArraySpec, steps: Sequence[int | None], samples: np.ndarray,
          out: np.ndarray) -> Iterator[_Job]:  # fmt: skip
    size = spec.chunk[0]
    shards = samples // size
    for shard in np.unique(shards).tolist():
        positions = np.flatnonzero(shards == shard)
        rows = samples[positions] - shard * size
        for step, part in zip(steps, out, strict=True):
            yield _Job(spec.key(shard, step), part, positions, rows)
