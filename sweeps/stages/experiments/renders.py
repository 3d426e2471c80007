"""The truth experiment: probes on noised renders, against the renderer's own depth and masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from probing.dataset.split import Split
from probing.diffusion import model
from probing.diffusion.conditioning import conditions
from probing.diffusion.model import pick_device
from probing.diffusion.replay import replay_unet
from probing.diffusion.sites import SiteSpec
from probing.probes.fit import FitSpec, fit_site
from probing.scenes.world import TRUTH_SEED
from probing.scoring.targets import Targets, pool_depth, pool_saliency
from sweeps.config.schema import STEPS, Config
from sweeps.runtime.grid import Cell, finished
from sweeps.runtime.layout import VARIANT
from sweeps.runtime.run import Run
from sweeps.stages import probe
from sweeps.stages.experiments import registry
from sweeps.stages.probe_trial import ProbeJob, attempt_of, write_results

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
        from probing.scenes import truth

        self.config, self.job = config, job
        self.model = model.load(config.model)
        size = self.model.image_size[0]
        self.truth = truth.draw(len(job.samples), size)
        self.clean = truth.clean_latents(self.model, self.truth.images)

    def __call__(self, task: TruthTask) -> dict[str, Any]:
        found = self._activations(task.step)
        count = 0
        for site in self.job.sites:
            specs = [FitSpec(task.step, name) for name in self.config.sweep.tasks]
            results = fit_site(
                found[site.name][None], [task.step], (site.height, site.width), self._targets(site), self.job.split,
                specs, self.job.probe, pick_device(self.job.device),
            )  # fmt: skip
            write_results(self.job, VARIANT, site, results)
            count += len(results)
        return {"probes": count}

    def _activations(self, step: int) -> dict[str, np.ndarray]:
        """float16 (N, T, C) by site, of the conditional half, as sampling records them."""
        from probing.scenes import truth

        latents = truth.noised(self.model, self.clean, self.truth.seeds, step, STEPS)
        parts: dict[str, list[np.ndarray]] = {site.name: [] for site in self.job.sites}
        for start in range(0, len(latents), BATCH):
            some = slice(start, start + BATCH)
            told = conditions(self.model, self.truth.captions[some], guided=False)
            replay_unet(
                self.model, told, latents[some], step, STEPS, self.job.sites,
                lambda site, values: parts[site].append(values),
            )  # fmt: skip
        return {name: np.concatenate(values) for name, values in parts.items()}

    def _targets(self, site: SiteSpec) -> dict[str, Targets]:
        """The renderer's masks and depth; depth in units of its own spread over the training renders."""
        grid, depth = (site.height, site.width), self.truth.depth
        train = depth[self.job.split.train].astype(np.float64)
        standard = (depth - train.mean()) / max(train.std(), 1e-6)
        return {
            "saliency": pool_saliency(self.truth.masks, grid, self.job.threshold),
            "depth": pool_depth(standard.astype(np.float32), grid),
        }


def check(config: Config) -> None:
    """Raises ValueError where the model under study does not paint the world that can be rendered."""
    if NAME in config.experiments.names and config.prompts.source != "scenes":
        raise ValueError(
            "experiments.names=truth: true depth is known of renders of the scenes world alone; "
            "use a scenes preset, or leave truth out"
        )


def tasks(run: Run) -> list[TruthTask]:
    """All tasks of the configuration."""
    return [TruthTask(step) for step in registry.steps(run, NAME)] if registry.wanted(run, NAME) else []


def missing(run: Run) -> list[TruthTask]:
    """Steps without rows of every site and task."""
    wanted = tasks(run)
    if not wanted:
        return []
    have = finished(run.store, NAME, registry.stage_hash(run, NAME))
    cells = [(site.name, task) for site in registry.sites(run, NAME) for task in run.config.sweep.tasks]
    return [one for one in wanted if any(Cell(VARIANT, site, one.step, task) not in have for site, task in cells)]


def split_of(own: Split) -> Split:
    """As many renders for each part as the run's own split has images, in order of their seeds."""
    parts = [own.train, own.val, own.test]
    return Split(*np.split(np.arange(sum(map(len, parts))), np.cumsum([len(part) for part in parts])[:2]))


def worker(run: Run) -> Callable[[], TruthWorker]:
    """Makes the worker in its own process."""
    job = probe.experiment_job(run, probe.job(run), NAME)
    split = split_of(job.split)
    count = sum(len(part) for _, part in split.parts)
    job = replace(
        job,
        sites=registry.sites(run, NAME),
        samples=tuple(range(TRUTH_SEED, TRUTH_SEED + count)),
        split=split,
        attempt=attempt_of(run.store),
    )
    return partial(TruthWorker, run.config, job)
