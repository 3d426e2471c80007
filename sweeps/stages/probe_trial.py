"""A probe trial: read the activations of a site once, fit its probes, write their rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

import storage
from probing.dataset.split import Split
from probing.diffusion.sites import SiteSpec
from probing.probes.config import ProbeConfig
from probing.probes.controls import NETWORK_FREE, PICTURE, PICTURE_SITE, POSITION, SURFACE_CONTROLS
from storage import Store
from sweeps.runtime.grid import ProbeSpec, Trial
from sweeps.runtime.layout import TRAINED

if TYPE_CHECKING:
    from probing.probes.results import ProbeResult
    from probing.scoring.targets import Targets

STEP_BYTES = 400 << 20
"""limit on the activations of one site that are read together on a CPU; affects only the time"""
GPU_SHARE = 0.5
"""the same on a GPU, as a share of what is free of a trial's part; the rest is for batches and optimiser states"""


@dataclass(frozen=True)
class ProbeJob:
    """Everything that a trial needs beside its probes; small and picklable."""

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
    depth_std: float
    attempt: int
    device: str = "cpu"
    gpus: float = 0.0
    """GPUs of a trial, or a fraction of one"""
    dry: bool = False
    """fit but write nothing: for timing"""
    activations: str = ""
    """store that holds the activations, if it is not the output itself"""
    decoded: str = ""
    """store of the decoded images' colours, for the control that reads them"""
    folder: str = ""
    """folder of the fitted weights, with its closing slash; empty for the main grid"""
    experiments: tuple[ProbeJob, ...] = ()
    """jobs of the experiments beside the main grid whose probes the same trials may fit"""

    def of(self, experiment: str) -> ProbeJob:
        """Return the job of the main grid or of an experiment."""
        return next(job for job in (self, *self.experiments) if job.experiment == experiment)

    def site(self, name: str) -> SiteSpec:
        """Return the recorded site with that name."""
        return next(site for site in self.sites if site.name == name)


# Workers are reused for many trials: open stores and pooled labels are kept between them.
_open = lru_cache(maxsize=4)(storage.open)


class _LabelKey(NamedTuple):
    """What pooled labels depend on, beside the grid."""

    output: str
    curate_hash: str
    samples: tuple[int, ...]
    depth_mean: float
    depth_std: float
    threshold: int


@lru_cache(maxsize=1)
def _labels(key: _LabelKey) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return masks, standardised depth and its ranks."""
    from probing.scoring.targets import pixel_ranks, standardised

    store, samples = _open(key.output), list(key.samples)
    depth = standardised(store.read_labels("depth", samples), key.depth_mean, key.depth_std)
    return store.read_labels("saliency", samples), depth, pixel_ranks(depth)


@lru_cache(maxsize=8)
def _targets(key: _LabelKey, grid: tuple[int, int]) -> dict[str, Targets]:
    from probing.scoring.targets import pool

    return pool(*_labels(key), grid, key.threshold)


def site_targets(job: ProbeJob, site: SiteSpec) -> dict[str, Targets]:
    """Return the labels of a job's samples pooled to a site's grid, by task."""
    key = _LabelKey(job.output, job.curate_hash, job.samples, job.depth_mean, job.depth_std, job.threshold)
    return _targets(key, (site.height, site.width))


def fit_trial(job: ProbeJob, trial: Trial) -> dict[str, float]:
    """Fit the probes of a trial, those of the same inputs together; return counts of finished and failed probes, and
    seconds."""
    started, counts = time.perf_counter(), np.zeros(2, dtype=int)
    job = job.of(trial.experiment)
    for source, probes in _by_inputs(job, trial.probes):
        counts += _fit_probes(job, source, probes)
    done, failed = counts.tolist()
    return {"cells": done, "failed": failed, "seconds": time.perf_counter() - started}


def _by_inputs(job: ProbeJob, probes: Sequence[ProbeSpec]) -> list[tuple[str, list[ProbeSpec]]]:
    """Group probes that read the same inputs, each group with its source: "" stands for a site's activations, else it
    is a control without any, whose inputs are those of all sites of one grid."""
    groups: dict[tuple[str, str, object], list[ProbeSpec]] = {}
    for probe in probes:
        site, source = job.site(probe.site), probe.control if probe.control in NETWORK_FREE else ""
        place = (site.height, site.width) if source else site.name
        groups.setdefault((probe.variant, source, place), []).append(probe)
    return [(source, group) for (_, source, _), group in groups.items()]


def _fit_probes(job: ProbeJob, source: str, probes: Sequence[ProbeSpec]) -> tuple[int, int]:
    """Fit the probes of one group, each distinct one once, and return how many finished and failed."""
    from probing.diffusion.devices import pick_device
    from probing.probes.fit import fit_site
    from probing.probes.results import FitSpec

    variant, site = probes[0].variant, job.site(probes[0].site)
    targets, images = site_targets(job, site), None
    if job.probe.smoothness:
        images = _open(job.output).read_images(TRAINED, list(job.samples))
    done = failed = 0
    for steps in _step_groups(job, site, source, sorted({probe.step for probe in probes})):
        sites: dict[FitSpec, list[SiteSpec]] = {}
        for probe in probes:
            if probe.step in steps:
                spec = FitSpec(probe.step, probe.task, probe.control, probe.seed)
                sites.setdefault(spec, []).append(job.site(probe.site))
        results = fit_site(
            _inputs(job, variant, site, steps, source),
            steps,
            (site.height, site.width),
            targets,
            job.split,
            list(sites),
            job.probe,
            pick_device(job.device),
            images,
        )
        placed = [(place, _at(place, result, sites[result.spec])) for result in results for place in sites[result.spec]]
        if not job.dry:
            write_results(job, variant, placed)
        done += sum(result.ok for _, result in placed)
        failed += sum(not result.ok for _, result in placed)
    return done, failed


def _at(site: SiteSpec, result: ProbeResult, sites: Sequence[SiteSpec]) -> ProbeResult:
    """Return the result of one fit for `sites` as that of one of them, with its share of the seconds."""
    row = result.row | {"seconds": cast(float, result.row["seconds"]) / len(sites)}
    if result.spec.control == POSITION:  # it was fitted without channels
        row["channels"] = site.channels
    return replace(result, row=row)


def _step_groups(job: ProbeJob, site: SiteSpec, source: str, steps: Sequence[int]) -> list[list[int]]:
    """Split steps into groups that are read and fitted together: as many as memory holds."""
    from probing.diffusion.devices import pick_device
    from probing.probes.surface import feature_count

    limit, device = STEP_BYTES, pick_device(job.device)
    if device.type == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info(device)
        limit = int(min(free, total * min(1.0, job.gpus or 1.0)) * GPU_SHARE)
    reads_latents = source in SURFACE_CONTROLS
    channels = feature_count(source, _latent_shape(job)[0]) if reads_latents else site.channels
    count = max(1, limit // (site.tokens * channels * 2 * len(job.samples)))
    return [list(steps[i : i + count]) for i in range(0, len(steps), count)]


def _inputs(job: ProbeJob, variant: str, site: SiteSpec, steps: Sequence[int], source: str) -> np.ndarray:
    """Return what the probes read, float16 (S, N, T, C); C is 0 for position alone."""
    samples = list(job.samples)
    if source == POSITION:
        return np.empty((len(steps), len(samples), site.tokens, 0), np.float16)
    if source:
        return np.stack([_surface(job, variant, site, step, source) for step in steps])
    acts = np.empty((len(steps), len(samples), site.tokens, site.channels), np.float16)
    _open(job.activations or job.output).read_activations_into(variant, site.name, steps, samples, acts)
    return acts


def _surface(job: ProbeJob, variant: str, site: SiteSpec, step: int, control: str) -> np.ndarray:
    """Return what a surface control reads at one step, float16 (N, T, C)."""
    from probing.probes.surface import latent_features, picture_features

    size, samples = (site.height, site.width), list(job.samples)
    if control == PICTURE:
        points = _open(job.decoded).read_activations(variant, PICTURE_SITE, step, samples)
        _, height, width = _latent_shape(job)
        return picture_features(points, (height, width), size)
    return latent_features(*_open(job.output).read_latents(variant, step, samples), size, control)


def _latent_shape(job: ProbeJob) -> tuple[int, ...]:
    """Return channels, height and width of the latents. Raises ValueError if none were recorded."""
    shape = _open(job.output).layout.latent
    if not shape:
        raise ValueError(
            f"{job.output} holds no latents, which surface controls read; "
            f"leave {', '.join(SURFACE_CONTROLS)} out of sweep.controls, or sample into another output"
        )
    return shape


def write_results(job: ProbeJob, variant: str, results: Sequence[tuple[SiteSpec, ProbeResult]]) -> None:
    """Write probe weights first, then images and epochs, and last the rows that mark the probes as done.

    results: each with the site that it is of."""
    store = _open(job.output)
    rows: list[dict[str, object]] = []
    files: list[str] = []
    images: list[dict[str, object]] = []
    epochs: list[dict[str, object]] = []
    for site, result in results:
        common = {
            "experiment": job.experiment,
            "variant": variant,
            "site": site.name,
            "attempt": job.attempt,
            "stage_hash": job.stage_hash,
        }
        if result.ok:
            files.append(_save_weights(store, job.folder, variant, site.name, result))
        rows.append({**common, "block": site.block, "index": site.index, **result.row})
        # A fit counts the job's samples from 0; the table has their numbers in the run.
        images += [{**common, **row, "sample": job.samples[cast(int, row["sample"])]} for row in result.images]
        epochs += [{**common, **row} for row in result.epochs]
    files += [store.append(table, written) for table, written in (("images", images), ("epochs", epochs)) if written]
    if rows:
        store.append("probes", rows, files)


def _save_weights(store: Store, folder: str, variant: str, site: str, result: ProbeResult) -> str:
    from safetensors.numpy import save

    spec = result.spec
    tensors = {"weight": np.ascontiguousarray(result.weights)}
    if result.hidden is not None:
        tensors["hidden"] = np.ascontiguousarray(result.hidden)
    path = folder + storage.probe_path(variant, site, spec.step, spec.task, spec.control, spec.seed)
    store.put(path, save(tensors, {"scale": repr(result.scale)}))
    return path
