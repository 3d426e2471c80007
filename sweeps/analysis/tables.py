"""What the report and the W&B mirror read: one run's tables, plus pictures on demand."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage import budget
from sweeps.config.schema import GRID
from sweeps.runtime import machines
from sweeps.runtime.layout import EXPERIMENTS_FILE

MAIN_SITE = re.compile(r"^(down|mid|up)\.\d+(\.\d+)?$")
SIDES = {"down": "encoder", "mid": "bottleneck", "up": "decoder"}


@dataclass(frozen=True)
class Site:
    """One recorded place of the network and the shape of its activations."""

    name: str
    """such as ``up.2.1``"""
    tokens: int
    """cells of its grid"""
    channels: int
    grid: tuple[int, int]
    """rows and columns of cells"""

    @property
    def block(self) -> str:
        """``up.2`` for ``up.2.1``; ``mid`` for ``mid.0``; ``conv.mid`` for ``conv.mid.0``."""
        return self.name.rpartition(".")[0]

    @property
    def side(self) -> str:
        """encoder, bottleneck or decoder."""
        return SIDES.get(self.name.removeprefix("conv.").partition(".")[0], "other")


class Reader(Protocol):
    """Pictures of a run. Every method answers None where the run no longer holds the data."""

    def images(self, variant: str, samples: Sequence[int]) -> np.ndarray | None:
        """uint8 (n, H, W, 3)."""

    def labels(self, task: str, samples: Sequence[int]) -> np.ndarray | None:
        """(n, H, W), as stored."""

    def predict(
        self, variant: str, site: Site, step: int, task: str, samples: Sequence[int], experiment: str = ""
    ) -> np.ndarray | None:
        """float32 (n, h, w): foreground probability, or standardised depth, per cell."""

    def weights(
        self, variant: str, site: str, step: int, task: str, experiment: str = ""
    ) -> dict[str, np.ndarray] | None:
        """A stored probe; `experiment` names one beside the main grid."""


@dataclass(frozen=True)
class RunData:
    """Tables and facts of one run; an absent table is None."""

    name: str
    url: str
    config: dict[str, Any]
    manifest: dict[str, Any]
    sites: tuple[Site, ...]
    """main sites in execution order"""
    variants: tuple[str, ...]
    costs: dict[str, float] = field(default_factory=dict)
    """wall seconds by stage"""
    tables: dict[str, pa.Table] = field(default_factory=dict)
    """probes, images, epochs, interventions, samples, curation"""
    space: dict[str, int] = field(default_factory=dict)
    """planned bytes by family of arrays"""
    reader: Reader | None = None
    cluster: list[dict[str, Any]] = field(default_factory=list)
    """machines of each session with Ray, see `cluster_facts`"""

    @property
    def experiment(self) -> str:
        """Name under which the main grid's rows are kept."""
        return GRID

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

    @cached_property
    def captions(self) -> dict[int, str]:
        """Prompt of each sample."""
        table = self.table("samples")
        if table is None:
            return {}
        return dict(zip(*(table[c].to_pylist() for c in ("sample", "prompt")), strict=True))

    def table(self, name: str) -> pa.Table | None:
        """A table with at least one row, else None."""
        found = self.tables.get(name)
        return found if found is not None and found.num_rows else None

    def setting(self, path: str, default: Any = None) -> Any:
        """A value of the configuration by its dotted path."""
        node: Any = self.config
        for part in path.split("."):
            if not isinstance(node, dict) or part not in node:
                return default
            node = node[part]
        return node


def site_order(name: str) -> tuple[int, ...]:
    """Sort key of execution order: down blocks, mid, up blocks, then what has no such place."""
    side, *numbers = name.removeprefix("conv.").split(".")
    order = ("down", "mid", "up")
    if side not in order:
        return (len(order),)
    return (order.index(side), *(int(n) for n in numbers))


def main_sites(shapes: Sequence[Any], image: tuple[int, int]) -> tuple[Site, ...]:
    """The self-attention sites of a layout in execution order, with their grids."""
    named = [s for s in shapes if MAIN_SITE.match(s.name)]
    return tuple(
        Site(s.name, s.tokens, s.channels, grid_of(s.tokens, image))
        for s in sorted(named, key=lambda s: site_order(s.name))
    )


def grid_of(tokens: int, image: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a grid of `tokens` cells with the aspect ratio of `image` (H, W)."""
    rows = max(1, round((tokens * image[0] / image[1]) ** 0.5))
    assert tokens % rows == 0, f"{tokens} tokens do not tile an image of {image}"
    return rows, tokens // rows


class StoreReader:
    """Pictures of a `storage.Store`."""

    _GONE = (ValueError, KeyError, OSError)

    def __init__(self, store: Any) -> None:
        self.store = store
        self._listed: dict[str, list[str]] = {}

    def images(self, variant: str, samples: Sequence[int]) -> np.ndarray | None:
        """See `Reader`."""
        return self._read(lambda: self.store.read_images(variant, list(samples)))

    def labels(self, task: str, samples: Sequence[int]) -> np.ndarray | None:
        """See `Reader`."""
        return self._read(lambda: self.store.read_labels(task, list(samples)))

    def predict(
        self, variant: str, site: Site, step: int, task: str, samples: Sequence[int], experiment: str = ""
    ) -> np.ndarray | None:
        """See `Reader`; the stored probe applied to the stored activations."""
        weights = self.weights(variant, site.name, step, task, experiment)
        if weights is None:
            return None
        acts = self._read(lambda: self.store.read_activations(variant, site.name, step, list(samples)))
        if acts is None:
            return None
        return apply_probe(weights, acts, task).reshape(len(samples), *site.grid)

    def weights(
        self, variant: str, site: str, step: int, task: str, experiment: str = ""
    ) -> dict[str, np.ndarray] | None:
        """See `Reader`; of several seeds the lowest, which the report shows."""
        from safetensors.numpy import load

        folder = f"experiments/{experiment}/" if experiment else ""
        prefix = f"{folder}probes/{variant}/{site}/"
        if prefix not in self._listed:
            self._listed[prefix] = sorted(self.store.list(prefix))
        name = f"{prefix}{step:02d}.{task}.none."
        mine = [path for path in self._listed[prefix] if path.startswith(name)]
        found = min(mine, key=lambda path: (len(path), path), default=None)  # 2 before 10
        return None if found is None else self._read(lambda: load(self.store.get(found)))

    def _read(self, action: Any) -> Any:
        try:
            return action()
        except self._GONE:
            return None


def apply_probe(weights: dict[str, np.ndarray], acts: np.ndarray, task: str) -> np.ndarray:
    """float32 (n, T) from activations (n, T, C): softmax foreground probability, or the value.

    `weights` holds `weight` (outputs, C), or (outputs, C + 1) with the bias last, and for an MLP
    probe `hidden` (units, C) alike, whose rectified units `weight` reads.
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


def load(store: Any, config: dict[str, Any]) -> RunData:
    """Read a store's tables and facts; pictures stay on disk until they are asked for."""
    layout, manifest = store.layout, _json(store, "manifest.json")
    return RunData(
        name=str(config.get("name") or store.url.rstrip("/").rpartition("/")[2] or "run"),
        url=store.url,
        config=config,
        manifest=manifest,
        sites=main_sites(layout.sites, layout.image),
        variants=tuple(layout.variants),
        costs=_json(store, "costs.json"),
        tables=_tables(store, manifest),
        space=budget.price(layout).families(),
        reader=StoreReader(store),
        cluster=machines.read(store),
    )


def _tables(store: Any, manifest: dict[str, Any]) -> dict[str, pa.Table]:
    hashes = {str(value) for _, value in leaves(manifest)} | set(_json(store, EXPERIMENTS_FILE).values())
    names = ("probes", "images", "epochs", "interventions")
    tables = {name: current(store.table(name), hashes) for name in names}
    for name, read in (("samples", store.samples), ("curation", store.curation)):
        try:
            tables[name] = read()
        except FileNotFoundError:
            continue
    return tables


def current(table: pa.Table, hashes: Collection[str]) -> pa.Table:
    """Rows of the present settings: of each experiment those with a stage hash among `hashes`,
    or where none has, those with the hash of the row written last."""
    if not table.num_rows:
        return table
    pairs = table.select(["experiment", "stage_hash"])
    found = pairs.group_by(pairs.column_names).aggregate([]).to_pylist()
    kept = pa.chunked_array([pa.repeat(False, table.num_rows)])
    for name in pc.unique(table["experiment"]).to_pylist():
        mine = pc.equal(table["experiment"], name)
        ours = [r["stage_hash"] for r in found if r["experiment"] == name]
        wanted = [h for h in ours if h in hashes] or [table.filter(mine)["stage_hash"][-1].as_py()]
        is_current = pc.is_in(table["stage_hash"], pa.array(wanted, pa.string()))
        kept = pc.or_(kept, pc.and_(mine, is_current))
    return table.filter(kept)


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths and values of a nested dictionary; lists are written in one line."""
    if not isinstance(node, dict):
        yield path, ", ".join(map(str, node)) if isinstance(node, list) else node
        return
    for key, value in node.items():
        yield from leaves(value, f"{path}.{key}" if path else str(key))


def _json(store: Any, path: str) -> dict[str, Any]:
    if not store.exists(path):
        return {}
    return json.loads(store.get(path))
