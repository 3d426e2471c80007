"""Fits all probes of one (variant, site) from one array of activations: steps, tasks, controls, seeds together.

Cells that share activations, seed and heads are one batched problem with separate optimiser states; each
equals fitting it alone. Test samples are read once, after the last choice was made.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.dataset.split import Split
from probing.probes.batched import HiddenProbes, JointProbes, LinearProbes, PositionProbes, Probes, predict
from probing.probes.config import ProbeConfig
from probing.probes.controls import POSITION_CONTROLS, label_rows
from probing.probes.features import Activations, Features, NoActivations
from probing.probes.optimiser import dtype_of, initial_layers, initial_seed
from probing.probes.results import FitSpec, Fitted, ProbeResult, Sizes, failed
from probing.probes.tasks import TASKS, load_task
from probing.probes.training import Bank, History, predictions, root_mean_squares, train
from probing.scoring.targets import Edges, Grid, Targets, pool_edges

Trainer = Callable[[Probes, Features, Bank, dict[str, Tensor], int, ProbeConfig], History]
"""trains probes in place: (probes, features, labels, samples by part of the split, order seed, config)"""

__all__ = ["ProbeResult", "FitSpec", "ProbeConfig", "fit_site", "predict"]


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

    @property
    def sizes(self) -> Sizes:
        """What its rows say about it."""
        return Sizes(self.acts.shape[2], self.acts.shape[3], self.split)


def fit_site(
    acts: NDArray,
    steps: Sequence[int],
    grid: Grid,
    targets: Mapping[str, Targets],
    split: Split,
    cells: Sequence[FitSpec],
    config: ProbeConfig,
    device: str | torch.device = "cpu",
    images: NDArray[np.uint8] | None = None,
) -> list[ProbeResult]:
    """Fits `cells` on activations (S, N, T, C), float16 or float32, of denoising `steps` (S); results in order.

    targets: pooled labels of the same N samples and grid, by task. images: (N, H, W, 3), only for smoothness.
    On a CPU it keeps to one thread: use as many processes as there are cores.
    Non-finite activations or weights fail the cells they touch (row status `failed`, with the reason) and no
    others. Raises ValueError where the inputs do not fit together."""
    site = make_site(acts, steps, grid, targets, split, config, device, images)
    return fit_cells(site, cells, train)


def fit_cells(site: Site, cells: Sequence[FitSpec], trainer: Trainer) -> list[ProbeResult]:
    """Fits the cells of a site with a trainer of batched probes; results in order."""
    _check_cells(site, cells)
    found: dict[FitSpec, ProbeResult] = {}
    with _one_thread():
        for group in _groups(cells):
            found.update(_fit_group(site, group, trainer))
    return [found[cell] for cell in cells]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Many small operations: shared among threads they would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_site(
    acts: NDArray,
    steps: Sequence[int],
    grid: Grid,
    targets: Mapping[str, Targets],
    split: Split,
    config: ProbeConfig,
    device: str | torch.device = "cpu",
    images: NDArray[np.uint8] | None = None,
) -> Site:
    """Checks the inputs of fit_site and puts the activations on the device."""
    _check_inputs(acts, steps, grid, targets, split, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # read-only arrays: never written here
        tensor = torch.from_numpy(np.ascontiguousarray(acts)).to(device)
    edges = pool_edges(images, grid) if config.smoothness and images is not None else None
    features = Activations(tensor, dtype_of(config))
    scale = root_mean_squares(features, torch.from_numpy(split.train).to(device))
    return Site(tensor, tuple(steps), (grid[0], grid[1]), targets, split, config, edges, scale)


def _check_inputs(
    acts: NDArray, steps: Sequence[int], grid: Grid, targets: Mapping[str, Targets], split: Split, config: ProbeConfig
) -> None:
    """Raises ValueError where the inputs of fit_site do not fit together."""
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


def _check_cells(site: Site, cells: Sequence[FitSpec]) -> None:
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

    def cells(self) -> list[list[FitSpec]]:
        """[step][head]"""
        return [[FitSpec(step, task, control, self.seed) for task, control in self.heads] for step in self.steps]


def _groups(cells: Sequence[FitSpec]) -> list[Group]:
    """Splits cells into full step x head rectangles."""
    wanted: dict[tuple[str, int, int], set[tuple[str, str]]] = {}
    for cell in cells:
        family = cell.control if cell.control in POSITION_CONTROLS else "activation"
        wanted.setdefault((family, cell.seed, cell.step), set()).add((cell.task, cell.control))
    merged: dict[tuple[str, int, tuple[tuple[str, str], ...]], list[int]] = {}
    for (family, seed, step), heads in sorted(wanted.items()):
        merged.setdefault((family, seed, tuple(sorted(heads))), []).append(step)
    return [Group(family, seed, tuple(steps), heads) for (family, seed, heads), steps in merged.items()]


def _fit_group(site: Site, group: Group, trainer: Trainer) -> dict[FitSpec, ProbeResult]:
    """Fits one batched problem; steps with non-finite training activations fail without being fitted."""
    found: dict[FitSpec, ProbeResult] = {}
    sound = group.steps
    if group.family != "position":
        finite = dict(zip(site.steps, torch.isfinite(site.scale).tolist(), strict=True))
        sound = tuple(step for step in group.steps if finite[step])
        for row in group.cells():
            if not finite[row[0].step]:
                reason = f"step {row[0].step}: activations of the training samples are not finite"
                found.update({cell: failed(site.sizes, cell, reason) for cell in row})
    if sound:
        found.update(_fit_sound(site, replace(group, steps=sound), trainer))
    return found


def _fit_sound(site: Site, group: Group, trainer: Trainer) -> dict[FitSpec, ProbeResult]:
    started = time.perf_counter()
    at = [site.steps.index(step) for step in group.steps]
    features = _features(site, group, at)
    probes, scale = _probes(site, group, at)
    bank = _bank(site, group)
    parts = {name: torch.from_numpy(part).to(site.acts.device) for name, part in site.split.parts}
    history = trainer(probes, features, bank, parts, site.config.seed + group.seed, site.config)
    read = {name: predictions(probes, features, samples) for name, samples in parts.items()}
    test_loss = bank.loss(read["test"].flatten(2), parts["test"])[0]
    scores = [heads.scores({n: p[:, run] for n, p in read.items()}, parts) for run, heads in bank.runs]
    finite = {name: torch.isfinite(values).all(3).cpu() for name, values in read.items()}
    fitted = Fitted(site.sizes, group.cells(), probes.weights(), scale.tolist(), history, test_loss, scores, finite)
    return fitted.results(time.perf_counter() - started)


def _features(site: Site, group: Group, at: list[int]) -> Features:
    dtype = dtype_of(site.config)
    if group.family == "position":
        return NoActivations(len(at), site.acts.shape[2])
    run = at == list(range(at[0], at[0] + len(at)))
    return Activations(site.acts[at[0] : at[-1] + 1] if run else site.acts[at], dtype)


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
                initial_seed(c.seed, c.step, c.task), [inputs, *hidden, load_task(c.task).outputs], config.bias
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
        heads = load_task(task)(site.targets[task], rows, site.config, site.acts.device, site.edges)
        runs.append((slice(places[0], places[-1] + 1), heads))
    return Bank(tuple(runs))
