"""One array: shape, chunks, type and `zarr.json`; and the small arrays that hold the coordinates of an axis."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from storage.codec import codec_for
from storage.keys import ChunkKey, checked_name


def encode_json(document: object) -> bytes:
    """Canonical JSON: sorted keys, two spaces of indentation, one final newline; equal values give equal bytes."""
    return (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


@dataclass(frozen=True)
class SiteShape:
    """Shape of one site's activations for one sample and step: (tokens, channels).

    Module and grid only describe the site: they are stored for readers, and sites that differ in them are equal.
    """

    name: str
    """`down.0.0` ... `up.3.2`, `conv.*`, `vae.*`."""
    tokens: int
    channels: int
    dtype: str = "float16"
    module: str = field(default="", compare=False)
    """Path of the recorded module in its network; empty if unknown."""
    height: int = field(default=0, compare=False)
    """Rows of the grid of tokens; 0 if the tokens form none."""
    width: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        checked_name("site", self.name)
        if self.tokens < 1 or self.channels < 1:
            raise ValueError(f"site {self.name}: tokens and channels must be at least 1")
        if self.dtype not in ("float16", "float32"):
            raise ValueError(f"site {self.name}: dtype {self.dtype!r} is not float16 or float32")
        if self.height * self.width not in (0, self.tokens):
            raise ValueError(f"site {self.name}: a grid of {self.height} x {self.width} has not {self.tokens} tokens")

    def grid(self, image: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the tokens; if none are known, those that suit an image of this height and width."""
        return (self.height, self.width) if self.height * self.width else grid_of(self.tokens, image)


def grid_of(tokens: int, image: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a grid of `tokens` whose aspect ratio is closest to that of `image` (H, W)."""
    if not tokens:
        return 0, 0
    ideal = (tokens * image[0] / image[1]) ** 0.5
    rows = min((n for n in range(1, tokens + 1) if tokens % n == 0), key=lambda n: abs(n - ideal))
    return rows, tokens // rows


@dataclass(frozen=True)
class ArraySpec:
    """One Zarr array: axes are samples, then steps if it is stepped, then axes held whole in a chunk."""

    path: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: str
    codec: str
    steps: tuple[int, ...] = ()
    """Denoising steps along the second axis, counted from 1; empty if the array has no such axis."""
    attributes: Mapping[str, object] = field(default_factory=dict, hash=False)

    @property
    def stepped(self) -> bool:
        """Whether the second axis is the denoising step."""
        return bool(self.steps)

    @property
    def inner(self) -> tuple[int, ...]:
        """Shape of one sample's values at one step."""
        return self.shape[2:] if self.stepped else self.shape[1:]

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of one chunk as callers see it: (shard, *inner), without the step axis."""
        return (self.chunk[0], *self.inner)

    @property
    def nbytes(self) -> int:
        """Bytes of one chunk before coding."""
        return math.prod(self.chunk) * np.dtype(self.dtype).itemsize

    @property
    def fill(self) -> float | int:
        """NaN for floats, 0 for integers; it also pads the last, shorter shard."""
        return float("nan") if np.dtype(self.dtype).kind == "f" else 0

    @property
    def shards(self) -> int:
        """Chunks along the samples."""
        return -(-self.shape[0] // self.chunk[0])

    def rows(self, shard: int) -> range:
        """Samples in the chunk with number `shard`; the last chunk may hold fewer."""
        start = shard * self.chunk[0]
        return range(start, min(start + self.chunk[0], self.shape[0]))

    def key(self, shard: int, step: int | None = None) -> ChunkKey:
        """Key of one chunk. Raises ValueError if the array does not hold the step or the shard."""
        if self.stepped and step not in self.steps:
            raise ValueError(f"{self.path}: step {step} is not recorded; there are {_numbers(self.steps)}")
        if not 0 <= shard < self.shards:
            raise ValueError(f"{self.path}: shard {shard} is outside the {self.shape[0]} samples")
        if not self.stepped or step is None:
            return ChunkKey(self.path, shard, None, None, len(self.inner))
        return ChunkKey(self.path, shard, step, self.steps.index(step), len(self.inner))

    def keys(self) -> Iterator[ChunkKey]:
        """Every chunk of the array."""
        steps: Iterable[int | None] = self.steps or [None]
        for shard in range(self.shards):
            for step in steps:
                yield self.key(shard, step)

    def metadata(self) -> dict[str, object]:
        """Content of the array's `zarr.json` (Zarr v3)."""
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.chunk)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "NaN" if np.dtype(self.dtype).kind == "f" else 0,
            "codecs": codec_for(self.codec, self.dtype).documents,
            "attributes": dict(self.attributes),
            "dimension_names": list(self.dims),
            "storage_transformers": [],
        }


def _numbers(steps: tuple[int, ...]) -> str:
    """`1..15` or `1, 8, 15`."""
    if len(steps) > 2 and steps == tuple(range(steps[0], steps[-1] + 1)):
        return f"{steps[0]}..{steps[-1]}"
    return ", ".join(map(str, steps))


@dataclass(frozen=True)
class Coordinate:
    """The values along one axis: a small array of one chunk, written together with the metadata."""

    name: str
    axis: str
    values: range | tuple[int, ...] | tuple[float, ...]
    attributes: Mapping[str, object] = field(hash=False)

    def array(self, folder: str) -> ArraySpec:
        """Specification of the array in a group; it has no compressor."""
        whole = isinstance(self.values, range) or all(isinstance(value, int) for value in self.values)
        dtype = "int64" if whole else "float64"
        shape = (len(self.values),)
        return ArraySpec(f"{folder}/{self.name}", (self.axis,), shape, shape, dtype, "none", (), self.attributes)

    def path(self, folder: str) -> str:
        """Path of the one chunk."""
        return f"{folder}/{self.name}/c/0"

    def encoded(self) -> bytes:
        """Bytes of the one chunk."""
        spec = self.array("")
        values = np.fromiter(self.values, np.dtype(spec.dtype).newbyteorder("<"), len(self.values))
        parts, _, _ = codec_for(spec.codec, spec.dtype).encode(values)
        return b"".join(bytes(part) for part in parts)
