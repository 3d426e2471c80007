"""The full pipeline, from sampling to the report; each stage resumes by subtraction."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import storage
from cluster import Executor, InProcess, Observer
from probing.dataset.prompts import Prompt, read
from probing.diffusion import devices
from probing.labelling import registry
from storage import Store, budget
from storage.backends import local_folder
from storage.lease import Lease
from sweeps.config.load import to_dict
from sweeps.config.schema import Config, previews
from sweeps.planning import requirements, table
from sweeps.runtime import experiments, failures, live_status, machines
from sweeps.runtime.progress import Meter, StageObserver
from sweeps.runtime.run import ModelInfo, Run, begin, check_other, layout, model_info, reopen
from sweeps.stages import label, preview
from sweeps.stages.all import STAGES
from sweeps.stages.base import NOTES, Stage
from sweeps.stages.experiments import renders

VERBS = (*dict.fromkeys(stage.INFO.verb for stage in STAGES), "report")
"""verbs that run stages, in order; `run` runs all of them"""
BUILT = "report/built.json"
COSTS = "costs.json"


@dataclass
class Result:
    """What a command did: one line per stage, and what failed."""

    lines: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def say(line: str) -> None:
    """Print one line for the user."""
    print(line, file=sys.stderr, flush=True)


def prepare(config: Config) -> Run:
    """Check everything that can be wrong, price the run, then create its store or open the existing one.

    Raises ValueError before anything is written. If the run has a preview, that must be finished.
    """
    return begin(config, *_priced(config))


def _priced(config: Config) -> tuple[ModelInfo, tuple[Prompt, ...]]:
    """Return the model's metadata and the prompts of a run that is checked and fits the disk."""
    model_info, prompts = _checked(config, report_dropped=not previews(config))
    if previews(config):
        prompts = preview.kept(config, prompts)
    side_stores = table.side_store_space(config, model_info, len(prompts))
    table.check_fits(config, budget.price(layout(config, model_info, len(prompts))), side_stores)
    return model_info, prompts


def _lease(config: Config, verb: str = "") -> Lease:
    """Return the lease of the run's output, to be entered before anything is written there."""
    return storage.hold(config.output, f"scenesweep {config.name} {verb}".strip())


def _checked(config: Config, report_dropped: bool = True) -> tuple[ModelInfo, tuple[Prompt, ...]]:
    """Return the model's metadata and all prompts. Raises ValueError for whatever is wrong with the settings."""
    if not config.sampling.sites:
        raise ValueError("sampling.sites is empty; give names of sites, or all")
    _check_writable(config)
    info = model_info(config)
    if table.on_this_machine(config) and config.model.device.startswith("cuda"):
        devices.pick_device(config.model.device)
    check_other(config, info)
    renders.check(config)
    reading = read(config.prompts)
    for reason, count in reading.dropped.items() if report_dropped else ():
        say(f"prompts: {count} dropped ({reason})")
    return info, reading.prompts


def _check_labellers(config: Config, model_info: ModelInfo) -> None:
    """Raise ValueError if a labeller is not available, unless all labels are there already."""
    with suppress(ValueError):  # no output yet
        if label.complete(reopen(config, model_info)):
            return
    registry.check(config.labels)


def _check_writable(config: Config) -> None:
    """Raise ValueError if the output cannot be written."""
    folder = local_folder(config.output)
    if folder is None:
        return
    parent = folder
    while not (parent.exists() or parent == parent.parent):
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"output: cannot write to {parent}; give output=ANOTHER folder")


@contextmanager
def executor(config: Config, store: Store | None = None) -> Iterator[Executor]:
    """Provide the executor that the configuration selects; a private Ray ends with the block.

    A description of the cluster, and the numbers of its workers, are kept in the store.
    """
    if config.ray.address == "none":
        yield InProcess(retries=config.sampling.retries)
        return
    from cluster import facts
    from cluster.actors import OnRay
    from cluster.observers.combined import Observed
    from cluster.process import sigterm_stops
    from cluster.resources import check_shared_output
    from cluster.session import connect

    with connect(config.ray.address, num_cpus=config.ray.num_cpus or None) as session, sigterm_stops():
        check_shared_output(config.output)
        say(f"Ray: {session.cpus:.0f} CPUs, {session.gpus:.0f} GPUs on {session.nodes} node(s)")
        if store is not None:
            machines.begin(store, facts.of(session))
        observers: Callable | None = partial(machines.observers, store.url) if store is not None else None
        yield Observed(OnRay(retries=config.sampling.retries), config.name, observers)


@contextmanager
def _timed(run: Run, cost: str) -> Iterator[None]:
    """Add the wall-clock seconds of the block to the run's costs."""
    started = time.perf_counter()
    yield
    costs = json.loads(run.store.get(COSTS)) if run.store.exists(COSTS) else {}
    costs[cost] = round(costs.get(cost, 0.0) + time.perf_counter() - started, 2)
    run.store.put(COSTS, json.dumps(costs, indent=1).encode())


def run_stage(run: Run, stage: Stage, executor: Executor, result: Result, prefix: str = "") -> None:
    """Execute what a stage is missing, with progress for the user and for `scenesweep status`."""
    tasks, info = stage.missing(run), stage.INFO
    if not tasks:
        return
    meter = Meter(f"{prefix}{info.doing}", info.unit)
    observers: list[Observer] = [StageObserver(meter), live_status.LiveStatusWriter(run.store, info.name)]
    with _timed(run, info.cost):
        outcome = stage.execute(run, executor, observers, tasks)
    meter.close()
    failures.write(run.store, info.name, outcome.failed)
    result.failed |= outcome.failed
    notes = [line for task_result in outcome.done.values() for line in task_result.get(NOTES, ())]
    counts = f"{len(outcome.done)} of {len(tasks)} {info.tasks or info.unit} done"
    result.lines += notes or [f"{prefix}{info.doing}: {counts}"]


def run_preview(config: Config, result: Result) -> None:
    """Sample and curate an image of every raw prompt; both passes are priced before anything is written."""
    _preview(config, result, *_checked_preview(config))


def _preview(config: Config, result: Result, model_info: ModelInfo, prompts: tuple[Prompt, ...]) -> None:
    with _lease(preview.settings(config), "preview"):
        _fill_preview(preview.begin(config, model_info, prompts), len(prompts), result)


def _checked_preview(config: Config) -> tuple[ModelInfo, tuple[Prompt, ...]]:
    """Return the model's metadata and all prompts of a run with a preview that is checked and fits the disk."""
    model_info, prompts = _checked(config)
    _check_labellers(config, model_info)
    _, recording, previewed = table.with_preview(config, model_info, len(prompts))
    table.check_fits(config, recording, previewed)
    return model_info, prompts


def _fill_preview(run: Run, prompts: int, result: Result) -> None:
    if preview.complete(run):
        return
    run.store.remove_partial_files()
    with executor(run.config, run.store) as engine:
        for stage in preview.STAGES:
            run_stage(run, stage, engine, result, "preview ")
            if result.failed:
                return
        with _timed(run, "curate"):
            dropped = preview.decide(run)
    reasons = "".join(f", {count} dropped ({reason})" for reason, count in sorted(dropped.items()))
    result.lines.append(f"preview: {prompts - dropped.total()} of {prompts} samples kept{reasons}")


def _report(run: Run, result: Result, force: bool = False) -> None:
    """Build the report and mirror the run to W&B, unless both show the current results already."""
    parts = [path for path in run.store.list("results/") if path.endswith(".parquet")]
    hashes = {name: experiments.stage_hash(run, name) for name in run.config.experiments.names}
    inputs = hashlib.sha256(json.dumps([vars(run.hashes), hashes, parts]).encode()).hexdigest()
    if not force and run.store.exists(BUILT) and json.loads(run.store.get(BUILT)).get("inputs") == inputs:
        return
    from sweeps.analysis import tables
    from sweeps.report import build
    from sweeps.tracking import mirror

    settings, tracking = to_dict(run.config), run.config.tracking
    with _timed(run, "report"):
        drawn = build.draw(tables.load(run.store, settings), run.store)
        build.write(run.store, drawn)
    with _timed(run, "track"):
        mirrored = mirror.mirror(run.store, settings, tracking.mode, tracking.runs, drawn=drawn)
    if mirrored.problem:
        result.lines.append(f"W&B: {mirrored.problem}")
    run.store.put(BUILT, json.dumps({"inputs": inputs}).encode())
    result.lines.append(f"report: {run.config.output}/{build.PAGE}")


def execute(config: Config, verbs: Sequence[str] = VERBS) -> Result:
    """Run the stages of the given verbs to the end, leaving out what is finished.

    Raises ValueError for wrong settings before anything is written.
    """
    result = Result()
    if "intervene" in verbs:
        requirements.check(config, model_info(config))
    if not previews(config) and "label" in verbs:
        _check_labellers(config, model_info(config))
    checked = _checked_preview(config) if previews(config) else _priced(config)
    stages = [stage for stage in STAGES if stage.INFO.verb in verbs]
    with _lease(config):
        if previews(config):
            _preview(config, result, *checked)
            if result.failed:
                return result
            checked = _priced(config)
        run = begin(config, *checked)
        run.store.remove_partial_files()
        experiments.write_hashes(run)
        if any(stage.missing(run) for stage in stages):
            with executor(config, run.store) as engine:
                for stage in stages:
                    run_stage(run, stage, engine, result)
                    if result.failed and stage.INFO.required:
                        return result
        if "report" in verbs:
            _report(run, result)
    return result


def rebuild_report(config: Config) -> Result:
    """Build the report of an existing output again, from its tables; prompts and model are not needed.

    Raises ValueError if there is no run.
    """
    run, result = reopen(config), Result()
    with _lease(config):
        experiments.write_hashes(run)
        _report(run, result, force=True)
    return result
