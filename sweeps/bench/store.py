"""Speed of the store against numpy's own files, and what each codec does to given arrays."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from storage.codec import CODECS, codec_for, crc32c
from storage.format import Layout, SiteShape
from storage.store import Store
from sweeps.bench.paired import Action, Row, row, seconds, timed_pairs

SITE = SiteShape("up.3.0", 4096, 320)
"""the largest site of Stable Diffusion v1.4 at 512 x 512 pixels"""
SHARD = 8
"""samples in a chunk: 21 MB, as in the paper's experiment"""
THREADS = 2


def bench_store(bytes: int = 1 << 30, pairs: int = 5) -> list[Row]:
    """Rows `write_over_tofile` and `read_over_fromfile`: `bytes` of paper-sized chunks through store and numpy files.

    crc32c, no compressor, two threads, no fsync on either side, everything warm: an unmeasured
    round comes first. Both write new files on a disk without the other's, and both end a read
    with all the bytes in memory (dropping each chunk at once would measure the processor's cache).
    Ratios are seconds of numpy over those of the store: bytes per second of the store over numpy's.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _against_numpy(Path(folder), max(1, -(-bytes // (SHARD * SITE.tokens * SITE.channels * 2))), pairs)


def _against_numpy(folder: Path, count: int, pairs: int) -> list[Row]:
    # finite float16 noise
    bits = np.random.default_rng(0).integers(0, 0x7BFF, (count, SHARD, SITE.tokens, SITE.channels), dtype=np.uint16)
    chunks = bits.view(np.float16)
    layout = Layout(count * SHARD, SHARD, ("trained",), (SITE,), steps=1, image=(8, 8), latent=(4, 8, 8))
    store = Store.create(str(folder / "store"), layout, durable=False)
    assert store.files.threads == THREADS
    files = [folder / f"{number}.bin" for number in range(count)]
    out = np.zeros((1, layout.samples, SITE.tokens, SITE.channels), np.float16)

    def clear() -> None:
        store.files.delete([key.path for key in store.array(layout.activations("trained", SITE.name)).keys()])
        for file in files:
            file.unlink(missing_ok=True)

    def write() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            write_shard = store.write_activation
            list(pool.map(lambda shard: write_shard("trained", SITE.name, 1, shard, chunks[shard]), range(count)))

    def tofile() -> None:
        for file, chunk in zip(files, chunks, strict=True):
            chunk.tofile(file)

    written = timed_pairs(tofile, write, pairs, before=clear)
    write()
    tofile()
    read = timed_pairs(
        lambda: [np.fromfile(file, np.float16) for file in files],
        lambda: store.read_activations_into("trained", SITE.name, [1], None, out),
        pairs,
    )
    return [
        row("write_over_tofile", "tofile", "the store", written),
        row("read_over_fromfile", "fromfile", "the store", read),
    ]


def compare_codecs(chunks: dict[str, np.ndarray], repeats: int = 3) -> list[Row]:
    """Compression and speed of each installed codec on given chunks, such as activations of a site.

    `chunks`: name -> array as it would be written. Returns a row for each name and codec: `ratio` is raw bytes
    over stored bytes; `write` and `read` are the best of the repeats in bytes of raw array per second, one thread,
    checksum included, disk excluded.
    """
    rows = []
    for name, values in chunks.items():
        for codec in CODECS:
            if found := _codec_row(name, codec, np.ascontiguousarray(values), repeats):
                rows.append(found)
    return rows


def _codec_row(name: str, codec: str, values: np.ndarray, repeats: int) -> Row | None:
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

    def speed(work: Action) -> float:
        return values.nbytes / min(seconds(work) for _ in range(repeats))

    write, read = speed(lambda: coder.encode(values)), speed(decode)
    assert out.tobytes() == values.tobytes(), f"{codec} is not lossless"
    return {"what": name, "codec": codec, "ratio": values.nbytes / size, "write": write, "read": read}
