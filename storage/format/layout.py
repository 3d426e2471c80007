"""The layout: what determines a store, its arrays and the files of their metadata."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import PurePosixPath

import numpy as np

from storage.codec import CODECS
from storage.errors import CorruptFile
from storage.format.arrays import ArraySpec, Coordinate, SiteShape, encode_json
from storage.keys import ACTIVATIONS, checked_name

FORMAT_VERSION = 2
"""Version of new stores."""
FORMAT_VERSIONS = (1, 2)
"""Versions that are read and continued."""
KINDS = ("xt", "x0")
"""Kinds of latent: the noisy state after a step, and the clean estimate of the same step's network call."""
LATENTS = {"xt": "noisy latent after the step", "x0": "guided clean estimate of the step's network call"}
STEP = "denoising step, counted from 1"
LAYOUT_KEYS_1 = ("samples", "shard", "variants", "sites", "steps", "image", "latent", "tasks", "codec")
SITE_KEYS_1 = ("name", "tokens", "channels", "dtype")
"""What `layout.json` holds in format 1, beside `step_images`, which was always 0."""
LOG_SNR = {"long_name": "logarithm of the power of signal over noise that enters the network", "units": "1"}
SIGMA = {"long_name": "noise level that enters the network at the step", "units": "1"}


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

    recorded_steps: tuple[int, ...] = ()
    """Ascending numbers of the steps whose activations are stored; all of them if none are given."""
    sigmas: tuple[float, ...] = field(default=(), compare=False)
    """Noise level that enters the network at each of the steps, stored for readers; empty if unknown."""
    alphas: tuple[float, ...] = field(default=(), compare=False)
    """Scale of the clean latent x in that input, which is alpha x + sigma noise; empty if it is 1 at all steps."""
    format: int = field(default=FORMAT_VERSION, compare=False)
    """Version of the format, 1 or 2; layouts that differ in it hold the same values."""

    def __post_init__(self) -> None:
        # JSON has neither tuples nor dataclasses: `from_json` passes lists and dicts.
        sites = tuple(site if isinstance(site, SiteShape) else SiteShape(**site) for site in self.sites)
        object.__setattr__(self, "sites", sites)
        for name in ("variants", "image", "latent", "recorded_steps", "sigmas", "alphas"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "tasks", dict(self.tasks))
        for name in ("samples", "shard", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"layout.{name}: {getattr(self, name)} is less than 1")
        every = tuple(range(1, self.steps + 1))
        recorded = self.recorded_steps or every
        object.__setattr__(self, "recorded_steps", recorded)
        if not set(recorded) <= set(every) or list(recorded) != sorted(set(recorded)):
            raise ValueError(f"layout.recorded_steps: {list(recorded)} must ascend within 1..{self.steps}")
        if self.format not in FORMAT_VERSIONS:
            raise ValueError(f"layout.format: {self.format} is not one of {', '.join(map(str, FORMAT_VERSIONS))}")
        if self.format == 1 and recorded != every:
            raise ValueError(f"layout.recorded_steps: format 1 holds all of the {self.steps} steps")
        if len(self.sigmas) not in (0, self.steps):
            raise ValueError(f"layout.sigmas: {len(self.sigmas)} noise levels for {self.steps} steps")
        if len(self.alphas) not in (0, len(self.sigmas)):
            raise ValueError(f"layout.alphas: {len(self.alphas)} values for {len(self.sigmas)} noise levels")
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
    def log_snrs(self) -> tuple[float, ...]:
        """Logarithm of the ratio of the powers of signal and noise that enter the network at each step: ln(alpha^2 /
        sigma^2), minus infinity for pure noise; empty if the noise levels are unknown. Samplers compare by it."""
        with np.errstate(divide="ignore"):
            ratios = 2 * (np.log(self.alphas or np.ones(len(self.sigmas))) - np.log(self.sigmas))
        return tuple(round(ratio, 6) for ratio in ratios.tolist())  # machines differ in a logarithm's last digits

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.samples // self.shard)

    def shard_samples(self, shard: int) -> range:
        """The samples of one shard. Raises ValueError if there is no such shard."""
        if not 0 <= shard < self.shards:
            raise ValueError(f"shard {shard} is outside 0..{self.shards - 1}")
        return range(shard * self.shard, min((shard + 1) * self.shard, self.samples))

    def activations(self, variant: str, site: str) -> str:
        """Path of the array with a site's activations."""
        return f"{ACTIVATIONS}{variant}/{site}" + ("" if self.format == 1 else "/activations")

    def latents(self, variant: str, kind: str) -> str:
        """Path of the array with one of the KINDS of latents."""
        return f"latents.zarr/{variant}/{kind}"

    def images(self, variant: str) -> str:
        """Path of the array with a variant's images."""
        return f"images.zarr/{variant}" + ("" if self.format == 1 else "/images")

    def labels(self, task: str) -> str:
        """Path of the array with a task's label maps."""
        return f"labels.zarr/{task}"

    @cached_property
    def arrays(self) -> dict[str, ArraySpec]:
        """Path -> specification of every array of the store, without coordinates."""
        return {spec.path: spec for spec in self._specs()}

    def _specs(self) -> Iterator[ArraySpec]:
        pixels, every = dict(zip(("height", "width"), self.image, strict=True)), tuple(range(1, self.steps + 1))
        for variant in self.variants:
            for site in self.sites:
                grid = {"grid_height": site.height, "grid_width": site.width}
                about = {"long_name": f"activations of {site.name}", "module": site.module, "units": "1", **grid}
                inner = {"token": site.tokens, "channel": site.channels}
                path = self.activations(variant, site.name)
                yield self._spec(path, self.recorded_steps, inner, site.dtype, about)
            for kind in KINDS if self.latent else ():
                inner = dict(zip(("channel", "height", "width"), self.latent, strict=True))
                about = {"long_name": LATENTS[kind], "units": "1"}
                yield self._spec(self.latents(variant, kind), every, inner, "float32", about)
            about = {"long_name": "finished image, 8 bits of sRGB a colour"}
            yield self._spec(self.images(variant), (), pixels | {"colour": 3}, "uint8", about)
        for task, dtype in self.tasks.items():
            about = {"long_name": f"{task} of the trained network's images"}
            yield self._spec(self.labels(task), (), pixels, dtype, about)

    def _spec(
        self, path: str, steps: tuple[int, ...], inner: dict[str, int], dtype: str, attributes: Mapping[str, object]
    ) -> ArraySpec:
        shape = {"sample": self.samples} | ({"step": len(steps)} if steps else {}) | inner
        chunk = {"sample": self.shard} | ({"step": 1} if steps else {}) | inner
        # CF, and so xarray, finds coordinates that are no dimension by their name here
        attributes = {**attributes, **({"coordinates": " ".join(self._levels)} if steps and self.sigmas else {})}
        sizes = tuple(shape.values()), tuple(chunk.values())
        return ArraySpec(path, tuple(shape), *sizes, dtype, self.codec, steps, attributes if self.format > 1 else {})

    def coordinates(self, spec: ArraySpec) -> list[Coordinate]:
        """The coordinates that stand beside an array, for its samples and steps; none in format 1."""
        if self.format == 1:
            return []
        found = [Coordinate("sample", "sample", range(self.samples), {"long_name": "number of the sample"})]
        if spec.steps:
            found.append(Coordinate("step", "step", spec.steps, {"long_name": STEP}))
        for name, (values, about) in self._levels.items() if spec.steps else ():
            found.append(Coordinate(name, "step", tuple(float(values[k - 1]) for k in spec.steps), about))
        return found

    @property
    def _levels(self) -> dict[str, tuple[tuple[float, ...], dict[str, str]]]:
        """Values and attributes of the coordinates along the steps, by name. Without alphas, sigma tells everything."""
        found = {"sigma": (self.sigmas, SIGMA)} if self.sigmas else {}
        return found | ({"log_snr": (self.log_snrs, LOG_SNR)} if self.alphas else {})

    def documents(self) -> dict[str, bytes]:
        """Path -> bytes of every `zarr.json` and of the coordinates: groups first, then arrays."""
        metadata = {path: spec.metadata() for path, spec in self.arrays.items()}
        chunks = {}
        encoded: dict[object, bytes] = {}  # the samples' numbers stand beside every array: megabytes each
        for spec in self.arrays.values():
            folder = spec.path.rpartition("/")[0]
            for coordinate in self.coordinates(spec):
                metadata[f"{folder}/{coordinate.name}"] = coordinate.array(folder).metadata()
                values = (coordinate.name, coordinate.values)
                if values not in encoded:
                    encoded[values] = coordinate.encoded()
                chunks[coordinate.path(folder)] = encoded[values]
        folders = sorted({str(folder) for path in self.arrays for folder in PurePosixPath(path).parents} - {"."})
        group: dict[str, object] = {"zarr_format": 3, "node_type": "group", "attributes": {}}
        nodes = {folder: group | _consolidated({}) for folder in folders} | metadata
        groups = {folder: group for folder in folders}
        if self.format > 1:
            for folder in folders:
                inside = {p.removeprefix(f"{folder}/"): node for p, node in nodes.items() if p.startswith(f"{folder}/")}
                groups[folder] = group | _consolidated(inside)
        return {f"{path}/zarr.json": encode_json(node) for path, node in (groups | metadata).items()} | chunks

    def to_json(self) -> bytes:
        """The bytes of `layout.json`."""
        layout = asdict(self)
        del layout["format"]
        if not self.alphas:
            del layout["alphas"]
        if self.format == 1:
            layout["sites"] = [{name: site[name] for name in SITE_KEYS_1} for site in layout["sites"]]
            layout = {name: layout[name] for name in LAYOUT_KEYS_1} | {"step_images": 0}
        return encode_json({"format": self.format, "layout": layout})

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "Layout":
        """Read `layout.json`, ignoring unknown keys.

        Raises ValueError if it can't be read or has another format version.
        """
        try:
            document = json.loads(data)
            version = document["format"]
            known = {f.name for f in fields(cls)} - {"format"}
            values = {k: v for k, v in document["layout"].items() if k in known}
            layout = None if version not in FORMAT_VERSIONS else cls(**values, format=version)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptFile(where, f"layout.json can't be read ({error})") from None
        if layout is None:
            raise ValueError(
                f"{where}: format version {version}, this program reads {', '.join(map(str, FORMAT_VERSIONS))}: "
                "use the version of scenesweep that wrote it, or another output folder"
            )
        return layout

    def diff(self, other: "Layout") -> list[str]:
        """One line for each field of this stored layout in which the requested one, `other`, differs.

        The format's version and what only describes the values do not count.
        """
        lines = []
        for name in (item.name for item in fields(self) if item.compare):
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


def _consolidated(nodes: dict[str, dict[str, object]]) -> dict[str, object]:
    """The member of a group's `zarr.json` that saves readers from opening what is inside the group."""
    return {"consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": nodes}}
