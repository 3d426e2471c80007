"""Fits all probes of one (variant, site) from one array of activations: steps, tasks, controls, seeds together.

Probes that share activations, seed and heads are one batched problem with separate optimiser states; each result
equals that of fitting the probe alone. Test samples are used once, after the last choice was made.
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
from probing.probes.batched import HiddenProbes, LinearProbes, Probes
from probing.probes.config import ProbeConfig
from probing.probes.controls import POSITION, POSITION_CONTROLS, label_rows
from probing.probes.features import Activations
from probing.probes.optimiser import Layer, dtype_of, initial_layers, initial_seed
from probing.probes.results import FitSpec, Fitted, ProbeResult, failed
from probing.probes.tasks import TASKS, load_task
from probing.probes.training import HeadRuns, History, predictions, root_mean_squares, train
from probing.scoring.targets import Edges, Grid, Targets, pool_edges

Trainer = Callable[[Probes, Activations, HeadRuns, dict[str, Tensor], int, ProbeConfig], History]
"""trains probes in place: (probes, features, labels, samples by part of the split, order seed, config)"""


@dataclass(frozen=True, eq=False)
class SiteData:
    """Everything that the probes of one (variant, site) share."""

    acts: Tensor
    """(S, N, T, C) on the device"""
    steps: tuple[int, ...]
    """denoising step of each entry of the first axis"""
    grid: Grid
    """height and width in patches"""
    targets: Mapping[str, Targets]
    """pooled labels by task"""
    split: Split
    """sample numbers"""
    config: ProbeConfig
    """how to train"""
    edges: Edges | None
    """border weights, for the smoothness loss"""
    scale: Tensor
    """(S) root mean squares over training samples; not finite if the activations are not"""

    @property
    def columns(self) -> dict[str, object]:
        """The columns of results/probes that are the same for all probes of the site."""
        parts = {f"n_{name}": len(getattr(self.split, name)) for name in ("train", "val", "test")}
        return {"tokens": self.acts.shape[2], "channels": self.acts.shape[3], **parts}


def fit_site(
    acts: NDArray,
    steps: Sequence[int],
    grid: Grid,
    targets: Mapping[str, Targets],
    split: Split,
    specs: Sequence[FitSpec],
    config: ProbeConfig,
    device: str | torch.device = "cpu",
    images: NDArray[np.uint8] | None = None,
    trainer: Trainer = train,
) -> list[ProbeResult]:
    """Fit the probes `specs` on activations (S, N, T, C), float16 or float32, of denoising `steps` (S).

    targets: pooled labels of the same N samples and grid, by task. images: (N, H, W, 3), only for smoothness.
    trainer: what fits a batch of probes, by default the paper's training (section 3.1).
    Returns the results in the order of `specs`. On a CPU it uses one thread: run as many processes as there are cores.
    Non-finite activations or weights fail the probes that depend on them (row status `failed`, with the reason) and
    no others. Raises ValueError if the inputs do not fit together."""
    _check_inputs(acts, steps, grid, targets, split, specs, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of read-only arrays, and nothing here writes to it
        tensor = torch.from_numpy(np.ascontiguousarray(acts)).to(device)
    edges = pool_edges(images, grid) if config.smoothness and images is not None else None
    results: dict[FitSpec, ProbeResult] = {}
    scale = root_mean_squares(Activations(tensor, dtype_of(config)), torch.from_numpy(split.train).to(device))
    site = SiteData(tensor, tuple(steps), (grid[0], grid[1]), targets, split, config, edges, scale)
    with _one_thread():
        for group in _groups(specs):
            results.update(_fit_group(site, group, trainer))
    return [results[spec] for spec in specs]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Many small operations: threads that share them would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_inputs(
    acts: NDArray,
    steps: Sequence[int],
    grid: Grid,
    targets: Mapping[str, Targets],
    split: Split,
    specs: Sequence[FitSpec],
    config: ProbeConfig,
) -> None:
    """Raises ValueError if the inputs of fit_site do not fit together."""
    if acts.ndim != 4 or acts.shape[0] != len(steps) or len(set(steps)) != len(steps):
        expected = "(steps, samples, patches, channels)"
        raise ValueError(f"expected activations of shape {expected} for steps {steps}, got {acts.shape}")
    if acts.shape[2] != grid[0] * grid[1]:
        raise ValueError(f"activations have {acts.shape[2]} patches, the grid {grid[0]} x {grid[1]}")
    for name, target in targets.items():
        if target.grid != tuple(grid) or len(target) != acts.shape[1]:
            raise ValueError(
                f"targets of {name}: {len(target)} samples on {target.grid}, activations: {acts.shape[1]} on {grid}"
            )
    used = np.concatenate([part for _, part in split.parts])
    if used.max() >= acts.shape[1]:
        raise ValueError(f"split contains sample {used.max()}, the activations have {acts.shape[1]} samples")
    if config.selection == "val" and not len(split.val):
        raise ValueError("probe.selection=val needs validation samples: choose last, or a split with val")
    for spec in specs:
        if spec.step not in steps:
            raise ValueError(f"no activations of step {spec.step}: steps are {steps}")
        if spec.task not in TASKS or spec.task not in targets:
            raise ValueError(f"no targets or no task named {spec.task!r}: tasks are {', '.join(TASKS)}")


@dataclass(frozen=True)
class Group:
    """Probes fitted as one batched problem: every step with every head."""

    family: str
    """activation, or the position control"""
    seed: int
    steps: tuple[int, ...]
    heads: tuple[tuple[str, str], ...]
    """(task, control), tasks together"""

    def specs(self) -> list[list[FitSpec]]:
        """[step][head]"""
        return [[FitSpec(step, task, control, self.seed) for task, control in self.heads] for step in self.steps]


def _groups(specs: Sequence[FitSpec]) -> list[Group]:
    """Split probes into full step x head rectangles."""
    heads_of: dict[tuple[str, int, int], set[tuple[str, str]]] = {}
    for spec in specs:
        family = spec.control if spec.control in POSITION_CONTROLS else "activation"
        heads_of.setdefault((family, spec.seed, spec.step), set()).add((spec.task, spec.control))
    steps_of: dict[tuple[str, int, tuple[tuple[str, str], ...]], list[int]] = {}
    for (family, seed, step), heads in sorted(heads_of.items()):
        steps_of.setdefault((family, seed, tuple(sorted(heads))), []).append(step)
    return [Group(family, seed, tuple(steps), heads) for (family, seed, heads), steps in steps_of.items()]


def _fit_group(site: SiteData, group: Group, trainer: Trainer) -> dict[FitSpec, ProbeResult]:
    """Fit one batched problem; steps with non-finite training activations fail without being fitted."""
    results: dict[FitSpec, ProbeResult] = {}
    fit_steps = group.steps
    if group.family != POSITION:
        finite = dict(zip(site.steps, torch.isfinite(site.scale).tolist(), strict=True))
        fit_steps = tuple(step for step in group.steps if finite[step])
        for row in group.specs():
            if not finite[row[0].step]:
                reason = f"step {row[0].step}: activations of the training samples are not finite"
                results.update({spec: failed(site.columns, spec, reason) for spec in row})
    if fit_steps:
        results.update(_fit_finite(site, replace(group, steps=fit_steps), trainer))
    return results


@torch.inference_mode()  # a tenth less time: its many small operations do no bookkeeping for autograd
def _fit_finite(site: SiteData, group: Group, trainer: Trainer) -> dict[FitSpec, ProbeResult]:
    """Fit one batched problem whose training activations are finite."""
    started = time.perf_counter()
    places = [site.steps.index(step) for step in group.steps]
    acts = site.acts[..., :0] if group.family == POSITION else site.acts
    # consecutive steps are a view; indexing by a list would copy the activations
    is_run = places == list(range(places[0], places[0] + len(places)))
    features = Activations(acts[places[0] : places[-1] + 1] if is_run else acts[places], dtype_of(site.config))
    probes, scale = _start_probes(site, group, places)
    labels = _labels(site, group)
    parts = {name: torch.from_numpy(part).to(site.acts.device) for name, part in site.split.parts}
    history = trainer(probes, features, labels, parts, site.config.seed + group.seed, site.config)
    outputs = {name: predictions(probes, features, samples) for name, samples in parts.items()}
    test_loss = labels.loss(outputs["test"].flatten(2), parts["test"])[0]
    scores = [heads.scores({n: p[:, run] for n, p in outputs.items()}, parts) for run, heads in labels.runs]
    finite = {name: torch.isfinite(values).all(3).cpu() for name, values in outputs.items()}
    fitted = Fitted(
        site.columns, site.split, group.specs(), probes.weights(), scale.tolist(), history, test_loss, scores, finite
    )
    return fitted.results(time.perf_counter() - started)


def _start_probes(site: SiteData, group: Group, places: list[int]) -> tuple[Probes, Tensor]:
    """The probes at their seeded start, and the scale (S) of their activations."""
    config, (_, _, patches, channels) = site.config, site.acts.shape
    scale = torch.ones_like(site.scale[places])
    if config.normalise == "rms" and group.family != POSITION:
        scale = torch.where(site.scale[places] > 0, site.scale[places], scale)
    channels = 0 if group.family == POSITION else channels
    inputs = channels + (patches if group.family in POSITION_CONTROLS else 0)
    hidden = [config.hidden] if config.hidden and group.family == "activation" else []

    def start(spec: FitSpec) -> list[Layer]:
        sizes = [inputs, *hidden, load_task(spec.task).outputs]
        return initial_layers(initial_seed(spec.seed, spec.step, spec.task), sizes, config.bias)

    starts = [[start(spec) for spec in row] for row in group.specs()]
    if hidden:
        return HiddenProbes(starts, scale), scale
    return LinearProbes(starts, scale, channels), scale


def _labels(site: SiteData, group: Group) -> HeadRuns:
    """The labels of the group's heads, task by task."""
    samples, patches = site.acts.shape[1:3]
    runs = []
    for task in dict.fromkeys(task for task, _ in group.heads):
        places = [k for k, head in enumerate(group.heads) if head[0] == task]
        controls = [group.heads[k][1] for k in places]
        rows = np.stack([label_rows(c, samples, patches, site.split, group.seed) for c in controls])
        heads = load_task(task)(site.targets[task], rows, site.config, site.acts.device, site.edges)
        runs.append((slice(places[0], places[-1] + 1), heads))
    return HeadRuns(tuple(runs))
