"""The on-disk contract as dataclasses: which arrays a store has, their shapes, chunks and types.

FORMAT.md is the normative text; where this module differs, this module is wrong.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property

import numpy as np

from storage.codec import CODECS, codec_for
from storage.keys import ChunkKey, checked_name

FORMAT_VERSION = 1
KINDS = ("xt", "x0")
"""What a partial image or latent shows: the noisy state, or the clean estimate of the same call."""


@dataclass(frozen=True)
class SiteShape:
    """Shape of what one site gives for one sample and step: (tokens, channels)."""

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
    """One Zarr array: samples, then (where stepped) steps, then axes held whole in a chunk."""

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
        return int(np.prod(self.chunk)) * np.dtype(self.dtype).itemsize

    @property
    def fill(self) -> float | int:
        """NaN for floats, 0 for integers: also what pads the last, shorter shard."""
        return float("nan") if np.dtype(self.dtype).kind == "f" else 0

    @property
    def shards(self) -> int:
        """Chunks along the samples."""
        return -(-self.shape[0] // self.chunk[0])

    def rows(self, shard: int) -> range:
        """Samples that chunk number `shard` holds (fewer in the last one)."""
        start = shard * self.chunk[0]
        return range(start, min(start + self.chunk[0], self.shape[0]))

    def key(self, shard: int, step: int | None = None) -> ChunkKey:
        """Key of one chunk; ValueError if the step or shard is outside the array."""
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
        codec = codec_for(self.codec, self.dtype)
        grid = {"name": "regular", "configuration": {"chunk_shape": list(self.chunk)}}
        keys = {"name": "default", "configuration": {"separator": "/"}}
        return encode_json(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": list(self.shape),
                "data_type": self.dtype,
                "chunk_grid": grid,
                "chunk_key_encoding": keys,
                "fill_value": "NaN" if np.dtype(self.dtype).kind == "f" else 0,
                "codecs": codec.documents,
                "attributes": {},
                "dimension_names": list(self.dims),
                "storage_transformers": [],
            }
        )


@dataclass(frozen=True)
class Layout:
    """Everything that decides which arrays a store holds. Equal layouts mean equal metadata."""

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
    step_images: int = 0
    """The first so many samples keep decoded partial images of every step, and their labels."""

    def __post_init__(self) -> None:
        self._normalise()
        for name in ("samples", "shard", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"layout.{name}: {getattr(self, name)} is less than 1")
        if not 0 <= self.step_images <= self.samples:
            raise ValueError(f"layout.step_images: {self.step_images} is outside 0..{self.samples}")
        if self.codec not in CODECS:
            raise ValueError(f"layout.codec: {self.codec!r} is not one of {', '.join(CODECS)}")
        self._check_names()

    def _normalise(self) -> None:
        sites = tuple(s if isinstance(s, SiteShape) else SiteShape(**s) for s in self.sites)
        object.__setattr__(self, "sites", sites)
        for name in ("variants", "image", "latent"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "tasks", dict(self.tasks))

    def _check_names(self) -> None:
        for kind, names in (
            ("variant", self.variants),
            ("site", [site.name for site in self.sites]),
            ("task", list(self.tasks)),
        ):
            for name in names:
                checked_name(kind, name)
            if len(set(names)) < len(names):
                raise ValueError(f"layout: a {kind} is named twice: {', '.join(names)}")
        for task, dtype in self.tasks.items():
            if dtype not in ("uint8", "float16", "float32"):
                raise ValueError(f"layout.tasks: {task}: dtype {dtype!r} is not supported")

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.samples // self.shard)

    def shard_samples(self, shard: int) -> range:
        """The samples of one shard; ValueError if there is no such shard."""
        if not 0 <= shard < self.shards:
            raise ValueError(f"shard {shard} is outside 0..{self.shards - 1}")
        return range(shard * self.shard, min((shard + 1) * self.shard, self.samples))

    @cached_property
    def arrays(self) -> dict[str, ArraySpec]:
        """Path -> specification of every array of the store."""
        return {spec.path: spec for spec in self._specs()}

    def _specs(self) -> Iterator[ArraySpec]:
        for variant in self.variants:
            for site in self.sites:
                inner = {"token": site.tokens, "channel": site.channels}
                path = f"activations.zarr/{variant}/{site.name}"
                yield self._spec(path, self.samples, True, inner, site.dtype)
            for kind in KINDS if self.latent else ():
                inner = dict(zip(("channel", "height", "width"), self.latent, strict=True))
                path = f"latents.zarr/{variant}/{kind}"
                yield self._spec(path, self.samples, True, inner, "float32")
            path = f"images.zarr/{variant}"
            yield self._spec(path, self.samples, False, self._pixels(3), "uint8")
        for task, dtype in self.tasks.items():
            yield self._spec(f"labels.zarr/{task}", self.samples, False, self._pixels(), dtype)
        if self.step_images:
            yield from self._step_specs()

    def _step_specs(self) -> Iterator[ArraySpec]:
        for variant in self.variants:
            for kind in KINDS:
                path = f"images_steps.zarr/{variant}/{kind}"
                yield self._spec(path, self.step_images, True, self._pixels(3), "uint8")
                for task, dtype in self.tasks.items():
                    path = f"labels_steps.zarr/{variant}/{kind}/{task}"
                    yield self._spec(path, self.step_images, True, self._pixels(), dtype)

    def _pixels(self, colours: int = 0) -> dict[str, int]:
        inner = {"height": self.image[0], "width": self.image[1]}
        return inner | ({"colour": colours} if colours else {})

    def _spec(self, path: str, samples: int, stepped: bool, inner: dict[str, int], dtype: str) -> ArraySpec:
        step = {"step": self.steps} if stepped else {}
        shape = {"sample": samples} | step | inner
        chunk = {"sample": self.shard} | ({"step": 1} if stepped else {}) | inner
        return ArraySpec(path, tuple(shape), tuple(shape.values()), tuple(chunk.values()), dtype, self.codec)

    def documents(self) -> dict[str, bytes]:
        """Path -> bytes of every `zarr.json`: groups first, then arrays."""
        groups = {"/".join(path.split("/")[:depth]) for path in self.arrays
                  for depth in range(1, path.count("/") + 1)}  # fmt: skip
        group = encode_json({"zarr_format": 3, "node_type": "group", "attributes": {}})
        found = {f"{path}/zarr.json": group for path in sorted(groups)}
        return found | {f"{path}/zarr.json": spec.document() for path, spec in self.arrays.items()}

    def to_json(self) -> bytes:
        """The bytes of `layout.json`."""
        return encode_json({"format": FORMAT_VERSION, "layout": asdict(self)})

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "Layout":
        """Read `layout.json`; ValueError if it is none, or of another format version."""
        try:
            document = json.loads(data)
            version = document["format"]
            known = {f.name for f in fields(cls)}
            layout = {k: v for k, v in document["layout"].items() if k in known}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where}: layout.json can't be read ({error})") from None
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{where}: format version {version}, this program reads {FORMAT_VERSION}: "
                "use the version of scenesweep that wrote it, or another output folder"
            )
        return cls(**layout)

    def diff(self, other: "Layout") -> list[str]:
        """One line for each field in which `other` differs."""
        return [
            f"{f.name}: {_short(getattr(self, f.name), getattr(other, f.name))}"
            for f in fields(self)
            if getattr(self, f.name) != getattr(other, f.name)
        ]

    def grown(self, samples: int) -> "Layout":
        """This layout with more samples; ValueError unless only whole shards are appended."""
        if samples < self.samples:
            raise ValueError(f"samples can't shrink from {self.samples} to {samples}")
        if samples > self.samples and self.samples % self.shard:
            raise ValueError(
                f"{self.samples} samples end inside a shard of {self.shard}: appending would "
                "rewrite finished chunks; use another output folder"
            )
        return replace(self, samples=samples)


def _short(old: object, new: object) -> str:
    """`old -> new`, of tuples only what one has and the other has not."""
    if isinstance(old, tuple) and isinstance(new, tuple) and set(old) != set(new):
        gone, come = [x for x in old if x not in new], [x for x in new if x not in old]
        return f"stored only {_names(gone)}, asked only {_names(come)}"
    return f"stored {old!r}, asked {new!r}"


def _names(values: list[object]) -> str:
    return ", ".join(str(getattr(v, "name", v)) for v in values) or "nothing"


def encode_json(document: object) -> bytes:
    """Canonical JSON: sorted keys, two spaces, one closing newline; equal values, equal bytes."""
    return (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
