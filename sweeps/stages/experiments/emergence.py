"""The emergence experiment: what the labellers see in the image decoded after each step (figures 4 and 10)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

import storage
from probing.diffusion import model
from probing.labelling import registry as labellers
from sweeps.config.schema import Config
from sweeps.runtime.layout import EMERGENCE, EMERGENCE_FOLDER, LATENT_KINDS, VARIANT
from sweeps.runtime.run import Run
from sweeps.stages import curate, probe
from sweeps.stages.experiments import registry as experiments

TASKS = ("saliency", "depth")


@dataclass(frozen=True, order=True)
class EmergenceTask:
    """One test image at the steps of the experiment."""

    sample: int

    @property
    def key(self) -> str:
        """Readable name, also in Ray's dashboard."""
        return f"{EMERGENCE}/{self.sample:05d}"


@dataclass(frozen=True)
class Shared:
    """What the workers need; small and picklable."""

    config: Config
    stage_hash: str
    depth_mean: float
    depth_deviation: float
    shown: tuple[int, ...]
    steps: tuple[int, ...]
    attempt: int


def site(kind: str) -> str:
    """What stands in the column `site` of a labeller's rows."""
    return f"labeller.{kind}"


def pictures_path(sample: int) -> str:
    """Where a sample's pictures are kept."""
    return f"{EMERGENCE_FOLDER}/{sample:05d}.safetensors"


class EmergenceWorker:
    """Holds decoder and labellers; treats one image a call."""

    def __init__(self, shared: Shared) -> None:
        self.shared, config = shared, shared.config
        self.store = storage.open(config.output)
        self.model = model.load(config.model)
        self.labellers = {
            task: labellers.build(
                task, getattr(config.labels, task), getattr(config.labels, f"{task}_weights"), self.model.device
            )
            for task in TASKS
        }

    def __call__(self, task: EmergenceTask) -> dict[str, Any]:
        final = {name: self.store.read_labels(name, [task.sample])[0] for name in TASKS}
        rows: list[dict[str, Any]] = []
        kept = {"steps": np.array(self.shared.steps)}
        for kind in LATENT_KINDS:
            images = self._decoded(task.sample, kind)
            labels = {name: labeller(images) for name, labeller in self.labellers.items()}
            kept |= {f"{kind}.image": images, f"{kind}.saliency": labels["saliency"]}
            kept[f"{kind}.depth"] = labels["depth"].astype(np.float16)
            rows += self._rows(task.sample, kind, labels, final)
        if task.sample in self.shared.shown:
            whole = {name: np.ascontiguousarray(values) for name, values in kept.items()}
            self.store.put(pictures_path(task.sample), save(whole))
        self.store.append("images", rows)
        return {"images": len(LATENT_KINDS) * len(self.shared.steps)}

    def _decoded(self, sample: int, kind: str) -> np.ndarray:
        """uint8 (steps, H, W, 3)."""
        which = LATENT_KINDS.index(kind)
        found = [self.store.read_latents(VARIANT, step, [sample])[which][0] for step in self.shared.steps]
        return self.model.decode(torch.from_numpy(np.stack(found)).to(self.model.device)).numpy()

    def _rows(
        self, sample: int, kind: str, labels: dict[str, np.ndarray], final: dict[str, np.ndarray]
    ) -> Iterator[dict[str, Any]]:
        shared = self.shared
        threshold = shared.config.labels.threshold
        same = {
            "experiment": EMERGENCE, "variant": VARIANT, "site": site(kind), "control": "none", "seed": 0,
            "sample": sample, "attempt": shared.attempt, "stage_hash": shared.stage_hash,
        }  # fmt: skip
        dice = mask_dice(labels["saliency"] > threshold, final["saliency"] > threshold)
        scale = [(maps - shared.depth_mean) / shared.depth_deviation for maps in (labels["depth"], final["depth"])]
        rmse = depth_rmse(*scale)
        for i, step in enumerate(shared.steps):
            yield {**same, "step": step, "task": "saliency", "dice": float(dice[i])}
            yield {**same, "step": step, "task": "depth", "rmse": float(rmse[i])}


def mask_dice(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Dice (S) of masks (S, H, W) against one mask (H, W); two empty masks agree."""
    both = (found & truth).sum((1, 2))
    return (2 * both + 1e-8) / (found.sum((1, 2)) + truth.sum() + 1e-8)


def depth_rmse(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Root mean squared error (S) of maps (S, H, W) against one map (H, W)."""
    return np.sqrt(np.square(found.astype(np.float64) - truth).mean((1, 2)))


def samples(run: Run) -> list[int]:
    """The test images that are looked at: the first ones in order of sampling."""
    chosen, split = curate.kept(run)
    test = chosen[split.test].tolist()
    count = run.config.experiments.emergence_images
    return test[:count] if count else test


def missing(run: Run) -> list[EmergenceTask]:
    """Test images without rows of the present settings; an image's rows are written together."""
    if not experiments.wanted(run, EMERGENCE) or not curate.done(run):
        return []
    table = run.store.table("images", experiments.stage_hash(run, EMERGENCE))
    have = set(zip(table["sample"].to_pylist(), table["step"].to_pylist(), strict=True))
    steps = experiments.steps(run, EMERGENCE)
    return [task for task in tasks(run) if any((task.sample, step) not in have for step in steps)]


def tasks(run: Run) -> list[EmergenceTask]:
    """All tasks of the configuration."""
    return [EmergenceTask(i) for i in samples(run)] if experiments.wanted(run, EMERGENCE) else []


def worker(run: Run) -> Callable[[], EmergenceWorker]:
    """Makes the worker in its own process."""
    chosen, split = curate.kept(run)
    mean, deviation = probe.standardisation(run, chosen, split.train)
    attempts = run.store.table("images", current=False)["attempt"].to_pylist()
    shared = Shared(
        run.config,
        experiments.stage_hash(run, EMERGENCE),
        mean,
        deviation,
        tuple(samples(run)[: run.config.experiments.emergence_shown]),
        tuple(experiments.steps(run, EMERGENCE)),
        1 + max((a for a in attempts if a is not None), default=0),
    )
    return partial(EmergenceWorker, shared)
