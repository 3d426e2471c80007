"""Fits all probes of one (variant, site) from one array of activations: steps, tasks, controls, seeds together.

Cells that share activations, seed and heads are one batched problem with separate optimiser states; each
equals fitting it alone. Test samples are read once, after the last choice was made.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.controls import POSITION_CONTROLS, Split, label_rows
from probing.models import HiddenProbes, JointProbes, LinearProbes, PositionProbes, Probes
from probing.probes import ProbeConfig, initial_layers, initial_seed, predict
from probing.tasks import TASKS, Scores
from probing.targets import Edges, Grid, Targets, pool_edges
from probing.training import (
    Activations,
    Bank,
    Features,
    History,
    NoActivations,
    dtype_of,
    predictions,
    root_mean_squares,
    train,
)

__all__ = ["CellResult", "CellSpec", "ProbeConfig", "Split", "fit_site", "predict"]


@dataclass(frozen=True, order=True)
class CellSpec:
    """One probe of a (variant, site)."""

    step: int
    """denoising step, as given in `steps`"""
    task: str
    """name in the task registry"""
    control: str = "none"
    """see controls.CONTROLS"""
    seed: int = 0
    """of the start, of the order of samples and of the control's permutation"""


@dataclass(frozen=True, eq=False)
class CellResult:
    """A fitted probe with its scores; a failed one has no weights and says why in its row."""

    cell: CellSpec
    weights: NDArray | None
    """(O, C), or (O, C + 1) with the bias last, for raw activations; position: (O, T [+ 1]); position_activation:
    (O, C + T [+ 1]); with a hidden layer (O, units [+ 1])"""
    hidden: NDArray | None
    """(units, C [+ 1]) hidden layer of an MLP probe, else None"""
    scale: float
    """the activations' root mean square, already folded into the weights (1 without normalising)"""
    row: dict[str, object]
    """columns of results/probes; None where undefined"""
    images: list[dict[str, object]] = field(default_factory=list)
    """columns of results/images, one row per test image"""
    epochs: list[dict[str, object]] = field(default_factory=list)
    """columns of results/epochs, epochs counted from 1"""
    dropped: dict[str, int] = field(default_factory=dict)
    """score -> test images on which it is undefined and which its mean leaves out"""

    @property
    def ok(self) -> bool:
        """Whether the probe was fitted."""
        return self.row["status"] == "done"


@dataclass(frozen=True, eq=False)
class Site:
    """Everything the probes of one (variant, site) share."""

    acts: Tensor
    """(S, N, T, C) on the device"""
    steps: tuple[int, ...]
    """denoising step of each entry of the first axis"""
    grid: Grid
    """height and width in cells"""
    targets: Mapping[str, Targets]
    """pooled labels by task"""
    split: Split
    """sample numbers"""
    config: ProbeConfig
    """how to train"""
    edges: Edges | None
    """border weights, for the smoothness loss"""
    scale: Tensor
    """(S) root mean squares over training samples; not finite where the activations are not"""


def fit_site(
    acts: NDArray,
    steps: Sequence[int],
    grid: Grid,
    targets: Mapping[str, Targets],
    split: Split,
    cells: Sequence[CellSpec],
    config: ProbeConfig,
    device: str | torch.device = "cpu",
    images: NDArray[np.uint8] | None = None,
) -> list[CellResult]:
    """Fits `cells` on activations (S, N, T, C), float16 or float32, of denoising `steps` (S); results in order.

    targets: pooled labels of the same N samples and grid, by task. images: (N, H, W, 3), only for smoothness.
    Non-finite activations or weights fail the cells they touch (row status `failed`, with the reason) and no
    others. Raises ValueError where the inputs do not fit together."""
    site = _site(acts, steps, grid, targets, split, config, torch.device(device), images)
    _check_cells(site, cells)
    found: dict[CellSpec, CellResult] = {}
    for group in _groups(site, cells):
        found.update(_fit_group(site, group))
    return [found[cell] for cell in cells]


def _site(acts, steps, grid, targets, split, config, device, images) -> Site:
    """Checks the inputs of fit_site and puts the activations on the device."""
    if acts.ndim != 4 or acts.shape[0] != len(steps) or len(set(steps)) != len(steps):
        raise ValueError(f"activations {acts.shape} must be (steps, samples, cells, channels) for steps {steps}")
    if acts.shape[2] != grid[0] * grid[1]:
        raise ValueError(f"activations have {acts.shape[2]} cells, the grid {grid[0]} x {grid[1]}")
    for name, target in targets.items():
        if target.grid != tuple(grid) or len(target) != acts.shape[1]:
            raise ValueError(
                f"targets of {name}: {len(target)} samples on {target.grid}, activations: {acts.shape[1]} on {grid}"
            )
    used = np.concatenate([part for _, part in split.parts])
    if used.max() >= acts.shape[1]:
        raise ValueError(f"split names sample {used.max()}, the activations have {acts.shape[1]}")
    if config.selection == "val" and not len(split.val):
        raise ValueError("probe.selection=val needs validation samples: choose last, or a split with val")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # read-only arrays: never written here
        tensor = torch.from_numpy(np.ascontiguousarray(acts)).to(device)
    edges = pool_edges(images, grid) if config.smoothness and images is not None else None
    features = Activations(tensor, dtype_of(config))
    scale = root_mean_squares(features, torch.from_numpy(split.train).to(device))
    return Site(tensor, tuple(steps), tuple(grid), targets, split, config, edges, scale)


def _check_cells(site: Site, cells: Sequence[CellSpec]) -> None:
    for cell in cells:
        if cell.step not in site.steps:
            raise ValueError(f"no activations of step {cell.step}: steps are {site.steps}")
        if cell.task not in TASKS or cell.task not in site.targets:
            raise ValueError(f"no targets or no task named {cell.task!r}: tasks are {', '.join(TASKS)}")


@dataclass(frozen=True)
class Group:
    """Cells fitted as one batched problem: every step with every head."""

    family: str
    """activation, or the position control"""
    seed: int
    steps: tuple[int, ...]
    heads: tuple[tuple[str, str], ...]
    """(task, control), tasks together"""

    def cells(self) -> list[list[CellSpec]]:
        """[step][head]"""
        return [[CellSpec(step, task, control, self.seed) for task, control in self.heads] for step in self.steps]


def _groups(site: Site, cells: Sequence[CellSpec]) -> list[Group]:
    """Splits cells into full step x head rectangles."""
    wanted: dict[tuple[str, int, int], set[tuple[str, str]]] = {}
    for cell in cells:
        family = cell.control if cell.control in POSITION_CONTROLS else "activation"
        wanted.setdefault((family, cell.seed, cell.step), set()).add((cell.task, cell.control))
    merged: dict[tuple[str, int, tuple[tuple[str, str], ...]], list[int]] = {}
    for (family, seed, step), heads in sorted(wanted.items()):
        merged.setdefault((family, seed, tuple(sorted(heads))), []).append(step)
    return [Group(family, seed, tuple(steps), heads) for (family, seed, heads), steps in merged.items()]


def _fit_group(site: Site, group: Group) -> dict[CellSpec, CellResult]:
    """Fits one batched problem; steps with non-finite training activations fail without being fitted."""
    found: dict[CellSpec, CellResult] = {}
    if group.family != "position":
        sound = [bool(torch.isfinite(site.scale[site.steps.index(step)])) for step in group.steps]
        for good, row in zip(sound, group.cells(), strict=True):
            if not good:
                reason = f"step {row[0].step}: activations of the training samples are not finite"
                found.update({cell: _failed(site, cell, reason) for cell in row})
        steps = tuple(step for step, good in zip(group.steps, sound, strict=True) if good)
        group = Group(group.family, group.seed, steps, group.heads)
    if group.steps:
        found.update(_fit_sound(site, group))
    return found


def _fit_sound(site: Site, group: Group) -> dict[CellSpec, CellResult]:
    started = time.perf_counter()
    at = [site.steps.index(step) for step in group.steps]
    features = _features(site, group, at)
    probes, scale = _probes(site, group, at)
    bank = _bank(site, group)
    parts = {name: torch.from_numpy(part).to(site.acts.device) for name, part in site.split.parts}
    none = parts["train"][:0]
    order_seed = site.config.seed + group.seed
    history = train(probes, features, bank, parts["train"], parts.get("val", none), order_seed, site.config)
    read = {name: predictions(probes, features, samples) for name, samples in parts.items()}
    test_loss = bank.loss(read["test"].flatten(2), parts["test"])[0]
    scores = [heads.scores({n: p[:, run] for n, p in read.items()}, parts) for run, heads in bank.runs]
    finite = torch.isfinite(read["test"]).all(3)
    for name in read:
        finite &= torch.isfinite(read[name]).flatten(2).all(2)[..., None]
    fitted = Fitted(site, group, probes.weights(), scale.tolist(), history, test_loss, scores, finite)
    return fitted.results(time.perf_counter() - started)


def _features(site: Site, group: Group, at: list[int]) -> Features:
    dtype = dtype_of(site.config)
    if group.family == "position":
        return NoActivations(len(at), site.acts.shape[2], site.scale)
    whole = at == list(range(len(site.steps)))
    return Activations(site.acts if whole else site.acts[at], dtype)


def _probes(site: Site, group: Group, at: list[int]) -> tuple[Probes, Tensor]:
    """The probes at their seeded start, and the scale (S) of their activations."""
    config, (_, _, cells, channels) = site.config, site.acts.shape
    scale = torch.ones_like(site.scale[at])
    if config.normalise == "rms" and group.family != "position":
        scale = torch.where(site.scale[at] > 0, site.scale[at], scale)
    inputs = {"position": cells, "position_activation": channels + cells}.get(group.family, channels)
    hidden = [config.hidden] if config.hidden and group.family == "activation" else []
    layers = [
        [
            initial_layers(
                initial_seed(c.seed, c.step, c.task), [inputs, *hidden, TASKS[c.task].outputs], config.bias
            )
            for c in row
        ]
        for row in group.cells()
    ]
    if group.family == "position":
        return PositionProbes(layers, scale), scale
    if group.family == "position_activation":
        return JointProbes(layers, scale, channels), scale
    return (HiddenProbes if hidden else LinearProbes)(layers, scale), scale


def _bank(site: Site, group: Group) -> Bank:
    """The labels of the group's heads, task by task."""
    samples, cells = site.acts.shape[1:3]
    runs = []
    for task in dict.fromkeys(task for task, _ in group.heads):
        places = [k for k, head in enumerate(group.heads) if head[0] == task]
        controls = [group.heads[k][1] for k in places]
        rows = np.stack([label_rows(c, samples, cells, site.split, group.seed) for c in controls])
        heads = TASKS[task](site.targets[task], rows, site.config, site.acts.device, site.edges)
        runs.append((slice(places[0], places[-1] + 1), heads))
    return Bank(tuple(runs))


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a batched problem gave, to be taken apart into cells."""

    site: Site
    group: Group
    weights: list[list[tuple[NDArray, NDArray | None]]]
    scale: list[float]
    history: History
    test_loss: Tensor
    scores: list[Scores]
    finite: Tensor
    """(S, K, test samples) whether all predictions are numbers"""

    def results(self, seconds: float) -> dict[CellSpec, CellResult]:
        """One result per cell; the seconds are shared out evenly."""
        each = seconds / (len(self.group.steps) * len(self.group.heads))
        tables = _Tables.of(self)
        return {
            cell: self._result(s, k, cell, each, tables)
            for s, row in enumerate(self.group.cells())
            for k, cell in enumerate(row)
        }

    def _result(self, s: int, k: int, cell: CellSpec, seconds: float, tables: _Tables) -> CellResult:
        weights, hidden = self.weights[s][k]
        reason = self._reason(s, k, weights)
        if reason:
            return _failed(self.site, cell, reason)
        epochs = [
            {**_key(cell), "epoch": epoch + 1, "train_loss": train_loss, "val_loss": val_loss}
            for epoch, (train_loss, val_loss) in enumerate(tables.epochs(s, k))
        ]
        chosen = epochs[tables.chosen[s][k]]
        row = {
            **_key(cell),
            **_sizes(self.site),
            "train_loss": chosen["train_loss"],
            "val_loss": chosen["val_loss"],
            "test_loss": tables.test_loss[s][k],
            **tables.cell(s, k),
            "seconds": seconds,
            "status": "done",
            "error": None,
        }
        if cell.task == "saliency":
            row["crossentropy"] = row["test_loss"]
        images, dropped = tables.image_rows(s, k, cell, self.site.split.test)
        return CellResult(cell, weights, hidden, self.scale[s], row, images, epochs, dropped)

    def _reason(self, s: int, k: int, weights: NDArray) -> str | None:
        """Why a cell failed, if it did."""
        if not np.isfinite(weights).all():
            return "the weights are no longer finite: lower probe.lr"
        bad = (~self.finite[s, k]).nonzero().flatten().tolist()
        if bad:
            sample = self.site.split.test[bad[0]]
            return f"predictions are not finite, of test sample {sample} among others: see its activations"
        return None


class _Tables:
    """Tensors of scores as nested lists, moved off the device once."""

    def __init__(self, fitted: Fitted) -> None:
        history = fitted.history
        self.train = history.train.permute(1, 2, 0).tolist()
        self.val = None if history.val is None else history.val.permute(1, 2, 0).tolist()
        self.chosen, self.test_loss = history.chosen.tolist(), fitted.test_loss.tolist()
        self.cells: list[dict[str, list[list[float]]]] = []
        self.images: list[dict[str, list[list[list[float]]]]] = []
        for scores in fitted.scores:
            heads = next(iter(scores.cells.values())).shape[1]
            cells = {name: values.tolist() for name, values in scores.cells.items()}
            images = {name: values.tolist() for name, values in scores.images.items()}
            for head in range(heads):
                self.cells.append({name: [row[head] for row in values] for name, values in cells.items()})
                self.images.append({name: [row[head] for row in values] for name, values in images.items()})

    @classmethod
    def of(cls, fitted: Fitted) -> _Tables:
        """The tables of a fitted group."""
        return cls(fitted)

    def epochs(self, s: int, k: int) -> list[tuple[float, float | None]]:
        """(train loss, validation loss) of every epoch."""
        val = [None] * len(self.train[s][k]) if self.val is None else self.val[s][k]
        return list(zip(self.train[s][k], val, strict=True))

    def cell(self, s: int, k: int) -> dict[str, object]:
        """Scores of a cell, None where undefined."""
        return {name: _defined(values[s]) for name, values in self.cells[k].items()}

    def image_rows(
        self, s: int, k: int, cell: CellSpec, test: NDArray[np.int64]
    ) -> tuple[list[dict[str, object]], dict[str, int]]:
        """Rows of a cell's test images, and how many images each score is undefined on."""
        columns = {name: [_defined(v) for v in values[s]] for name, values in self.images[k].items()}
        dropped = {name: values.count(None) for name, values in columns.items() if None in values}
        names, key = list(columns), _key(cell)
        rows = [
            {**key, "sample": sample, **dict(zip(names, values, strict=True))}
            for sample, values in zip(test.tolist(), zip(*columns.values(), strict=True), strict=True)
        ]
        return rows, dropped


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _key(cell: CellSpec) -> dict[str, object]:
    return {"step": cell.step, "task": cell.task, "control": cell.control, "seed": cell.seed}


def _sizes(site: Site) -> dict[str, object]:
    counts = {f"n_{name}": len(getattr(site.split, name)) for name in ("train", "val", "test")}
    return {"tokens": site.acts.shape[2], "channels": site.acts.shape[3], **counts}


def _failed(site: Site, cell: CellSpec, reason: str) -> CellResult:
    row = {**_key(cell), **_sizes(site), "seconds": 0.0, "status": "failed", "error": reason}
    return CellResult(cell, None, None, 1.0, row)
