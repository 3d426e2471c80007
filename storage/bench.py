"""Speed of the store against numpy's own files: `bench store`, two rows."""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from storage.format import Layout, SiteShape
from storage.store import Store

SITE = SiteShape("up.3.0", 4096, 320)
"""The largest site of Stable Diffusion v1.4 at 512 x 512 pixels."""
ARRAY = f"activations.zarr/trained/{SITE.name}"
SHARD = 8
"""Samples in a chunk: 21 MB, as at paper size."""
THREADS = 2


def bench_store(path: str, bytes: int = 1 << 30, pairs: int = 5) -> list[dict]:
    """Write and read `bytes` of paper-sized chunks through the store and through numpy's files.

    crc32c, no compressor, two threads, no fsync on either side, everything warm: an unmeasured
    round comes first. Both write new files, and both end a read with all the bytes in memory (to
    drop each chunk at once would measure the processor's cache). Returns the rows
    `write_over_tofile` and `read_over_fromfile`: `ratio` is the median over the pairs of the
    store's bytes per second over numpy's, `of` and `to` are the median seconds of the store and
    of numpy, `seconds` is the time of the whole measurement.
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

    return [
        _compare("write_over_tofile", lambda: _write(store, chunks),
                 lambda: _tofile(folder, chunks), pairs, clear),
        _compare("read_over_fromfile", lambda: _read(store, out),
                 lambda: _fromfile(folder, len(chunks)), pairs),
    ]  # fmt: skip


def _chunks(count: int) -> np.ndarray:
    """Finite float16 noise (count, SHARD, tokens, channels)."""
    shape = (count, SHARD, SITE.tokens, SITE.channels)
    bits = np.random.default_rng(0).integers(0, 0x7BFF, shape, dtype=np.uint16)
    return bits.view(np.float16)


def _compare(what: str, ours: Callable[[], object], theirs: Callable[[], object], pairs: int,
             before: Callable[[], None] = lambda: None) -> dict:  # fmt: skip
    """Time both in turn; `before` runs untimed before each pair, the first pair does not count."""
    start = time.perf_counter()
    timed = []
    for _ in range(pairs + 1):
        before()
        timed.append((_seconds(theirs), _seconds(ours)))
    del timed[0]
    return {
        "what": what,
        "ratio": statistics.median(their / our for their, our in timed),
        "of": statistics.median(our for _, our in timed),
        "to": statistics.median(their for their, _ in timed),
        "seconds": time.perf_counter() - start,
    }


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


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
