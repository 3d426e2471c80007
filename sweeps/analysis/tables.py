"""One run as the report and the W&B mirror read it: its tables, and images, labels and probes on demand."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from probing.diffusion.sites import ATTENTION, KINDS, block_of
from storage import CorruptFile, SiteShape, Store, budget
from storage.format import grid_of as grid_of
from storage.keys import EXPERIMENTS
from sweeps.analysis.vocabulary import EXPERIMENT_TITLES, plain
from sweeps.runtime import machines
from sweeps.runtime.layout import PAGE, wandb_group

Json = dict[str, Any]
T = TypeVar("T")
OTHER_SITE = re.compile(r"^(conv|vae)\.")
SIDES = {"down": "encoder", "mid": "bottleneck", "up": "decoder"}
THIRDS = ("early", "middle", "late")


@dataclass(frozen=True)
class Site:
    """A place in the network whose activations are recorded, and their shape."""

    name: str
    """such as ``up.2.1``"""
    tokens: int
    channels: int
    grid: tuple[int, int]
    """rows and columns of tokens"""
    third: str = ""
    """early, middle or late: the third of a transformer's blocks that it is in"""

    @property
    def block(self) -> str:
        """``up.2`` for ``up.2.1`` and ``up.2.1.mlp``; ``mid`` for ``mid.0``; ``conv.mid`` for ``conv.mid.0``."""
        return block_of(self.name)

    @property
    def kind(self) -> str:
        """attention, cross, mlp or residual."""
        last = self.name.rpartition(".")[2]
        return last if last in KINDS else ATTENTION

    @property
    def side(self) -> str:
        """encoder, bottleneck or decoder; early, middle or late in a transformer."""
        return SIDES.get(self.name.removeprefix("conv.").partition(".")[0], self.third or "other")


@dataclass(frozen=True)
class RunData:
    """Tables and metadata of one run; a table that the run does not have is None."""

    name: str
    url: str
    config: Json
    manifest: Json
    sites: tuple[Site, ...]
    """main sites in execution order"""
    variants: tuple[str, ...]
    costs: dict[str, float] = field(default_factory=dict)
    """wall seconds by stage"""
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    """probes, images, epochs, interventions, samples, curation"""
    space: dict[str, int] = field(default_factory=dict)
    """planned bytes by family of arrays"""
    reader: StoreReader | None = None
    cluster: list[Json] = field(default_factory=list)
    """machines of each session with Ray, see `machines.read`"""
    earlier: tuple[str, ...] = ()
    """experiments whose rows were made with other settings than the run's present ones, which have no rows yet"""
    sigmas: tuple[float, ...] = ()
    """noise level that enters the network at each step; empty if the store does not know it"""
    log_snrs: tuple[float, ...] = ()
    """the same as ln(signal power / noise power)"""
    image: tuple[int, int] = (1, 1)
    """height and width of the generated images; only their ratio matters here"""

    @property
    def probe_stage_hash(self) -> str:
        """Hash of the probe stage that wrote the rows of results/probes."""
        probes = self.table("probes")
        if probes is None or "stage_hash" not in probes.column_names:
            return "unknown"
        return str(probes["stage_hash"][0].as_py())

    def wandb_id(self, *parts: object) -> str:
        """Deterministic id of the W&B run of a part: equal for equal run name, probe stage and part."""
        text = "\0".join(map(str, (self.name, self.probe_stage_hash, *parts)))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def group(self) -> str:
        """W&B group of the run."""
        return wandb_group(self.name, self.url)

    @property
    def addresses(self) -> dict[str, str]:
        """Where output and report are, for the configuration of W&B runs."""
        return {"output": self.url, "report": f"{self.url}/{PAGE}"}

    @cached_property
    def captions(self) -> dict[int, str]:
        """Prompt of each sample."""
        table = self.table("samples")
        if table is None:
            return {}
        return dict(zip(*(table[c].to_pylist() for c in ("sample", "prompt")), strict=True))

    @cached_property
    def resamples(self) -> dict[bytes, np.ndarray]:
        """The resamples of each set of images, by the bytes of their numbers: megabytes that all scores share."""
        return {}

    @property
    def warning(self) -> str:
        """A sentence on the rows of other settings; empty if there are none."""
        if not self.earlier:
            return ""
        names = ", ".join(EXPERIMENT_TITLES.get(name, plain(name)) for name in self.earlier)
        return f"Results of earlier settings are shown for: {names}; the present ones have none yet."

    def table(self, name: str) -> pa.Table | None:
        """A table with at least one row, else None."""
        table = self.tables.get(name)
        return table if table is not None and table.num_rows else None

    def setting(self, path: str, default: object = None) -> Any:
        """A value of the configuration by its dotted path."""
        node: object = self.config
        for part in path.split("."):
            if not isinstance(node, dict) or part not in node:
                return default
            node = node[part]
        return node


def site_order(name: str) -> tuple[int, ...]:
    """Sort key for execution order: down blocks, mid, up blocks, then blocks of transformers, then all other sites."""
    side, *numbers = name.removeprefix("conv.").split(".")
    order = (*SIDES, "block", "single")
    if side not in order:
        return (len(order),)
    return (order.index(side), *(int(n) for n in numbers if n.isdecimal()))


def main_sites(shapes: Iterable[SiteShape], image: tuple[int, int]) -> tuple[Site, ...]:
    """The sites of a layout in execution order, with their grids."""
    ordered = sorted((s for s in shapes if not OTHER_SITE.match(s.name)), key=lambda s: site_order(s.name))
    blocks = list(dict.fromkeys(block_of(s.name) for s in ordered))
    thirds = {block: THIRDS[3 * i // len(blocks)] for i, block in enumerate(blocks)}
    return tuple(Site(s.name, s.tokens, s.channels, s.grid(image), thirds[block_of(s.name)]) for s in ordered)


class StoreReader:
    """Images, labels and probes of a store. Every method returns None if the store no longer holds the data."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._probe_paths: dict[str, list[str]] = {}
        self._last: tuple[object, np.ndarray | None] = (None, None)

    def images(self, variant: str, samples: Sequence[int]) -> np.ndarray | None:
        """uint8 (n, H, W, 3)."""
        return self._read(lambda: self.store.read_images(variant, list(samples)))

    def labels(self, task: str, samples: Sequence[int]) -> np.ndarray | None:
        """(n, H, W), as stored."""
        return self._read(lambda: self.store.read_labels(task, list(samples)))

    def predict(
        self, variant: str, site: Site, step: int, task: str, samples: Sequence[int], experiment: str = ""
    ) -> np.ndarray | None:
        """Stored probe applied to stored activations, float32 (n, rows, columns): foreground probability, or
        standardised depth."""
        weights = self.weights(variant, site.name, step, task, experiment)
        if weights is None:
            return None
        place = (variant, site.name, step, tuple(samples))
        if self._last[0] != place:  # the tasks of a site and step follow each other
            self._last = (place, self._read(lambda: self.store.read_activations(variant, site.name, step, samples)))
        acts = self._last[1]
        return None if acts is None else apply_probe(weights, acts, task).reshape(len(samples), *site.grid)

    def weights(
        self, variant: str, site: str, step: int, task: str, experiment: str = ""
    ) -> dict[str, np.ndarray] | None:
        """Tensors of a stored probe; of several seeds the lowest, which the report shows.

        `experiment` names one beside the main grid.
        """
        from safetensors.numpy import load

        folder = f"experiments/{experiment}/" if experiment else ""
        prefix = f"{folder}probes/{variant}/{site}/"
        if prefix not in self._probe_paths:
            self._probe_paths[prefix] = sorted(self.store.list(prefix))
        name = f"{prefix}{step:02d}.{task}.none."
        seeds = [path for path in self._probe_paths[prefix] if path.startswith(name)]
        if not seeds:
            return None
        lowest = min(seeds, key=lambda path: (len(path), path))  # by length first, so that 2 precedes 10
        return self._read(lambda: load(self.store.get(lowest)))

    def _read(self, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except (ValueError, KeyError, OSError):
            return None


def apply_probe(weights: dict[str, np.ndarray], acts: np.ndarray, task: str) -> np.ndarray:
    """float32 (n, T) from activations (n, T, C): softmax foreground probability, or the value.

    The numpy twin of probing's `predict`, so that the report needs no torch. `weights` holds `weight` (outputs, C), or
    (outputs, C + 1) with the bias last; an MLP probe also has `hidden` (units, C [+ 1]), whose rectified outputs
    `weight` takes.
    """
    values = acts.astype(np.float32)
    if "hidden" in weights:
        values = np.maximum(_affine(weights["hidden"], values), 0)
    out = _affine(weights["weight"], values)
    if task != "saliency":
        return out[..., 0]
    return 0.5 * (1 + np.tanh((out[..., 1] - out[..., 0]) / 2))


def _affine(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values (..., C) times a matrix (O, C), or (O, C + 1) with the bias last: (..., O)."""
    channels = values.shape[-1]
    out = values @ matrix[:, :channels].T.astype(np.float32)
    return out if matrix.shape[1] == channels else out + matrix[:, channels]


def load(store: Store, config: Json) -> RunData:
    """Read a store's tables and metadata. Images, labels and probes stay on disk until the report needs them."""
    layout, manifest = store.layout, _json(store, "manifest.json")
    tables, earlier = _tables(store, manifest)
    return RunData(
        name=str(config.get("name") or store.url.rstrip("/").rpartition("/")[2] or "run"),
        url=store.url,
        config=config,
        manifest=manifest,
        sites=main_sites(layout.sites, layout.image),
        variants=tuple(layout.variants),
        costs=_json(store, "costs.json"),
        tables=tables,
        earlier=tuple(sorted(earlier)),
        space=budget.price(layout).families(),
        reader=StoreReader(store),
        cluster=machines.read(store),
        image=layout.image,
        sigmas=layout.sigmas,
        log_snrs=layout.log_snrs,
    )


class Tables(Mapping[str, pa.Table]):
    """Tables by name. That of images may have millions of rows, so it is read when it is first asked for."""

    def __init__(self, read: dict[str, pa.Table], read_images: Callable[[], pa.Table]) -> None:
        self._read, self._read_images = read, read_images

    def __getitem__(self, name: str) -> pa.Table:
        if name == "images" and name not in self._read:
            self._read[name] = self._read_images()
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read.keys() | {"images"})

    def __len__(self) -> int:
        return len(self._read.keys() | {"images"})


def _tables(store: Store, manifest: Json) -> tuple[Tables, set[str]]:
    """Return the tables with the rows that are shown, and the experiments whose rows are of other settings."""
    hashes = {str(value) for _, value in leaves(manifest)} | set(_json(store, EXPERIMENTS).values())
    names = ("probes", "epochs", "interventions")
    tables = {name: current(store.table(name), hashes) for name in names}
    for name in ("samples", "curation"):
        with suppress(FileNotFoundError):
            tables[name] = store.table(name)
    earlier = set()
    for name in (*names, "images"):
        origins: dict[str, set[str | None]] = defaultdict(set)
        for part in store.parts(name).values():
            if isinstance(part, CorruptFile):
                raise part
            for experiment, stage_hash in part.origins:
                origins[str(experiment)].add(stage_hash)
        earlier |= {experiment for experiment, own in origins.items() if manifest and own.isdisjoint(hashes)}
    return Tables(tables, lambda: current(store.table("images", encoded=True), hashes)), earlier


def current(table: pa.Table, hashes: Collection[str]) -> pa.Table:
    """Rows of the current settings: of each experiment those whose stage hash is among `hashes`.

    If an experiment has no such rows, those with the stage hash of its last row.
    """
    if not table.num_rows:
        return table
    keep = pa.chunked_array([pa.repeat(False, table.num_rows)])
    for name in pc.unique(table["experiment"]).to_pylist():
        in_experiment = pc.equal(table["experiment"], name)
        stored = table["stage_hash"].filter(in_experiment)
        known = [h for h in pc.unique(stored).to_pylist() if h in hashes] or [stored[-1].as_py()]
        is_current = pc.is_in(table["stage_hash"], pa.array(known, pa.string()))
        keep = pc.or_(keep, pc.and_(in_experiment, is_current))
    return table if pc.all(keep).as_py() else table.filter(keep)


def leaves(node: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Dotted paths and values of a nested dictionary; a list becomes one comma-separated line."""
    if not isinstance(node, dict):
        yield path, ", ".join(map(str, node)) if isinstance(node, list) else node
        return
    for key, value in node.items():
        yield from leaves(value, f"{path}.{key}" if path else str(key))


def _json(store: Store, path: str) -> Json:
    return store.document(path) if store.exists(path) else {}
