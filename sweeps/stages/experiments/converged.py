"""The converged experiment: what a linear probe reaches if no optimiser's budget limits it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import storage
from sweeps.runtime import experiments
from sweeps.runtime.grid import ProbeSpec
from sweeps.runtime.layout import TRAINED
from sweeps.runtime.run import Run
from sweeps.stages import probe
from sweeps.stages.base import PlanInput, StagePrice
from sweeps.stages.probe_trial import ProbeJob, site_targets, write_results

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

    def __call__(self, task: ConvergedTask) -> dict[str, int]:
        from probing.diffusion.devices import pick_device
        from probing.probes.converged import fit_converged

        job, site = self.job, self.job.site(task.site)
        acts = self.store.read_activations(TRAINED, site.name, task.step, list(job.samples))
        labels = site_targets(job, site)
        results = fit_converged(
            acts[None],
            [task.step],
            (site.height, site.width),
            {name: labels[name] for name in self.tasks},
            job.split,
            job.probe.bias,
            pick_device(job.device),
        )
        write_results(job, TRAINED, [(site, result) for result in results])
        return {"probes": len(results)}


def tasks(run: Run) -> list[ConvergedTask]:
    """Return all tasks of the configuration."""
    if not experiments.requested(run.config, NAME):
        return []
    sites, steps = experiments.sites(run.config, run.model_info, NAME), experiments.steps(run.config, NAME)
    return [ConvergedTask(site.name, step) for site in sites for step in steps]


def missing(run: Run) -> list[ConvergedTask]:
    """Return sites and steps without a row of every task."""

    def probes(task: ConvergedTask) -> list[ProbeSpec]:
        return [ProbeSpec(TRAINED, task.site, task.step, name, experiment=NAME) for name in run.config.sweep.tasks]

    return experiments.unfinished(run, NAME, tasks(run), probes)


def worker(run: Run) -> Callable[[], ConvergedWorker]:
    """Return a factory of the worker."""
    job = probe.experiment_job(run, probe.job(run), NAME)
    return partial(ConvergedWorker, job, tuple(run.config.sweep.tasks))


def prices(plan: PlanInput) -> list[StagePrice]:
    """Return nothing: the references take seconds."""
    return []
