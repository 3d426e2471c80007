"""Read and write whole chunks: checked, padded, checksummed, in threads."""

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
    """One chunk to read and the destination of its samples."""

    key: ChunkKey
    out: np.ndarray
    """(n, *inner): the result for one step."""
    positions: np.ndarray
    """Positions of the samples in `out`."""
    rows: np.ndarray
    """Positions of the same samples in the chunk."""

    def direct(self, size: int) -> np.ndarray | None:
        """The part of `out` that equals the whole chunk of `size` samples, so that no copy is needed, or None."""
        chunk = np.arange(size)
        if not (np.array_equal(self.rows, chunk) and np.array_equal(self.positions, self.positions[0] + chunk)):
            return None
        part = self.out[self.positions[0] : self.positions[0] + size]
        return part if part.flags.c_contiguous else None


class Chunks:
    """Reads and writes the chunks of a store's arrays."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def write(self, spec: ArraySpec, key: ChunkKey, values: np.ndarray) -> tuple[int, int]:
        """Write one chunk from (n, *inner) values, where n is the number of samples of this shard.

        Returns the file's size and crc32c. Raises ValueError for another shape or a type that does
        not convert safely, NonFinite for NaN or infinity (also from overflow in the conversion).
        """
        values = np.asarray(values)
        rows = spec.rows(key.shard)
        expected = (len(rows), *spec.inner)
        if values.shape != expected:
            raise ValueError(
                f"{key.path}: expected shape {expected}, got {values.shape}: write the whole shard "
                f"(samples {rows}) at once"
            )
        if not np.can_cast(values.dtype, spec.dtype, "same_kind"):
            raise ValueError(f"{key.path}: {values.dtype} can't be stored as {spec.dtype}")
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(values, dtype=np.dtype(spec.dtype).newbyteorder("<"))
        parts, size, crc = self._encoded(spec, key, values)
        self._files.put(key.path, parts)
        return size, crc

    def _encoded(self, spec: ArraySpec, key: ChunkKey, values: np.ndarray) -> tuple[list[Part], int, int]:
        codec = codec_for(spec.codec, spec.dtype)
        try:
            if len(values) == spec.chunk[0]:
                return codec.encode_finite(values)
            refuse_nonfinite(values)  # before padding with NaN
        except NonFinite as error:
            raise NonFinite(f"{key.path}: {error}") from None
        block = np.full(spec.chunk_shape, spec.fill, spec.dtype)
        block[: len(values)] = values
        return codec.encode(block)

    def read(self, spec: ArraySpec, key: ChunkKey, out: np.ndarray) -> int:
        """Fill `out` (C-contiguous, whole chunk) and return the verified crc32c.

        Raises MissingChunk if there is no such file, CorruptChunk if its size or checksum is wrong
        twice: network file systems are known to return transient errors.
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
            if size != body.nbytes + CRC_BYTES:
                raise CorruptChunk(f"{key.path}: expected {body.nbytes + CRC_BYTES} bytes, got {size}: {REDO}")
            return self._checked(key, crc, tail)
        data = np.frombuffer(self._files.get(key.path), np.uint8)
        body, tail = data[:-CRC_BYTES], data[-CRC_BYTES:]
        crc = self._checked(key, crc32c(body), tail)
        try:
            codec.decompress(body, out)
        except (RuntimeError, ValueError) as error:
            raise CorruptChunk(f"{key.path}: {spec.codec}: {error}: {REDO}") from None
        return crc

    def _checked(self, key: ChunkKey, crc: int, tail: np.ndarray) -> int:
        if tail.tobytes() != crc.to_bytes(CRC_BYTES, "little"):
            raise CorruptChunk(f"{key.path}: crc32c is {crc:08x}, stored is {tail[::-1].tobytes().hex()}: {REDO}")
        return crc

    def read_rows(
        self, spec: ArraySpec, steps: Sequence[int | None], samples: np.ndarray, out: np.ndarray, threads: int
    ) -> None:
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
            list(pool.map(run, jobs))  # raises what a job raised


def _jobs(spec: ArraySpec, steps: Sequence[int | None], samples: np.ndarray, out: np.ndarray) -> Iterator[_Job]:
    size = spec.chunk[0]
    shards = samples // size
    for shard in np.unique(shards).tolist():
        positions = np.flatnonzero(shards == shard)
        rows = samples[positions] - shard * size
        for step, part in zip(steps, out, strict=True):
            yield _Job(spec.key(shard, step), part, positions, rows)
