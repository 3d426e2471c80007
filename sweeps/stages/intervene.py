"""The intervention stage: every (test image, task, edit) with its controls, one row per move."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import storage
from cluster import Executor, Observer, WorkerSpec
from cluster import Outcome as Ended
from interventions.config import choose_sites
from interventions.labelling import build_labelling
from interventions.pictures import pack, picture_path, recipe_path
from interventions.plan import EditTask, plan
from interventions.sources.authors import theirs_first
from interventions.sources.stored import Stored
from interventions.worker import Intervener, NothingToMoveError
from probing.diffusion import model as models
from sweeps.config.schema import Config
from sweeps.runtime.run import Run
from sweeps.stages import curate, probe

STAGE = "intervene"
ENDED = ("done", "skipped")
"""status of rows that are not made again; a skipped task had no object to move, and no report counts its row"""


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
        self.shared = shared
        self.store = storage.open(shared.config.output)
        self.intervener = intervener(shared)

    def __call__(self, task: EditTask) -> dict[str, Any]:
        try:
            outcome = self.intervener(task)
        except NothingToMoveError as reason:
            self.store.append("interventions", [self._skipped(task, str(reason))])
            return {"rows": 1}
        if task.sample in self.shared.shown:
            self.store.put(picture_path(task.key), pack(outcome.pictures))
            if outcome.pictures.recipe:
                self.store.put(recipe_path(task.key), outcome.pictures.recipe.encode())
        self.store.append("interventions", outcome.rows)
        return {"rows": len(outcome.rows)}

    def _skipped(self, task: EditTask, reason: str) -> dict[str, Any]:
        same = {**self.intervener.common, **self.intervener.columns(task)}
        return {**same, "trial": -1, "control": "edit", "status": "skipped", "error": reason}


def intervener(shared: Shared) -> Intervener:
    """The model with the run's own probes, labels and standardisation."""
    config = shared.config
    model = models.load(config.model)
    stored = Stored(storage.open(config.output), shared.train)
    sources, theirs = stored.sources, config.interventions.probes
    if theirs:
        sources = replace(sources, probe=theirs_first(theirs, stored.probe))
    return Intervener(
        model,
        config.interventions,
        sources,
        stored.original,
        build_labelling(config.labels, shared.depth_mean, shared.depth_deviation, model.device),
        config.sampling.guidance,
        {"stage_hash": shared.stage_hash, "attempt": shared.attempt},
        {"model": f"{config.model.name}@{models.revision(config.model)}", "probes": theirs or config.output},
    )


def shared_by(run: Run) -> Shared:
    """What the workers of a run share. Raises ValueError where samples are not curated yet."""
    samples, split = curate.kept(run)
    mean, deviation = probe.standardisation(run, samples, split.train)
    attempts = run.store.table("interventions", current=False)["attempt"].to_pylist()
    return Shared(
        run.config,
        run.hashes.intervene,
        tuple(samples[split.train].tolist()),
        mean,
        deviation,
        tuple(samples[split.test].tolist()[: run.config.interventions.keep_images]),
        1 + max((a for a in attempts if a is not None), default=0),
    )


def tasks(run: Run) -> list[EditTask]:
    """All tasks of the configuration, over the test split."""
    samples, split = curate.kept(run)
    config = run.config
    return plan(config.interventions, samples[split.test].tolist(), _test_list(run), config.sampling.guidance)


def _test_list(run: Run) -> list[int]:
    """All samples of the prompts' own test list, those that curation drops too; empty where prompts bring no split."""
    told = json.loads(run.store.get("prompts.json"))
    return [sample for sample, prompt in enumerate(told) if prompt["split"] == "test"]


def _name(run: Run, task: EditTask) -> tuple[Any, ...]:
    sites = ",".join(site.name for site in choose_sites(run.sites, task.spec.sites))
    steps = ",".join(map(str, task.spec.steps))
    scale = _guidance(run) if task.guidance is None else task.guidance
    return (task.experiment, task.sample, task.task, sites, steps, task.spec.iterations, scale)


def _guidance(run: Run) -> float:
    """Guidance of the main edit."""
    given = run.config.interventions.guidance
    return run.config.sampling.guidance if given is None else given


def missing(run: Run) -> list[EditTask]:
    """Tasks without finished rows of the present settings; a task's rows are written together."""
    if not curate.done(run):
        return []
    have = {tuple(key) for *key, status, _ in _ended(run) if status in ENDED}
    return [task for task in tasks(run) if _name(run, task) not in have]


def _ended(run: Run) -> Iterator[tuple[Any, ...]]:
    """(experiment, sample, task, sites, steps, iterations, guidance, status, error) of each row of the present
    settings; rows that do not tell their guidance have the main edit's."""
    table, main = run.store.table("interventions", run.hashes.intervene), _guidance(run)
    names = ("experiment", "sample", "task", "sites", "steps", "iterations", "guidance", "status", "error")
    columns = {name: table[name].to_pylist() for name in names}
    columns["guidance"] = [main if scale is None else scale for scale in columns["guidance"]]
    return zip(*columns.values(), strict=True)


def failures(run: Run, left: Sequence[EditTask]) -> dict[str, str]:
    """Key to reason of those among the tasks left that were tried and failed."""
    reasons = {tuple(key): error for *key, status, error in _ended(run) if status == "failed"}
    named = {task.key: _name(run, task) for task in left}
    return {f"{STAGE}/{key}": reasons[name] or "no reason was kept" for key, name in named.items() if name in reasons}


def work(run: Run, executor: Executor, observers: Sequence[Observer], wanted: Sequence[EditTask]) -> Ended:
    """Carries out the given tasks; one that fails for good becomes a row with its error."""
    config, shared = run.config, shared_by(run)
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
    experiment, sample, name, sites, steps, iterations, scale = _name(run, task)
    return {
        "experiment": experiment, "sample": sample, "task": name, "sites": sites, "steps": steps,
        "iterations": iterations, "guidance": scale, "trial": -1, "control": "edit", "status": "failed",
        "error": reason, "stage_hash": shared.stage_hash, "attempt": shared.attempt,
    }  # fmt: skip
