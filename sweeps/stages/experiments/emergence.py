"""The emergence experiment: what the labellers see in the image decoded after each step (figures 4 and 10)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

import storage
from interventions.score import agreement
from sweeps.config.schema import Config
from sweeps.runtime import experiments
from sweeps.runtime.layout import EMERGENCE, EMERGENCE_FOLDER, LATENT_KINDS, TRAINED
from sweeps.runtime.run import Run
from sweeps.stages import curate, probe
from sweeps.stages.base import PlanInput, StagePrice, load_model, next_attempt

NAME = EMERGENCE
TASKS = ("saliency", "depth")


@dataclass(frozen=True, order=True)
class EmergenceTask:
    """One test image at all steps of the experiment."""

    sample: int

    @property
    def key(self) -> str:
        """Readable name, also in Ray's dashboard."""
        return f"{NAME}/{self.sample:05d}"


@dataclass(frozen=True)
class EmergenceJob:
    """What the workers need; small and picklable."""

    config: Config
    stage_hash: str
    depth_mean: float
    depth_std: float
    shown: tuple[int, ...]
    """samples whose images are kept"""
    steps: tuple[int, ...]
    attempt: int


def site(kind: str) -> str:
    """Return the value of the column `site` in a labeller's rows."""
    return f"labeller.{kind}"


def pictures_path(sample: int) -> str:
    """Return the path of a sample's images in the store."""
    return f"{EMERGENCE_FOLDER}/{sample:05d}.safetensors"


class EmergenceWorker:
    """Holds decoder and labellers; decodes and labels one sample's steps per call."""

    def __init__(self, job: EmergenceJob) -> None:
        from probing.labelling import registry

        self.job, config = job, job.config
        self.store = storage.open(config.output)
        self.model = load_model(config)
        self.labellers = {
            task: registry.build(
                task, getattr(config.labels, task), getattr(config.labels, f"{task}_weights"), self.model.device
            )
            for task in TASKS
        }

    def __call__(self, task: EmergenceTask) -> dict[str, int]:
        from safetensors.numpy import save

        final = {name: self.store.read_labels(name, [task.sample])[0] for name in TASKS}
        rows: list[dict[str, object]] = []
        pictures = {"steps": np.array(self.job.steps)}
        for kind in LATENT_KINDS:
            images = self._decode(task.sample, kind)
            labels = {name: labeller(images) for name, labeller in self.labellers.items()}
            pictures |= {f"{kind}.image": images, f"{kind}.saliency": labels["saliency"]}
            pictures[f"{kind}.depth"] = labels["depth"].astype(np.float16)
            rows += self._rows(task.sample, kind, labels, final)
        shown = [pictures_path(task.sample)] if task.sample in self.job.shown else []
        for path in shown:
            tensors = {name: np.ascontiguousarray(values) for name, values in pictures.items()}
            self.store.put(path, save(tensors))
        self.store.append("images", rows, shown)
        return {"images": len(LATENT_KINDS) * len(self.job.steps)}

    def _decode(self, sample: int, kind: str) -> np.ndarray:
        """Return the decoded images of all steps, uint8 (steps, H, W, 3)."""
        import torch

        which = LATENT_KINDS.index(kind)
        latents = [self.store.read_latents(TRAINED, step, [sample])[which][0] for step in self.job.steps]
        return self.model.decode(torch.from_numpy(np.stack(latents)).to(self.model.device)).numpy()

    def _rows(
        self, sample: int, kind: str, labels: Mapping[str, np.ndarray], final: Mapping[str, np.ndarray]
    ) -> Iterator[dict[str, object]]:
        job = self.job
        common = {
            "experiment": NAME,
            "variant": TRAINED,
            "site": site(kind),
            "control": "none",
            "seed": 0,
            "sample": sample,
            "attempt": job.attempt,
            "stage_hash": job.stage_hash,
        }
        masks, final_mask = (maps["saliency"] > job.config.labels.threshold for maps in (labels, final))
        depth, final_depth = (
            (maps["depth"].astype(np.float64) - job.depth_mean) / job.depth_std for maps in (labels, final)
        )
        for i, step in enumerate(job.steps):
            yield {**common, "step": step, "task": "saliency", "dice": agreement("saliency", masks[i], final_mask)}
            yield {**common, "step": step, "task": "depth", "rmse": agreement("depth", depth[i], final_depth)}


def samples(run: Run) -> list[int]:
    """Return the first test images, as many as the configuration requests."""
    kept, split = curate.kept(run)
    test = kept[split.test].tolist()
    count = run.config.experiments.emergence_images
    return test[:count] if count else test


def tasks(run: Run) -> list[EmergenceTask]:
    """Return all tasks of the configuration. Raises ValueError if the samples are not curated yet."""
    return [EmergenceTask(i) for i in samples(run)] if experiments.requested(run.config, NAME) else []


def missing(run: Run) -> list[EmergenceTask]:
    """Return test images without rows of the current settings; an image's rows are written together."""
    if not experiments.requested(run.config, NAME) or not curate.done(run):
        return []
    table = run.store.table("images", experiments.stage_hash(run, NAME))
    done = set(zip(table["sample"].to_pylist(), table["step"].to_pylist(), strict=True))
    steps = experiments.steps(run.config, NAME)
    return [task for task in tasks(run) if any((task.sample, step) not in done for step in steps)]


def worker(run: Run) -> Callable[[], EmergenceWorker]:
    """Return a factory of the worker."""
    kept, split = curate.kept(run)
    mean, std = probe.standardisation(run, kept, split.train)
    job = EmergenceJob(
        run.config,
        experiments.stage_hash(run, NAME),
        mean,
        std,
        tuple(samples(run)[: run.config.experiments.emergence_shown]),
        tuple(experiments.steps(run.config, NAME)),
        next_attempt(run.store, "images"),
    )
    return partial(EmergenceWorker, job)


def prices(plan: PlanInput) -> list[StagePrice]:
    """Return the number of images that are decoded and labelled."""
    if not experiments.requested(plan.config, NAME):
        return []
    images = min(plan.config.experiments.emergence_images or plan.test, plan.test)
    count = images * len(experiments.steps(plan.config, NAME)) * len(LATENT_KINDS)
    return [StagePrice("emergence", f"{count} images decoded and labelled")]
