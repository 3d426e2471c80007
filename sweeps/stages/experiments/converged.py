"""The converged experiment: what a linear probe reaches that no optimiser's budget holds back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import storage
from probing.diffusion.model import pick_device
from probing.probes.converged import fit_converged
from sweeps.runtime.grid import Cell, finished
from sweeps.runtime.layout import VARIANT
from sweeps.runtime.run import Run
from sweeps.stages import probe
from sweeps.stages.experiments import registry
from sweeps.stages.probe_trial import ProbeJob, labels_of, write_results

NAME = "converged"


@dataclass(frozen=True, order=True)
class ConvergedTask:
    """The references of one site and step, for all tasks."""

    site: str
    step: int

    @property
    def key(self) -> str:
        """Readable name, also in Ray's dashboard."""
        return f"{NAME}/{self.site}/{self.step:02d}"


class ConvergedWorker:
    """Reads a site's activations; solves for its references and writes them as rows of results/probes."""

    def __init__(self, job: ProbeJob, tasks: tuple[str, ...]) -> None:
        self.job, self.tasks = job, tasks
        self.store = storage.open(job.output)

    def __call__(self, task: ConvergedTask) -> dict[str, Any]:
        job, site = self.job, self.job.site(task.site)
        acts = self.store.read_activations(VARIANT, site.name, task.step, list(job.samples))
        labels = labels_of(job, site)
        targets = {name: labels[name] for name in self.tasks}
        results = fit_converged(
            acts[None], [task.step], (site.height, site.width), targets, job.split, job.probe.bias,
            pick_device(job.device),
        )  # fmt: skip
        write_results(job, VARIANT, site, results)
        return {"probes": len(results)}


def tasks(run: Run) -> list[ConvergedTask]:
    """All tasks of the configuration."""
    if not registry.wanted(run, NAME):
        return []
    places = [site.name for site in registry.sites(run, NAME)]
    return [ConvergedTask(name, step) for name in places for step in registry.steps(run, NAME)]


def missing(run: Run) -> list[ConvergedTask]:
    """Sites and steps without rows of every task."""
    wanted = tasks(run)
    if not wanted:
        return []
    have = finished(run.store, NAME, registry.stage_hash(run, NAME))
    return [
        one
        for one in wanted
        if any(Cell(VARIANT, one.site, one.step, task) not in have for task in run.config.sweep.tasks)
    ]


def worker(run: Run) -> Callable[[], ConvergedWorker]:
    """Makes the worker in its own process."""
    job = probe.experiment_job(run, probe.job(run), NAME)
    return partial(ConvergedWorker, job, tuple(run.config.sweep.tasks))
