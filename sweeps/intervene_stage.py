"""The intervention stage: every (test image, task, edit) with its controls, one row per move."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from safetensors.numpy import load, save

import storage
from cluster import Executor, Observer, WorkerSpec
from cluster import Outcome as Ended
from interventions.config import choose_sites
from interventions.sources import ProbeKey, Sources
from interventions.worker import EditTask, Intervener, Labelling, Original, Outcome, plan
from probing import labellers
from probing import model as models
from sweeps import curate_stage, probe_stage
from sweeps.config import Config
from sweeps.run import Run

STAGE = "intervene"
VECTOR_SAMPLES = 16
"""training samples whose tokens tell what is normal at a site"""


@dataclass(frozen=True)
class Shared:
    """What the workers of the stage need; small and picklable."""

    config: Config
    stage_hash: str
    train: tuple[int, ...]
    depth_mean: float
    depth_deviation: float
    shown: tuple[int, ...]
    """samples whose edited pictures are kept"""
    attempt: int


class InterveneWorker:
    """Holds the model, the labellers and the probes; edits one image a call."""

    def __init__(self, shared: Shared) -> None:
        self.shared, config = shared, shared.config
        self.store = storage.open(config.output)
        model = models.load(config.model)
        table = self.store.samples().to_pydict()
        self.prompts, self.seeds = table["prompt"], table["seed"]
        named = {
            task: labellers.build(
                task, getattr(config.labels, task), getattr(config.labels, f"{task}_weights"), model.device
            )
            for task in ("saliency", "depth")
        }
        self.intervener = Intervener(
            model,
            config.interventions,
            Sources(self._probe, self._vectors),
            self._original,
            Labelling(
                named["saliency"], named["depth"], config.labels.threshold,
                shared.depth_mean, shared.depth_deviation,
            ),
            config.sampling.guidance,
            {"stage_hash": shared.stage_hash, "attempt": shared.attempt},
        )  # fmt: skip

    def _probe(self, key: ProbeKey) -> np.ndarray:
        path = storage.probe_path(key.variant, key.site, key.step, key.task, key.control, 0)
        if not self.store.exists(path):
            raise ValueError(f"probe {path} is missing; fit it first (sweep.controls, sweep.steps)")
        return load(self.store.get(path))["weight"]

    def _vectors(self, site: str, step: int) -> np.ndarray:
        samples = list(self.shared.train[:VECTOR_SAMPLES])
        acts = self.store.read_activations("trained", site, step, samples)
        return acts.reshape(-1, acts.shape[-1])

    def _original(self, sample: int) -> Original:
        saliency, depth = (self.store.read_labels(task, [sample])[0] for task in ("saliency", "depth"))
        image = self.store.read_images("trained", [sample])[0]
        return Original(self.prompts[sample], self.seeds[sample], image, saliency, depth)

    def __call__(self, task: EditTask) -> dict[str, Any]:
        outcome = self.intervener(task)
        if task.sample in self.shared.shown:
            self.store.put(pictures_path(task), _packed(outcome))
        self.store.append(
            "interventions",
            [{**row, **extra} for row, extra in zip(outcome.rows, outcome.extra, strict=True)],
        )
        return {"rows": len(outcome.rows)}


def pictures_path(task: EditTask) -> str:
    """Where the pictures of a task are kept."""
    return f"interventions/{task.key}.safetensors"


def _packed(outcome: Outcome) -> bytes:
    shown = outcome.pictures
    rows = [[row.trial, row.control] for row in shown.rows]
    moves = [[getattr(goal, "dx", 0), getattr(goal, "dy", 0)] for goal in shown.goals]
    tensors = {
        "images": shown.images,
        "labels": shown.labels.astype(np.float32),
        "before": shown.before,
        "label_before": shown.label_before.astype(np.float32),
        "targets": shown.targets.astype(np.float32),
    }
    whole = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    return save(whole, {"rows": json.dumps(rows), "moves": json.dumps(moves)})


def tasks(run: Run) -> list[EditTask]:
    """All tasks of the configuration, over the test split."""
    samples, split = curate_stage.kept(run)
    return plan(run.config.interventions, samples[split.test].tolist())


def _name(run: Run, task: EditTask) -> tuple[Any, ...]:
    sites = ",".join(site.name for site in choose_sites(run.sites, task.spec.sites))
    steps = ",".join(map(str, task.spec.steps))
    return (task.experiment, task.sample, task.task, sites, steps, task.spec.iterations)


def missing(run: Run) -> list[EditTask]:
    """Tasks without finished rows of the present settings; a task's rows are written together."""
    if not curate_stage.done(run):
        return []
    table = run.store.table("interventions", run.hashes.intervene)
    names = ("experiment", "sample", "task", "sites", "steps", "iterations", "status")
    columns = [table[name].to_pylist() for name in names]
    have = {tuple(key) for *key, status in zip(*columns, strict=True) if status == "done"}
    return [task for task in tasks(run) if _name(run, task) not in have]


def work(run: Run, executor: Executor, observers: Sequence[Observer], wanted: Sequence[EditTask]) -> Ended:
    """Carries out the given tasks; one that fails for good becomes a row with its error."""
    config = run.config
    samples, split = curate_stage.kept(run)
    mean, deviation = probe_stage.standardisation(run, samples, split.train)
    attempts = run.store.table("interventions", current=False)["attempt"].to_pylist()
    shared = Shared(
        config,
        run.hashes.intervene,
        tuple(samples[split.train].tolist()),
        mean,
        deviation,
        tuple(samples[split.test].tolist()[: config.interventions.keep_images]),
        1 + max((a for a in attempts if a is not None), default=0),
    )
    spec = WorkerSpec(
        factory=partial(InterveneWorker, shared),
        num_cpus=config.sampling.threads,
        num_gpus=config.ray.sampling_gpus,
        threads=config.sampling.threads,
        count=config.ray.sampling_actors or None,
        name=STAGE,
    )
    outcome = executor.run(wanted, spec, observers)
    broken = [task for task in wanted if task.key in outcome.failed]
    if broken:
        run.store.append("interventions", [_failed(run, shared, t, outcome.failed[t.key]) for t in broken])
    return outcome


def _failed(run: Run, shared: Shared, task: EditTask, reason: str) -> dict[str, Any]:
    experiment, sample, name, sites, steps, iterations = _name(run, task)
    return {
        "experiment": experiment, "sample": sample, "task": name, "sites": sites, "steps": steps,
        "iterations": iterations, "trial": -1, "control": "edit", "status": "failed", "error": reason,
        "stage_hash": shared.stage_hash, "attempt": shared.attempt,
    }  # fmt: skip
