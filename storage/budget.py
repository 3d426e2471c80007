"""Pure arithmetic: what a layout costs in bytes, files, memory and UNet calls."""

from dataclasses import dataclass

from storage.backends.files import LocalFiles
from storage.backends.objects import open_files
from storage.codec import CRC_BYTES
from storage.format import ArraySpec, Layout

STEPS_IN_FLIGHT = 2
"""Steps of one shard whose chunks may wait for the disk at once."""
MARGIN = 0.05
"""Part of the need that must stay free beside it."""


@dataclass(frozen=True)
class Budget:
    """The price of a layout. Bytes are those of codec `none`; a compressor only lowers them."""

    arrays: dict[str, int]
    """Array path -> bytes on disk when every chunk is there."""
    files: int
    """Number of chunk files."""
    chunk_bytes: int
    """Bytes of the largest chunk."""
    peak_writer_bytes: int
    """Bytes of two steps of one shard: what a worker holds besides its model."""
    slice_bytes: int
    """Bytes of the largest (site, step) over all samples: what a probe trial reads at once."""
    unet_calls: int
    """Samples x steps x variants, the two halves of guidance counted as one call."""
    unet_batches: int
    """Calls of the network: shards x steps x variants."""

    @property
    def total(self) -> int:
        """Bytes of all arrays."""
        return sum(self.arrays.values())

    def families(self) -> dict[str, int]:
        """Bytes by `activations.zarr`, `latents.zarr`, ..."""
        return self._grouped(lambda path: path.split("/")[0])

    def sites(self) -> dict[str, int]:
        """Bytes by site, over all variants and steps."""
        own = Budget({p: n for p, n in self.arrays.items() if p.startswith("activations.zarr/")},
                     0, 0, 0, 0, 0, 0)  # fmt: skip
        return own._grouped(lambda path: path.rpartition("/")[2])

    def _grouped(self, name) -> dict[str, int]:  # noqa: ANN001 - a function of the path
        found: dict[str, int] = {}
        for path, size in self.arrays.items():
            found[name(path)] = found.get(name(path), 0) + size
        return found


def price(layout: Layout) -> Budget:
    """The price of a layout."""
    specs = layout.arrays.values()
    variants = len(layout.variants)
    return Budget(
        arrays={spec.path: _chunks(spec) * (spec.nbytes + CRC_BYTES) for spec in specs},
        files=sum(_chunks(spec) for spec in specs),
        chunk_bytes=max(spec.nbytes + CRC_BYTES for spec in specs),
        peak_writer_bytes=_peak(layout),
        slice_bytes=layout.samples * max(
            (site.tokens * site.channels * _itemsize(site.dtype) for site in layout.sites),
            default=0,
        ),
        unet_calls=layout.samples * layout.steps * variants,
        unet_batches=layout.shards * layout.steps * variants,
    )  # fmt: skip


def _chunks(spec: ArraySpec) -> int:
    return spec.shards * (spec.shape[1] if spec.stepped else 1)


def _itemsize(dtype: str) -> int:
    return {"uint8": 1, "float16": 2, "float32": 4}[dtype]


def _peak(layout: Layout) -> int:
    """Bytes of one variant's stepped chunks, twice, and of its finished images."""
    first = layout.variants[:1]
    own = [spec for spec in layout.arrays.values() if spec.path.split("/")[1] in first]
    stepped = sum(spec.nbytes for spec in own if spec.stepped)
    return STEPS_IN_FLIGHT * stepped + sum(spec.nbytes for spec in own if not spec.stepped)


def check_disk(url: str, bytes: int, present: int = 0) -> None:
    """ValueError if a local disk lacks room for `bytes`, of which `present` are there already.

    Object stores have no size to check.
    """
    files = open_files(url)
    need = max(0, bytes - present) * (1 + MARGIN)
    if isinstance(files, LocalFiles) and need > files.free():
        raise ValueError(
            f"{files.url}: needs {format_bytes(need)}, its disk has {format_bytes(files.free())} free: take "
            "fewer samples, sites or steps, another disk, or an s3:// output"
        )


def check_memory(budget: Budget, available: int, workers: int = 1) -> None:
    """ValueError if the writers' buffers alone exceed the available bytes of memory."""
    need = budget.peak_writer_bytes * workers
    if need > available:
        raise ValueError(
            f"buffers of {workers} workers need {format_bytes(need)}, there are {format_bytes(available)} of "
            "memory: take a smaller sampling.shard, fewer sites or fewer workers"
        )


def format_bytes(count: float) -> str:
    """Bytes in the largest decimal unit that keeps the number at 1 or more, three significant digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
