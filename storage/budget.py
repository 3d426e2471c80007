"""Estimated cost of a layout in bytes, files, memory and UNet calls."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from storage.backends import open_files
from storage.backends.files import LocalFiles
from storage.codec import CRC_BYTES
from storage.format import Layout
from storage.keys import ACTIVATIONS

STEPS_IN_FLIGHT = 2
"""Steps of one shard whose chunks may wait for the disk at the same time."""
MARGIN = 0.05
"""Share of the needed bytes that must be free in addition."""


@dataclass(frozen=True)
class Budget:
    """The cost of a layout, in bytes of codec `none`; a compressor only lowers them."""

    arrays: dict[str, int]
    """Array path -> bytes on disk when every chunk is written."""
    files: int
    """Number of chunk files."""
    chunk_bytes: int
    """Bytes of the largest chunk."""
    peak_writer_bytes: int
    """Bytes of STEPS_IN_FLIGHT steps of one shard: the buffers of a worker besides its model."""
    slice_bytes: int
    """Bytes of the largest (site, step) over all samples, which a probe trial reads at once."""
    unet_calls: int
    """Samples x steps x variants; the two halves of guidance count as one call."""
    unet_batches: int
    """Calls of the network: shards x steps x variants."""

    @property
    def total(self) -> int:
        """Bytes of all arrays."""
        return sum(self.arrays.values())

    def families(self) -> dict[str, int]:
        """Bytes by `activations.zarr`, `latents.zarr`, ..."""
        return _sums((path.split("/")[0], size) for path, size in self.arrays.items())

    def sites(self) -> dict[str, int]:
        """Bytes by site, over all variants and steps."""
        activations = ((p, size) for p, size in self.arrays.items() if p.startswith(ACTIVATIONS))
        return _sums((path.split("/")[2], size) for path, size in activations)


def _sums(items: Iterable[tuple[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for name, size in items:
        sums[name] = sums.get(name, 0) + size
    return sums


def price(layout: Layout) -> Budget:
    """The cost of a layout."""
    specs = layout.arrays.values()
    variants = len(layout.variants)
    chunks = {spec.path: spec.shards * (spec.shape[1] if spec.stepped else 1) for spec in specs}
    # A worker samples one variant at a time: its stepped chunks may wait for the disk, besides the finished images.
    written = [spec for spec in specs if spec.path.split("/")[1] in layout.variants[:1]]
    return Budget(
        arrays={spec.path: chunks[spec.path] * (spec.nbytes + CRC_BYTES) for spec in specs},
        files=sum(chunks.values()),
        chunk_bytes=max(spec.nbytes + CRC_BYTES for spec in specs),
        peak_writer_bytes=sum(spec.nbytes * (STEPS_IN_FLIGHT if spec.stepped else 1) for spec in written),
        slice_bytes=layout.samples
        * max((site.tokens * site.channels * np.dtype(site.dtype).itemsize for site in layout.sites), default=0),
        unet_calls=layout.samples * layout.steps * variants,
        unet_batches=layout.shards * layout.steps * variants,
    )


def check_disk(url: str, bytes: int) -> None:
    """Raise ValueError if a local disk lacks room for `bytes` of arrays, beside the chunks that are there already.

    Object stores have no size to check. Chunks are looked for only if the disk lacks room for all of them.
    """
    files = open_files(url)
    if not isinstance(files, LocalFiles) or bytes * (1 + MARGIN) <= files.free():
        return
    present = sum(entry.size for entry in files.walk() if "/c/" in entry.path)
    need = max(0, bytes - present) * (1 + MARGIN)
    if need > files.free():
        raise ValueError(
            f"{files.url}: needs {format_bytes(need)}, its disk has {format_bytes(files.free())} free: use "
            "fewer samples, sites or steps, another disk, or an s3:// output"
        )


def check_memory(budget: Budget, available: int, workers: int = 1) -> None:
    """Raise ValueError if the writers' buffers alone exceed the available bytes of memory."""
    need = budget.peak_writer_bytes * workers
    if need > available:
        raise ValueError(
            f"buffers of {workers} workers need {format_bytes(need)}, there are {format_bytes(available)} of "
            "memory: use a smaller sampling.shard, fewer sites or fewer workers"
        )


def format_bytes(count: float) -> str:
    """A number of bytes with three digits and a decimal unit, such as `1.57 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
