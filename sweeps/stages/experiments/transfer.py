"""The transfer experiment: at chosen sites, each step's probes applied to the activations of all steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
from safetensors.numpy import load

import storage
from probing.diffusion.sites import SiteSpec
from sweeps.config.schema import Config
from sweeps.runtime import experiments
from sweeps.runtime.grid import ProbeSpec
from sweeps.runtime.layout import TRAINED, transfer_control
from sweeps.runtime.run import Run
from sweeps.stages import probe
from sweeps.stages.base import PlanInput, StagePrice
from sweeps.stages.probe_trial import ProbeJob, site_targets

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

    def __call__(self, task: TransferTask) -> dict[str, int]:
        from probing.probes.transfer import transfer

        job, site = self.job, self.job.site(task.site)
        test = job.split.test
        samples = [job.samples[i] for i in test.tolist()]
        acts = [self.store.read_activations(TRAINED, site.name, s, samples) for s in self.steps]
        weights = [self._weights(task, step) for step in self.steps]
        scores = transfer(weights, acts, site_targets(job, site)[task.task], test)
        self.store.append("probes", list(self._rows(task, site, scores)))
        return {"probes": len(weights)}

    def _weights(self, task: TransferTask, step: int) -> np.ndarray:
        path = storage.probe_path(TRAINED, task.site, step, task.task, "none", 0)
        tensors = load(self.store.get(path))
        if "hidden" in tensors:
            raise ValueError(
                f"{path}: has a hidden layer and therefore no single direction; transfer needs probe.hidden=0"
            )
        return tensors["weight"]

    def _rows(self, task: TransferTask, site: SiteSpec, scores: dict) -> Iterator[dict[str, object]]:
        job = self.job
        common = {
            "experiment": NAME, "variant": TRAINED, "site": site.name, "task": task.task, "seed": 0,
            "block": site.block, "index": site.index, "tokens": site.tokens,
            "channels": site.channels, "n_test": len(job.split.test), "status": "done",
            "attempt": job.attempt, "stage_hash": job.stage_hash,
        }  # fmt: skip
        for i, start in enumerate(self.steps):
            for j, step in enumerate(self.steps):
                values = {name: float(matrix[i, j]) for name, matrix in scores.items()}
                yield {**common, "step": step, "control": transfer_control(start), **values}


def _has_probes(config: Config) -> bool:
    """Return whether the grid fits the probes that are transferred: seed 0 without a control."""
    return 0 in config.sweep.seeds and "none" in config.sweep.controls


def read_probes(run: Run) -> list[ProbeSpec]:
    """Return the probes of the grid that are applied at other steps."""
    steps = sorted(set(run.config.sweep.steps))
    return [ProbeSpec(TRAINED, task.site, step, task.task) for task in tasks(run) for step in steps]


def tasks(run: Run) -> list[TransferTask]:
    """Return all tasks of the configuration."""
    if not experiments.requested(run.config, NAME) or not _has_probes(run.config):
        return []
    sites = experiments.sites(run.config, run.model_info, NAME)
    return [TransferTask(site.name, task) for site in sites for task in run.config.sweep.tasks]


def missing(run: Run) -> list[TransferTask]:
    """Return sites and tasks whose matrix is not complete."""

    def probes(task: TransferTask) -> list[ProbeSpec]:
        pairs = product(run.config.sweep.steps, repeat=2)
        return [
            ProbeSpec(TRAINED, task.site, step, task.task, transfer_control(start), experiment=NAME)
            for start, step in pairs
        ]

    return experiments.unfinished(run, NAME, tasks(run), probes)


def worker(run: Run) -> Callable[[], TransferWorker]:
    """Return a factory of the worker."""
    job = probe.experiment_job(run, probe.job(run), NAME)
    return partial(TransferWorker, job, sorted(set(run.config.sweep.steps)))


def prices(plan: PlanInput) -> list[StagePrice]:
    """Return the number of scores of probes at other steps."""
    sweep = plan.config.sweep
    if not experiments.requested(plan.config, NAME) or not _has_probes(plan.config):
        return []
    sites, steps = experiments.sites(plan.config, plan.model_info, NAME), len(set(sweep.steps))
    scores = len(sites) * len(sweep.tasks) * steps**2
    return [StagePrice("transfer", f"{scores} scores of probes at other steps")]
