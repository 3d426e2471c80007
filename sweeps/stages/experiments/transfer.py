"""The transfer experiment: at chosen sites, each step's probes applied to the activations of all steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from safetensors.numpy import load

import storage
from probing.diffusion.sites import SiteSpec
from probing.probes.transfer import transfer
from sweeps.runtime.grid import Cell, finished
from sweeps.runtime.layout import VARIANT, transfer_control
from sweeps.runtime.run import Run
from sweeps.stages import probe
from sweeps.stages.experiments import registry
from sweeps.stages.probe_trial import ProbeJob, labels_of

NAME = "transfer"


@dataclass(frozen=True, order=True)
class TransferTask:
    """All probes of one site and task."""

    site: str
    task: str

    @property
    def key(self) -> str:
        """Readable name, also in Ray's dashboard."""
        return f"{NAME}/{self.site}/{self.task}"


class TransferWorker:
    """Reads a site's activations and probes; writes the matrix as rows of results/probes."""

    def __init__(self, job: ProbeJob, steps: Sequence[int]) -> None:
        self.job, self.steps = job, tuple(steps)
        self.store = storage.open(job.output)

    def __call__(self, task: TransferTask) -> dict[str, Any]:
        job, site = self.job, self.job.site(task.site)
        test = job.split.test
        samples = [job.samples[i] for i in test.tolist()]
        acts = [self.store.read_activations(VARIANT, site.name, s, samples) for s in self.steps]
        weights = [self._weights(task, step) for step in self.steps]
        scores = transfer(weights, acts, labels_of(job, site)[task.task], test)
        self.store.append("probes", list(self._rows(task, site, scores)))
        return {"probes": len(weights)}

    def _weights(self, task: TransferTask, step: int) -> np.ndarray:
        path = storage.probe_path(VARIANT, task.site, step, task.task, "none", 0)
        found = load(self.store.get(path))
        if "hidden" in found:
            raise ValueError(f"{path}: has a hidden layer, so no one direction; transfer needs probe.hidden=0")
        return found["weight"]

    def _rows(self, task: TransferTask, site: SiteSpec, scores: dict) -> Iterator[dict[str, Any]]:
        job = self.job
        same = {
            "experiment": NAME, "variant": VARIANT, "site": site.name, "task": task.task, "seed": 0,
            "block": site.block, "index": int(site.name.rsplit(".", 1)[1]), "tokens": site.tokens,
            "channels": site.channels, "n_test": len(job.split.test), "status": "done",
            "attempt": job.attempt, "stage_hash": job.stage_hash,
        }  # fmt: skip
        for i, origin in enumerate(self.steps):
            for j, step in enumerate(self.steps):
                values = {name: float(matrix[i, j]) for name, matrix in scores.items()}
                yield {**same, "step": step, "control": transfer_control(origin), **values}


def _seeds_allow(run: Run) -> bool:
    sweep = run.config.sweep
    return 0 in sweep.seeds and "none" in sweep.controls


def missing(run: Run) -> list[TransferTask]:
    """Sites and tasks whose matrix is not complete."""
    wanted = tasks(run)
    if not wanted:
        return []
    have = finished(run.store, NAME, registry.stage_hash(run, NAME))
    steps = sorted(set(run.config.sweep.steps))
    return [
        one
        for one in wanted
        if any(
            Cell(VARIANT, one.site, step, one.task, transfer_control(start)) not in have
            for step in steps
            for start in steps
        )
    ]


def tasks(run: Run) -> list[TransferTask]:
    """All tasks of the configuration."""
    if not registry.wanted(run, NAME) or not _seeds_allow(run):
        return []
    return [TransferTask(site.name, task) for site in registry.sites(run, NAME) for task in run.config.sweep.tasks]


def worker(run: Run) -> Callable[[], TransferWorker]:
    """Makes the worker in its own process."""
    job = probe.experiment_job(run, probe.job(run), NAME)
    return partial(TransferWorker, job, sorted(set(run.config.sweep.steps)))
