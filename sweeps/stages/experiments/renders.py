"""The truth experiment: probes on noised renders, scored against the renderer's own depth and masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from probing.dataset.split import Split
from probing.diffusion.sites import SiteSpec
from probing.scenes.world import TRUTH_SEED
from sweeps.config.schema import Config
from sweeps.runtime import experiments
from sweeps.runtime.grid import ProbeSpec
from sweeps.runtime.layout import TRAINED
from sweeps.runtime.run import Run
from sweeps.stages import probe
from sweeps.stages.base import PlanInput, StagePrice, load_model, next_attempt
from sweeps.stages.probe_trial import ProbeJob, write_results

if TYPE_CHECKING:
    from probing.scoring.targets import Targets

NAME = "truth"
BATCH = 16
"""renders that go through the network together"""


@dataclass(frozen=True, order=True)
class TruthTask:
    """All sites and tasks at one step."""

    step: int

    @property
    def key(self) -> str:
        """Readable name, also in Ray's dashboard."""
        return f"{NAME}/{self.step:02d}"


class TruthWorker:
    """Renders and encodes once; for each step reads the network's activations and fits their probes."""

    def __init__(self, config: Config, job: ProbeJob) -> None:
        from probing.scenes import dataset, truth

        self.config, self.job = config, job
        self.model = load_model(config)
        self.renders = dataset.draw(job.samples, self.model.image_size[0])
        self.clean = truth.clean_latents(self.model, self.renders.images)

    def __call__(self, task: TruthTask) -> dict[str, int]:
        from probing.diffusion.devices import pick_device
        from probing.probes.fit import fit_site
        from probing.probes.results import FitSpec

        activations = self._activations(task.step)
        count = 0
        for site in self.job.sites:
            results = fit_site(
                activations[site.name][None],
                [task.step],
                (site.height, site.width),
                self._targets(site),
                self.job.split,
                [FitSpec(task.step, name) for name in self.config.sweep.tasks],
                self.job.probe,
                pick_device(self.job.device),
            )
            write_results(self.job, TRAINED, [(site, result) for result in results])
            count += len(results)
        return {"probes": count}

    def _activations(self, step: int) -> dict[str, np.ndarray]:
        """Return float16 (N, T, C) by site, of the conditional half, as sampling records them."""
        from probing.diffusion.replay import replay_network
        from probing.scenes import truth

        latents = truth.noised(self.model, self.clean, self.job.samples, step, self.config.sampling.steps)
        parts: dict[str, list[np.ndarray]] = {site.name: [] for site in self.job.sites}

        def keep(site: str, values: np.ndarray) -> None:
            parts[site].append(values)

        for start in range(0, len(latents), BATCH):
            batch = slice(start, start + BATCH)
            captions, sampling = self.renders.captions[batch], self.config.sampling
            condition = self.model.conditions(captions, sampling.guidance, conditional_only=True)
            replay_network(self.model, condition, latents[batch], step, sampling.steps, self.job.sites, keep)
        return {name: np.concatenate(values) for name, values in parts.items()}

    def _targets(self, site: SiteSpec) -> dict[str, Targets]:
        """Return the renderer's masks and depth; depth in standard deviations over the training renders."""
        from probing.scoring.targets import pool_depth, pool_saliency

        grid, depth = (site.height, site.width), self.renders.depths
        train = depth[self.job.split.train].astype(np.float64)
        standard = (depth - train.mean()) / max(train.std(), 1e-6)
        return {
            "saliency": pool_saliency(self.renders.masks, grid, self.job.threshold),
            "depth": pool_depth(standard.astype(np.float32), grid),
        }


def check(config: Config) -> None:
    """Raise ValueError if the model under study does not paint the world that can be rendered."""
    if experiments.requested(config, NAME) and config.prompts.source != "scenes":
        raise ValueError(
            "experiments.names=truth: true depth is known only for renders of the scenes world; "
            "use a scenes preset, or leave truth out"
        )


def tasks(run: Run) -> list[TruthTask]:
    """Return all tasks of the configuration."""
    if not experiments.requested(run.config, NAME):
        return []
    return [TruthTask(step) for step in experiments.steps(run.config, NAME)]


def missing(run: Run) -> list[TruthTask]:
    """Return steps without a row of every site and task."""

    def probes(task: TruthTask) -> list[ProbeSpec]:
        sites, names = experiments.sites(run.config, run.model_info, NAME), run.config.sweep.tasks
        return [ProbeSpec(TRAINED, site.name, task.step, name, experiment=NAME) for site in sites for name in names]

    return experiments.unfinished(run, NAME, tasks(run), probes)


def split_like(split: Split) -> Split:
    """Return a split of renders with as many in each part as the run's own split has images, in order of seeds."""
    parts = [split.train, split.val, split.test]
    return Split(*np.split(np.arange(sum(map(len, parts))), np.cumsum([len(part) for part in parts])[:2]))


def worker(run: Run) -> Callable[[], TruthWorker]:
    """Return a factory of the worker."""
    job = probe.experiment_job(run, probe.job(run), NAME)
    split = split_like(job.split)
    count = sum(len(part) for _, part in split.parts)
    job = replace(
        job,
        sites=experiments.sites(run.config, run.model_info, NAME),
        samples=tuple(range(TRUTH_SEED, TRUTH_SEED + count)),
        split=split,
        attempt=next_attempt(run.store, "probes"),
    )
    return partial(TruthWorker, run.config, job)


def prices(plan: PlanInput) -> list[StagePrice]:
    """Return network calls of the renders, at most as many as there are samples."""
    if not experiments.requested(plan.config, NAME):
        return []
    steps = len(experiments.steps(plan.config, NAME))
    return [StagePrice("truth", f"up to {plan.samples} renders x {steps} steps", 0.5 * plan.samples * steps)]
