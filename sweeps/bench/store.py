"""Speed of the store against numpy's own files, and what each codec does to given arrays."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from storage.codec import CODECS, codec_for, crc32c
from storage.format import Layout, SiteShape
from storage.store import Store
from sweeps.bench.paired import row

SITE = SiteShape("up.3.0", 4096, 320)
"""The largest site of Stable Diffusion v1.4 at 512 x 512 pixels."""
ARRAY = f"activations.zarr/trained/{SITE.name}"
SHARD = 8
"""Samples in a chunk: 21 MB, as at paper size."""
THREADS = 2


def bench_store(path: str, bytes: int = 1 << 30, pairs: int = 5) -> list[dict]:
    """Write and read `bytes` of paper-sized chunks through the store and through numpy's files.

    crc32c, no compressor, two threads, no fsync on either side, everything warm: an unmeasured
    round comes first. Both write new files on a disk without the other's, and both end a read
    with all the bytes in memory (to drop each chunk at once would measure the processor's cache).
    Returns the rows `write_over_tofile` and `read_over_fromfile` (see `paired`): seconds of numpy
    over those of the store, which is bytes per second of the store over numpy's.
    """
    chunks = _chunks(max(1, -(-bytes // (SHARD * SITE.tokens * SITE.channels * 2))))
    layout = Layout(len(chunks) * SHARD, SHARD, ("trained",), (SITE,), steps=1, image=(8, 8),
                    latent=(4, 8, 8))  # fmt: skip
    store = Store.create(f"{path}/store", layout, durable=False)
    folder = Path(path) / "numpy"
    folder.mkdir(parents=True, exist_ok=True)
    out = np.zeros((1, layout.samples, SITE.tokens, SITE.channels), np.float16)

    def clear() -> None:
        store.files.delete([key.path for key in store.array(ARRAY).keys()])
        for file in folder.iterdir():
            file.unlink()

    def write() -> None:
        _write(store, chunks)

    def tofile() -> None:
        _tofile(folder, chunks)

    written = _compare("write_over_tofile", write, tofile, pairs, clear)
    write()
    tofile()
    read = _compare("read_over_fromfile", lambda: _read(store, out),
                    lambda: _fromfile(folder, len(chunks)), pairs)  # fmt: skip
    return [written, read]


def _chunks(count: int) -> np.ndarray:
    """Finite float16 noise (count, SHARD, tokens, channels)."""
    shape = (count, SHARD, SITE.tokens, SITE.channels)
    bits = np.random.default_rng(0).integers(0, 0x7BFF, shape, dtype=np.uint16)
    return bits.view(np.float16)


def _compare(what: str, ours: Callable[[], object], theirs: Callable[[], object], pairs: int,
             before: Callable[[], None] = lambda: None) -> dict:  # fmt: skip
    """Time both in turn; `before` runs untimed before each, the first pair does not count."""

    def seconds(work: Callable[[], object]) -> float:
        before()
        return _seconds(work)

    timed = [(seconds(theirs), seconds(ours)) for _ in range(pairs + 1)]
    return row(what, what.partition("_over_")[2], "the store", timed[1:])


def _write(store: Store, chunks: np.ndarray) -> None:
    def one(shard: int) -> None:
        store.write_activation("trained", SITE.name, 1, shard, chunks[shard])

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(one, range(len(chunks))):
            pass


def _read(store: Store, out: np.ndarray) -> None:
    assert store.files.threads == THREADS
    store.read_activations_into("trained", SITE.name, [1], None, out)


def _tofile(folder: Path, chunks: np.ndarray) -> None:
    for number, chunk in enumerate(chunks):
        chunk.tofile(folder / f"{number}.bin")


def _fromfile(folder: Path, count: int) -> list[np.ndarray]:
    return [np.fromfile(folder / f"{number}.bin", np.float16) for number in range(count)]


def bench_codecs(chunks: dict[str, np.ndarray], repeats: int = 3) -> list[dict]:
    """How much and how fast each codec packs given chunks, such as real activations of a site.

    `chunks`: name -> array as it would be written. Returns a row for each name and installed
    codec: `ratio` is raw bytes over stored bytes; `write` and `read` are the best of the repeats
    in bytes of raw array per second, one thread, checksum included, disk excluded.
    """
    return [
        row
        for name, values in chunks.items()
        for codec in CODECS
        if (row := _codec_row(name, codec, np.ascontiguousarray(values), repeats))
    ]


def _codec_row(name: str, codec: str, values: np.ndarray, repeats: int) -> dict | None:
    try:
        coder = codec_for(codec, values.dtype.name)
    except ValueError:
        return None  # its package is not installed
    parts, size, _ = coder.encode(values)
    body, out = np.frombuffer(parts[0], np.uint8), np.empty_like(values)

    def decode() -> None:
        assert crc32c(body) == int.from_bytes(parts[1], "little")
        if coder.decompress is None:
            out.view(np.uint8).reshape(-1)[:] = body
        else:
            coder.decompress(body, out)

    write = min(_seconds(lambda: coder.encode(values)) for _ in range(repeats))
    read = min(_seconds(decode) for _ in range(repeats))
    assert out.tobytes() == values.tobytes(), f"{codec} is not lossless"
    return {"what": name, "codec": codec, "ratio": values.nbytes / size,
            "write": values.nbytes / write, "read": values.nbytes / read}  # fmt: skip


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
