"""What a probe trial does: read the activations of a site once, fit its cells, write rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

import storage
from probing.dataset.split import Split
from probing.diffusion.model import pick_device
from probing.diffusion.sites import SiteSpec
from probing.probes.config import ProbeConfig
from probing.probes.controls import PICTURE, PICTURE_SITE, SURFACE_CONTROLS
from probing.probes.fit import FitSpec, ProbeResult, fit_site
from probing.probes.surface import feature_count, latent_features, picture_features
from probing.scoring.targets import Targets, pixel_ranks, pool_depth, pool_saliency
from storage import Store
from sweeps.runtime.grid import Cell, Trial

STEP_BYTES = 400 << 20
"""on a CPU activations of one site are read in groups of steps no larger than this; changes only the time"""
GPU_SHARE = 0.5
"""the same on a GPU, as a share of what is free of a trial's part; the rest is for batches and states"""


@dataclass(frozen=True)
class ProbeJob:
    """Everything that a trial needs beside its cells; small and picklable."""

    output: str
    experiment: str
    stage_hash: str
    curate_hash: str
    probe: ProbeConfig
    sites: tuple[SiteSpec, ...]
    samples: tuple[int, ...]
    split: Split
    threshold: int
    depth_mean: float
    depth_deviation: float
    attempt: int
    device: str = "cpu"
    gpus: float = 0.0
    """GPUs of a trial, or the fraction of one"""
    dry: bool = False
    """fit and write nothing: for timing"""
    activations: str = ""
    """store that holds the activations, where it is not the output itself"""
    decoded: str = ""
    """store of the decoded pictures' colours, for the control that reads them"""
    folder: str = ""
    """folder of the fitted weights, with its closing slash; empty is the main grid's"""
    further: tuple[ProbeJob, ...] = ()
    """jobs of the experiments beside the main grid, which the same trials may belong to"""

    def of(self, experiment: str) -> ProbeJob:
        """The job of an experiment; empty is the main grid."""
        if not experiment:
            return self
        return next(job for job in self.further if job.experiment == experiment)

    def site(self, name: str) -> SiteSpec:
        """The recorded site of a name."""
        return next(site for site in self.sites if site.name == name)


@lru_cache(maxsize=4)
def _opened(output: str) -> Store:
    return storage.open(output)


@lru_cache(maxsize=1)
def _labels(
    output: str, curate_hash: str, samples: tuple[int, ...], mean: float, deviation: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks, standardised depth and its ranks; kept between the trials of one process."""
    store = _opened(output)
    masks = store.read_labels("saliency", list(samples))
    depth = ((store.read_labels("depth", list(samples)) - mean) / deviation).astype(np.float32)
    return masks, depth, pixel_ranks(depth)


@lru_cache(maxsize=8)
def _targets(
    output: str,
    curate_hash: str,
    samples: tuple[int, ...],
    mean: float,
    deviation: float,
    threshold: int,
    grid: tuple[int, int],
) -> dict[str, Targets]:
    masks, depth, ranks = _labels(output, curate_hash, samples, mean, deviation)
    return {
        "saliency": pool_saliency(masks, grid, threshold),
        "depth": pool_depth(depth, grid, ranks, masks > threshold),
    }


def labels_of(job: ProbeJob, site: SiteSpec) -> dict[str, Targets]:
    """Labels of a job's samples pooled to a site's grid, by task."""
    return _targets(
        job.output, job.curate_hash, job.samples, job.depth_mean, job.depth_deviation,
        job.threshold, (site.height, site.width),
    )  # fmt: skip


def fit_trial(job: ProbeJob, trial: Trial) -> dict[str, Any]:
    """Fits the cells of a trial site by site; returns counts and seconds."""
    started, done, broken = time.perf_counter(), 0, 0
    job = job.of(trial.experiment)
    for variant, site in dict.fromkeys((cell.variant, cell.site) for cell in trial.cells):
        cells = [cell for cell in trial.cells if (cell.variant, cell.site) == (variant, site)]
        good, bad = _fit_one(job, variant, job.site(site), cells)
        done, broken = done + good, broken + bad
    return {"cells": done, "failed": broken, "seconds": time.perf_counter() - started}


def _fit_one(job: ProbeJob, variant: str, site: SiteSpec, cells: Sequence[Cell]) -> tuple[int, int]:
    """(finished, failed) cells of one site."""
    targets = labels_of(job, site)
    counts = np.zeros(2, dtype=int)
    for source, read in _by_source(cells).items():
        for steps in _step_groups(job, site, source, sorted({cell.step for cell in read})):
            mine = [cell for cell in read if cell.step in steps]
            results = _results(job, variant, site, steps, mine, targets, source)
            if not job.dry:
                write_results(job, variant, site, results)
            counts += [sum(r.ok for r in results), sum(not r.ok for r in results)]
    return int(counts[0]), int(counts[1])


def _by_source(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Cells by what their probes read: "" for the site's activations, else a control of the surface."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.control if cell.control in SURFACE_CONTROLS else "", []).append(cell)
    return found


def _step_groups(job: ProbeJob, site: SiteSpec, source: str, steps: Sequence[int]) -> list[list[int]]:
    """Steps that are read and fitted together: as many as memory holds, which changes only the time."""
    channels = feature_count(source, _latent(job)[0]) if source else site.channels
    fit = max(1, _step_bytes(job) // (site.tokens * channels * 2 * len(job.samples)))
    return [list(steps[i : i + fit]) for i in range(0, len(steps), fit)]


def _step_bytes(job: ProbeJob) -> int:
    """Bytes of half-precision activations to hold at once."""
    device = pick_device(job.device)
    if device.type != "cuda":
        return STEP_BYTES
    free, total = torch.cuda.mem_get_info(device)
    return int(min(free, total * min(1.0, job.gpus or 1.0)) * GPU_SHARE)


def _results(
    job: ProbeJob,
    variant: str,
    site: SiteSpec,
    steps: Sequence[int],
    cells: Sequence[Cell],
    targets: dict[str, Targets],
    source: str,
) -> list[ProbeResult]:
    images = None
    if job.probe.smoothness:
        images = _opened(job.output).read_images("trained", list(job.samples))
    specs = [FitSpec(cell.step, cell.task, cell.control, cell.seed) for cell in cells]
    return fit_site(
        _inputs(job, variant, site, steps, source), steps, (site.height, site.width), targets, job.split, specs,
        job.probe, pick_device(job.device), images,
    )  # fmt: skip


def _inputs(job: ProbeJob, variant: str, site: SiteSpec, steps: Sequence[int], source: str) -> np.ndarray:
    """What the probes read, float16 (S, N, T, C)."""
    if source:
        return np.stack([_surface(job, variant, site, step, source) for step in steps])
    samples = list(job.samples)
    acts = np.empty((len(steps), len(samples), site.tokens, site.channels), np.float16)
    _opened(job.activations or job.output).read_activations_into(variant, site.name, steps, samples, acts)
    return acts


def _surface(job: ProbeJob, variant: str, site: SiteSpec, step: int, control: str) -> np.ndarray:
    """What a control of the surface reads at one step, float16 (N, T, C)."""
    size, samples = (site.height, site.width), list(job.samples)
    if control == PICTURE:
        points = _opened(job.decoded).read_activations(variant, PICTURE_SITE, step, samples)
        _, *latent = _latent(job)
        return picture_features(points, (latent[0], latent[1]), size)
    return latent_features(*_opened(job.output).read_latents(variant, step, samples), size, control)


def _latent(job: ProbeJob) -> tuple[int, ...]:
    """Channels, height and width of the latents. Raises ValueError where none were recorded."""
    if not (found := _opened(job.output).layout.latent):
        raise ValueError(
            f"{job.output} holds no latents, which controls of the surface read; "
            f"leave {', '.join(SURFACE_CONTROLS)} out of sweep.controls, or sample into another output"
        )
    return found


def write_results(job: ProbeJob, variant: str, site: SiteSpec, results: Sequence[ProbeResult]) -> None:
    """Probe weights first, then images and epochs, and last the rows that make them count."""
    store = _opened(job.output)
    block, index = site.name.rsplit(".", 1)
    rows, images, epochs = [], [], []
    for result in results:
        same = {
            "experiment": job.experiment, "variant": variant, "site": site.name,
            "attempt": job.attempt, "stage_hash": job.stage_hash,
        }  # fmt: skip
        if result.ok:
            _save_weights(store, job.folder, variant, site.name, result)
        number = int(index) if index.isdigit() else 0
        rows.append({**same, "block": block, "index": number, **result.row})
        images += [{**same, **row, "sample": _sample(job, row)} for row in result.images]
        epochs += [{**same, **row} for row in result.epochs]
    for table, found in (("images", images), ("epochs", epochs), ("probes", rows)):
        if found:
            store.append(table, found)


def _sample(job: ProbeJob, row: dict[str, object]) -> int:
    """The sample that a row of a fit, which counts the job's samples from 0, speaks of."""
    place = row["sample"]
    assert isinstance(place, int)
    return job.samples[place]


def _save_weights(store: Store, folder: str, variant: str, site: str, result: ProbeResult) -> None:
    cell = result.cell
    tensors = {"weight": np.ascontiguousarray(result.weights)}
    if result.hidden is not None:
        tensors["hidden"] = np.ascontiguousarray(result.hidden)
    path = storage.probe_path(variant, site, cell.step, cell.task, cell.control, cell.seed)
    store.put(folder + path, save(tensors, {"scale": repr(result.scale)}))


def attempt_of(store: Store) -> int:
    """A number above those of all rows so far, so that later rows win."""
    attempts = store.table("probes", current=False)["attempt"].to_pylist()
    return 1 + max((a for a in attempts if a is not None), default=0)
