"""The on-disk format as dataclasses: the arrays of a store, their shapes, chunks and types.

FORMAT.md is the normative text; if this module differs from it, this module is wrong.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import PurePosixPath

import numpy as np

from storage.codec import CODECS, codec_for
from storage.errors import CorruptFile
from storage.keys import ChunkKey, checked_name

FORMAT_VERSION = 1
KINDS = ("xt", "x0")
"""Kinds of latent: the noisy state after a step, and the clean estimate of the same step's network call."""


@dataclass(frozen=True)
class SiteShape:
    """Shape of one site's activations for one sample and step: (tokens, channels)."""

    name: str
    """`down.0.0` ... `up.3.2`, `conv.*`, `vae.*`."""
    tokens: int
    channels: int
    dtype: str = "float16"

    def __post_init__(self) -> None:
        checked_name("site", self.name)
        if self.tokens < 1 or self.channels < 1:
            raise ValueError(f"site {self.name}: tokens and channels must be at least 1")
        if self.dtype not in ("float16", "float32"):
            raise ValueError(f"site {self.name}: dtype {self.dtype!r} is not float16 or float32")


@dataclass(frozen=True)
class ArraySpec:
    """One Zarr array: axes are samples, then steps if it is stepped, then axes held whole in a chunk."""

    path: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: str
    codec: str

    @property
    def stepped(self) -> bool:
        """Whether the second axis is the denoising step."""
        return self.dims[1] == "step"

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
        """Key of one chunk. Raises ValueError if the step or shard is outside the array."""
        if self.stepped and not (step is not None and 1 <= step <= self.shape[1]):
            raise ValueError(f"{self.path}: step {step} is outside 1..{self.shape[1]}")
        if not 0 <= shard < self.shards:
            raise ValueError(f"{self.path}: shard {shard} is outside the {self.shape[0]} samples")
        return ChunkKey(self.path, shard, step if self.stepped else None, len(self.inner))

    def keys(self) -> Iterator[ChunkKey]:
        """Every chunk of the array."""
        steps: Iterable[int | None] = range(1, self.shape[1] + 1) if self.stepped else [None]
        for shard in range(self.shards):
            for step in steps:
                yield self.key(shard, step)

    def document(self) -> bytes:
        """The array's `zarr.json` (Zarr v3)."""
        return encode_json(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": list(self.shape),
                "data_type": self.dtype,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.chunk)}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "fill_value": "NaN" if np.dtype(self.dtype).kind == "f" else 0,
                "codecs": codec_for(self.codec, self.dtype).documents,
                "attributes": {},
                "dimension_names": list(self.dims),
                "storage_transformers": [],
            }
        )


@dataclass(frozen=True)
class Layout:
    """Everything that determines the arrays of a store. Equal layouts mean equal metadata."""

    samples: int
    """Number of samples."""
    shard: int
    """Samples in a shard: the unit of work, of writing and of retry."""
    variants: tuple[str, ...]
    sites: tuple[SiteShape, ...]
    steps: int = 15
    """Denoising steps, counted 1..steps."""
    image: tuple[int, int] = (512, 512)
    """Height and width of an image in pixels."""
    latent: tuple[int, ...] = (4, 64, 64)
    """Channels, height and width of a latent; empty: no latents are kept."""
    tasks: dict[str, str] = field(default_factory=lambda: {"saliency": "uint8", "depth": "float32"}, hash=False)
    """Label task -> dtype of its label maps."""
    codec: str = "none"
    """One of none, zstd, blosc-lz4, blosc-zstd, pcodec; a crc32c always follows."""

    def __post_init__(self) -> None:
        # JSON has neither tuples nor dataclasses: `from_json` passes lists and dicts.
        sites = tuple(site if isinstance(site, SiteShape) else SiteShape(**site) for site in self.sites)
        object.__setattr__(self, "sites", sites)
        for name in ("variants", "image", "latent"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "tasks", dict(self.tasks))
        for name in ("samples", "shard", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"layout.{name}: {getattr(self, name)} is less than 1")
        if self.codec not in CODECS:
            raise ValueError(f"layout.codec: {self.codec!r} is not one of {', '.join(CODECS)}")
        for task, dtype in self.tasks.items():
            if dtype not in ("uint8", "float16", "float32"):
                raise ValueError(f"layout.tasks: {task}: dtype {dtype!r} is not supported")
        self._check_names("variant", self.variants)
        self._check_names("site", [site.name for site in self.sites])
        self._check_names("task", list(self.tasks))

    def _check_names(self, kind: str, names: Sequence[str]) -> None:
        for name in names:
            checked_name(kind, name)
        if len(set(names)) < len(names):
            raise ValueError(f"layout: a {kind} is named twice: {', '.join(names)}")

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.samples // self.shard)

    def shard_samples(self, shard: int) -> range:
        """The samples of one shard. Raises ValueError if there is no such shard."""
        if not 0 <= shard < self.shards:
            raise ValueError(f"shard {shard} is outside 0..{self.shards - 1}")
        return range(shard * self.shard, min((shard + 1) * self.shard, self.samples))

    @cached_property
    def arrays(self) -> dict[str, ArraySpec]:
        """Path -> specification of every array of the store."""
        return {spec.path: spec for spec in self._specs()}

    def _specs(self) -> Iterator[ArraySpec]:
        pixels = dict(zip(("height", "width"), self.image, strict=True))
        for variant in self.variants:
            for site in self.sites:
                inner = {"token": site.tokens, "channel": site.channels}
                yield self._spec(f"activations.zarr/{variant}/{site.name}", True, inner, site.dtype)
            for kind in KINDS if self.latent else ():
                inner = dict(zip(("channel", "height", "width"), self.latent, strict=True))
                yield self._spec(f"latents.zarr/{variant}/{kind}", True, inner, "float32")
            yield self._spec(f"images.zarr/{variant}", False, pixels | {"colour": 3}, "uint8")
        for task, dtype in self.tasks.items():
            yield self._spec(f"labels.zarr/{task}", False, pixels, dtype)

    def _spec(self, path: str, stepped: bool, inner: dict[str, int], dtype: str) -> ArraySpec:
        shape = {"sample": self.samples} | ({"step": self.steps} if stepped else {}) | inner
        chunk = {"sample": self.shard} | ({"step": 1} if stepped else {}) | inner
        return ArraySpec(path, tuple(shape), tuple(shape.values()), tuple(chunk.values()), dtype, self.codec)

    def documents(self) -> dict[str, bytes]:
        """Path -> bytes of every `zarr.json`: groups first, then arrays."""
        groups = {str(folder) for path in self.arrays for folder in PurePosixPath(path).parents} - {"."}
        group = encode_json({"zarr_format": 3, "node_type": "group", "attributes": {}})
        return {f"{path}/zarr.json": group for path in sorted(groups)} | {
            f"{path}/zarr.json": spec.document() for path, spec in self.arrays.items()
        }

    def to_json(self) -> bytes:
        """The bytes of `layout.json`."""
        # Version 1 has the key `step_images`, which is always 0; without it equal stores would differ in bytes.
        return encode_json({"format": FORMAT_VERSION, "layout": asdict(self) | {"step_images": 0}})

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "Layout":
        """Read `layout.json`, ignoring unknown keys.

        Raises ValueError if it can't be read or has another format version.
        """
        try:
            document = json.loads(data)
            version = document["format"]
            known = {f.name for f in fields(cls)}
            values = {k: v for k, v in document["layout"].items() if k in known}
            layout = None if version != FORMAT_VERSION else cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptFile(where, f"layout.json can't be read ({error})") from None
        if layout is None:
            raise ValueError(
                f"{where}: format version {version}, this program reads {FORMAT_VERSION}: "
                "use the version of scenesweep that wrote it, or another output folder"
            )
        return layout

    def diff(self, other: "Layout") -> list[str]:
        """One line for each field of this stored layout in which the requested one, `other`, differs."""
        lines = []
        for name in (item.name for item in fields(self)):
            stored, requested = getattr(self, name), getattr(other, name)
            if stored == requested:
                continue
            if isinstance(stored, tuple) and isinstance(requested, tuple) and set(stored) != set(requested):
                removed = [value for value in stored if value not in requested]
                added = [value for value in requested if value not in stored]
                lines.append(f"{name}: only in the store {_names(removed)}, only requested {_names(added)}")
            else:
                lines.append(f"{name}: stored {stored!r}, requested {requested!r}")
        return lines


def _names(values: list[object]) -> str:
    return ", ".join(str(getattr(v, "name", v)) for v in values) or "nothing"


def encode_json(document: object) -> bytes:
    """Canonical JSON: sorted keys, two spaces of indentation, one final newline; equal values give equal bytes."""
    return (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
