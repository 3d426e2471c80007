"""The intervention stage: every (test image, task, edit) with its controls, one row per move (section 5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import storage
from cluster import Executor, Observer, Outcome
from interventions.config import ANIMATION, MAIN, PATCHING, SECOND_OBJECT, InterventionConfig, choose_sites
from interventions.counterfactual import SERIES
from interventions.plan import EditTask, plan, rows_of
from probing.diffusion.sites import whole_kinds
from storage.keys import MANIFEST, PROMPTS
from sweeps.config.schema import Config
from sweeps.runtime import inputs
from sweeps.runtime.live_status import LiveStatus
from sweeps.runtime.run import Run
from sweeps.stages import curate, probe
from sweeps.stages.base import (
    PlanInput,
    StageInfo,
    StagePrice,
    StageStatus,
    StatusRow,
    load_model,
    network_workers,
    next_attempt,
)

if TYPE_CHECKING:
    from interventions.worker import Intervener

INFO = StageInfo("intervene", verb="intervene", doing="intervening", unit="images", cost="intervene")
STAGE = INFO.name
ENDED = ("done", "skipped")
"""status of rows that are not made again; a skipped task had no object to move, and no report counts its row"""
ROW_KEY = (
    "experiment", "sample", "task", "sites", "steps", "iterations", "guidance", "direction", "scale", "gain"
)  # fmt: skip
"""columns that identify a task"""


@dataclass(frozen=True)
class InterveneJob:
    """What the workers of the stage need; small and picklable."""

    config: Config
    stage_hash: str
    train: tuple[int, ...]
    depth_mean: float
    depth_std: float
    shown: tuple[int, ...]
    """samples whose edited images are kept"""
    attempt: int


class InterveneWorker:
    """Holds the model, the labellers and the probes; edits one image per call."""

    def __init__(self, job: InterveneJob) -> None:
        self.job = job
        self.store = storage.open(job.config.output)
        self.intervener = intervener(job)

    def __call__(self, task: EditTask) -> dict[str, int]:
        from interventions.pictures import pack, picture_path, recipe_path
        from interventions.worker import NothingToMoveError

        try:
            outcome = self.intervener(task)
        except NothingToMoveError as reason:
            common = {**self.intervener.common, **self.intervener.columns(task)}
            row = {**common, "trial": -1, "control": "edit", "status": "skipped", "error": str(reason)}
            self.store.append("interventions", [row])
            return {"rows": 1}
        files = {}
        if task.sample in self.job.shown:
            files[picture_path(task.key)] = pack(outcome.pictures)
            if outcome.pictures.recipe:
                files[recipe_path(task.key)] = outcome.pictures.recipe.encode()
        for path, data in files.items():
            self.store.put(path, data)
        self.store.append("interventions", outcome.rows, files)
        return {"rows": len(outcome.rows)}


def intervener(job: InterveneJob) -> Intervener:
    """Return the model with the run's own probes, labels and standardisation."""
    from interventions.labelling import build_labelling
    from interventions.sources.authors import theirs_first
    from interventions.sources.stored import Stored
    from interventions.worker import Intervener
    from probing.diffusion import metadata

    config = job.config
    model = load_model(config)
    inputs.verify(storage.open(config.output), config, STAGE)
    grids = {site.name: (site.height, site.width) for site in model.recordable}
    stored = Stored(storage.open(config.output), job.train, grids, config.labels.threshold, job.depth_std)
    sources, published = stored.sources, config.interventions.probes
    if published:
        sources = replace(sources, probe=theirs_first(published, stored.probe))
    return Intervener(
        model,
        config.interventions,
        sources,
        stored.original,
        build_labelling(config.labels, job.depth_mean, job.depth_std, model.device),
        config.sampling.guidance,
        {"stage_hash": job.stage_hash, "attempt": job.attempt},
        {"model": metadata.identity(config.model), "probes": published or config.output},
        earlier_name=f"{config.model.name}@{metadata.revision(config.model)}",
        steps=config.sampling.steps,
        kinds=whole_kinds(config.sampling.sites),
    )


def job(run: Run) -> InterveneJob:
    """Return what the workers of a run share. Raises ValueError if the samples are not curated yet."""
    samples, split = curate.kept(run)
    mean, std = probe.standardisation(run, samples, split.train)
    return InterveneJob(
        run.config,
        run.hashes.intervene,
        tuple(samples[split.train].tolist()),
        mean,
        std,
        tuple(samples[split.test].tolist()[: run.config.interventions.keep_images]),
        next_attempt(run.store, "interventions"),
    )


def tasks(run: Run) -> list[EditTask]:
    """Return all tasks of the configuration, over the test split."""
    samples, split = curate.kept(run)
    # The authors' moves depend on an image's place in the prompts' own test list, dropped samples included.
    prompts = run.store.read_json(PROMPTS, list, recorded_in=MANIFEST)
    test_list = [sample for sample, prompt in enumerate(prompts) if prompt["split"] == "test"]
    return plan(
        run.config.interventions,
        samples[split.test].tolist(),
        test_list,
        run.config.sampling.guidance,
        run.config.total_steps,
    )


def _main_guidance(config: Config) -> float:
    own = config.interventions.guidance
    return config.sampling.guidance if own is None else own


def _row_key(run: Run, task: EditTask) -> tuple[object, ...]:
    """Return a task's values of the columns ROW_KEY."""
    kinds = whole_kinds(run.config.sampling.sites)
    chosen = choose_sites(run.model_info.recordable, task.spec.sites, kinds=kinds)
    sites = ",".join(site.name for site in chosen)
    steps = ",".join(map(str, task.spec.steps))
    guidance = _main_guidance(run.config) if task.guidance is None else task.guidance
    spec = task.spec
    edit = (spec.direction, spec.scale, spec.gain)
    return (task.experiment, task.sample, task.task, sites, steps, spec.iterations, guidance, *edit)


def _rows(run: Run) -> Iterator[tuple[tuple[object, ...], str, str]]:
    """Yield key, status and error of each row of the current settings.

    Rows of earlier versions hold no guidance: theirs is the main edit's.
    """
    table, main = run.store.table("interventions", run.hashes.intervene), _main_guidance(run.config)
    for row in table.select([*ROW_KEY, "status", "error"]).to_pylist():
        if row["guidance"] is None:
            row["guidance"] = main
        yield tuple(row[name] for name in ROW_KEY), row["status"], row["error"]


def missing(run: Run) -> list[EditTask]:
    """Return tasks without finished rows of the current settings; a task's rows are written together."""
    if not curate.done(run):
        return []
    done = {key for key, status, _ in _rows(run) if status in ENDED}
    return [task for task in tasks(run) if _row_key(run, task) not in done]


def execute(run: Run, executor: Executor, observers: Sequence[Observer], tasks: Sequence[EditTask]) -> Outcome:
    """Run the given tasks; one that fails for good becomes a row with its error."""
    shared = job(run)
    outcome = executor.run(tasks, network_workers(run.config, partial(InterveneWorker, shared), STAGE), observers)
    failed = [
        {
            **dict(zip(ROW_KEY, _row_key(run, task), strict=True)),
            "trial": -1,
            "control": "edit",
            "status": "failed",
            "error": outcome.failed[task.key],
            "stage_hash": shared.stage_hash,
            "attempt": shared.attempt,
        }
        for task in tasks
        if task.key in outcome.failed
    ]
    if failed:
        run.store.append("interventions", failed)
    return outcome


def status(run: Run, live: LiveStatus) -> StageStatus:
    """Return one row; before curation the number of tasks is unknown."""
    if not curate.done(run):
        return StageStatus([StatusRow("intervening")])
    total, left = len(tasks(run)), missing(run)
    reasons = {key: error for key, state, error in _rows(run) if state == "failed"}
    failed = {
        f"{STAGE}/{task.key}": reasons[key] or "no reason was recorded"
        for task in left
        if (key := _row_key(run, task)) in reasons
    }
    unit = "images with their controls"
    return StageStatus([StatusRow("intervening", unit, total - len(left), total, len(failed))], failed)


def image_count(task: EditTask, config: InterventionConfig) -> int:
    """Return the number of images that a task samples: each target's edit with its controls."""
    if task.experiment == PATCHING:
        return 2  # source and target
    if task.spec.iterations == 0:
        return 0
    targets = {SECOND_OBJECT: len(SERIES), ANIMATION: config.frames}.get(task.experiment, config.moves)
    return targets * len(rows_of([0], task.controls))


def edit_count(config: Config, test: int) -> float:
    """Return the number of edits of test images: a main edit with its controls is one, others count by images."""
    settings = config.interventions
    tasks = plan(settings, range(test), total=config.total_steps)
    unit = {task.spec.task: image_count(task, settings) for task in tasks if task.experiment == MAIN}
    return sum(image_count(task, settings) / unit[task.spec.task] for task in tasks if unit[task.spec.task])


def prices(plan_input: PlanInput) -> list[StagePrice]:
    """Return a line for the main interventions and one for each experiment of theirs, with all controls."""
    config = plan_input.config
    settings, sampling = config.interventions, config.sampling.guidance
    images: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for task in plan(settings, range(plan_input.test), guidance=sampling, total=config.total_steps):
        scale = next(g for g in (task.guidance, settings.guidance, sampling) if g is not None)
        # At another guidance than sampling's, the original is sampled again too.
        count = image_count(task, settings) + (scale != sampling)
        images[task.experiment] += count
        calls[task.experiment] += count * config.total_steps * (2 if scale > 1 else 1)
    return [
        StagePrice(f"editing: {name}", f"{count} images with controls", calls[name] / 2, more=True)
        for name, count in images.items()
    ]
