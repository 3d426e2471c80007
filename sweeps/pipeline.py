"""The whole road: sample, label, curate, probe, intervene, report; each stage resumes by subtraction."""

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

from cluster import Executor, InProcess, Observer, Outcome, turns
from probing.dataset import prompts as prompt_files
from probing.dataset.prompts import Prompt
from probing.labelling import registry as labellers
from storage import Store, budget
from sweeps.config.schema import Config, previews
from sweeps.planning import requirements, table
from sweeps.runtime import failures, machines
from sweeps.runtime import run as runs
from sweeps.runtime.live_status import ProgressNote
from sweeps.runtime.progress import Meter, StageObserver
from sweeps.runtime.run import ModelInfo, Run
from sweeps.stages import curate, decode, label, probe, replay, safety, sample
from sweeps.stages import preview as preview_stage
from sweeps.stages.experiments import registry as further
from sweeps.stages.experiments import renders
from sweeps.stages.experiments import stage as experiments_stage

STAGES = ("sample", "label", "curate", "probe", "experiments", "intervene", "report")
BUILT = "report/built.json"
COSTS = "costs.json"
Say = Callable[[str], None]


@dataclass
class Result:
    """What a command did: one line per stage, and what failed."""

    lines: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def say(line: str) -> None:
    """One line to the user."""
    print(line, file=sys.stderr, flush=True)


def prepare(config: Config, write: bool = True) -> Run:
    """Checks everything that can be wrong, prices the run, then creates or reopens its store.

    Raises ValueError before anything is written. With a preview, that must be finished.
    """
    found, prompts = _checked(config, tell=not previews(config))
    if previews(config):
        prompts = preview_stage.kept(config, prompts)
    extra = table.further_space(config, found, len(prompts))
    table.check_fits(config, budget.price(runs.layout(config, found, len(prompts))), extra)
    return runs.begin(config, found, prompts)


def _checked(config: Config, tell: bool = True) -> tuple[ModelInfo, tuple[Prompt, ...]]:
    """What the model's files tell, and all prompts. Raises ValueError for whatever is wrong with the settings."""
    if not config.sampling.sites:
        raise ValueError("sampling.sites is empty; give names of sites, or all")
    _check_writable(config)
    found = runs.facts(config)
    runs.check_other(config, found)
    renders.check(config)
    reading = prompt_files.read(config.prompts)
    for reason, count in reading.dropped.items() if tell else ():
        say(f"prompts: {count} dropped ({reason})")
    return found, reading.prompts


def _check_labellers(config: Config, found: ModelInfo) -> None:
    """Refuses labellers that can't be had, as long as they are needed."""
    with suppress(ValueError):  # nothing there yet
        run = runs.reopen(config, found)
        done = run.store.completed(label.STAGE, label.VARIANT, stage_hash=run.hashes.label)
        if len(done) == run.store.layout.shards:
            return
    labellers.check(config.labels)


def preview(config: Config, result: Result) -> None:
    """Makes and curates an image of every raw prompt; prices both passes before anything is written."""
    found, prompts = _checked(config)
    _check_labellers(config, found)
    _, then, first = table.with_preview(config, found, len(prompts))
    table.check_fits(config, then, first)
    run = preview_stage.begin(config, found, prompts)
    if preview_stage.complete(run):
        return
    with run.store.lease(f"scenesweep {config.name} preview"), executor(run.config, run.store) as engine:
        run.store.remove_partial_files()
        for stage in (_sample, _label, _flag):
            stage(run, engine, result, "preview ")
            if result.failed:
                return
        with _timed(run, "curate"):
            dropped = preview_stage.curate(run)
    reasons = "".join(f", {count} dropped ({reason})" for reason, count in sorted(dropped.items()))
    result.lines.append(f"preview: {len(prompts) - dropped.total()} of {len(prompts)} samples kept{reasons}")


def _check_writable(config: Config) -> None:
    """Refuses an output that can't be written."""
    folder = runs.local_path(config.output)
    if folder is None:
        return
    parent = folder
    while not (parent.exists() or parent == parent.parent):
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"output: cannot write to {parent}; give output=ANOTHER folder")


@contextmanager
def executor(config: Config, store: Store | None = None) -> Iterator[Executor]:
    """The executor that the configuration asks for; a private Ray ends with the block.

    The facts of the cluster, and of its workers, are kept in the store.
    """
    if config.ray.address == "none":
        yield InProcess(retries=config.sampling.retries)
        return
    from cluster import facts
    from cluster.actors import OnRay
    from cluster.observers.combined import Observed
    from cluster.resources import check_shared_output
    from cluster.session import connect
    from cluster.signals import sigterm_stops
    from cluster.submit import check_arrival

    check_arrival()
    with connect(config.ray.address, num_cpus=config.ray.num_cpus or None) as session, sigterm_stops():
        check_shared_output(config.output)
        say(f"Ray: {session.cpus:.0f} CPUs, {session.gpus:.0f} GPUs on {session.nodes} node(s)")
        if store is not None:
            machines.begin(store, facts.of(session))
        further = partial(machines.observers, store.url) if store is not None else None
        yield Observed(OnRay(retries=config.sampling.retries), config.name, further)


@contextmanager
def _timed(run: Run, stage: str) -> Iterator[None]:
    """Adds the wall seconds of a stage to the run's costs."""
    started = time.perf_counter()
    yield
    costs = json.loads(run.store.get(COSTS)) if run.store.exists(COSTS) else {}
    costs[stage] = round(costs.get(stage, 0.0) + time.perf_counter() - started, 2)
    run.store.put(COSTS, json.dumps(costs, indent=1).encode())


def _note(result: Result, stage: str, outcome: Outcome) -> None:
    result.failed |= outcome.failed
    result.lines.append(f"{stage}: {len(outcome.done)} shards done, {len(outcome.failed)} failed")


def _sample(run: Run, executor: Executor, result: Result, which: str = "") -> None:
    tasks = sample.missing(run)
    if tasks:
        meter = Meter(f"{which}sampling", "shards")
        observers: list[Observer] = [StageObserver(meter), ProgressNote(run.store, sample.STAGE)]
        with _timed(run, "sample"):
            _note(result, f"{which}sample", sample.work(run, executor, observers, tasks))
        meter.close()


def _label(run: Run, executor: Executor, result: Result, which: str = "") -> None:
    tasks = label.missing(run)
    if tasks:
        meter = Meter(f"{which}labelling", "shards")
        observers: list[Observer] = [StageObserver(meter), ProgressNote(run.store, label.STAGE)]
        with _timed(run, "label"):
            _note(result, f"{which}label", label.work(run, executor, observers, tasks))
        meter.close()


def _flag(run: Run, executor: Executor, result: Result, which: str = "") -> None:
    tasks = safety.missing(run)
    if tasks:
        meter = Meter(f"{which}safety checker", "shards")
        with _timed(run, "curate"):
            _note(result, f"{which}safety", safety.work(run, executor, [StageObserver(meter)], tasks))
        meter.close()


def _curate(run: Run, executor: Executor, result: Result) -> None:
    if not curate.done(run):
        _flag(run, executor, result)
        if result.failed:
            return
        with _timed(run, "curate"):
            curate.work(run)
        result.lines += [f"curate: {n} dropped ({reason})" for reason, n in curate.dropped(run).items()]
        samples, split = curate.kept(run)
        sizes = ", ".join(f"{len(part)} {name}" for name, part in split.parts)
        result.lines.append(f"curate: {len(samples)} samples in use ({sizes})")


_READ_FIRST = ((replay, "families", "reading further sites"), (decode, "decoded", "decoding clean estimates"))
"""what some probes read beside the recorded activations: stage, name among the costs, words of its meter"""


def _probe(run: Run, executor: Executor, result: Result) -> None:
    for stage, name, doing in _READ_FIRST:
        if tasks := stage.missing(run):
            meter = Meter(doing, "shards")
            with _timed(run, name):
                outcome = stage.work(run, executor, [StageObserver(meter)], tasks)
            meter.close()
            failures.note(run.store, stage.STAGE, outcome.failed)
            _note(result, name, outcome)
    wanted, more = probe.missing(run), further.missing(run)
    asked = len(wanted) + sum(map(len, more.values()))
    if asked:
        meter = Meter("probing", "trials")
        with _timed(run, "probe"):
            ray = run.config.ray.address != "none"
            fitted = probe.work(run, wanted, meter, ray=ray, further=more)
        meter.close()
        result.failed |= fitted.failed
        if fitted.done < asked and not fitted.failed:
            result.failed["probe"] = "stopped before every trial had ended"
        result.lines.append(f"probe: {fitted.done} of {asked} probes fitted")


def _experiments(run: Run, executor: Executor, result: Result) -> None:
    if tasks := experiments_stage.missing(run):
        meter = Meter("experiments", "tasks")
        with _timed(run, "experiments"):
            outcome = experiments_stage.work(run, executor, [StageObserver(meter)], tasks)
        meter.close()
        failures.note(run.store, experiments_stage.STAGE, outcome.failed)
        result.failed |= outcome.failed
        result.lines.append(f"experiments: {len(outcome.done)} tasks done, {len(outcome.failed)} failed")


def _intervene(run: Run, executor: Executor, result: Result) -> None:
    from sweeps.stages import intervene

    tasks = intervene.missing(run)
    if tasks:
        meter = Meter("intervening", "images")
        with _timed(run, "intervene"):
            outcome = intervene.work(run, executor, [StageObserver(meter)], tasks)
        meter.close()
        result.failed |= outcome.failed
        result.lines.append(f"intervene: {len(outcome.done)} images, {len(outcome.failed)} failed")


def _inputs(run: Run) -> str:
    """What the report shows: hashes of the stages and names of all result files."""
    listed = [p for p in run.store.list("results/") if p.endswith(".parquet")]
    named = {name: further.stage_hash(run, name) for name in run.config.experiments.names}
    text = json.dumps([vars(run.hashes), named, listed])
    return hashlib.sha256(text.encode()).hexdigest()


def _report(run: Run, executor: Executor | None, result: Result, force: bool = False) -> None:
    inputs = _inputs(run)
    if not force and run.store.exists(BUILT):
        built = json.loads(run.store.get(BUILT))
        if built.get("inputs") == inputs:
            return
    from sweeps.analysis import tables
    from sweeps.report import build
    from sweeps.tracking import mirror

    plain, tracked = runs.plain(run), run.config.tracking
    with _timed(run, "report"):
        drawn = build.draw(tables.load(run.store, plain), run.store)
        build.write(run.store, drawn)
    with _timed(run, "track"):
        mirrored = mirror.mirror(run.store, plain, tracked.mode, tracked.runs, drawn=drawn)
    if mirrored.problem:
        result.lines.append(f"W&B: {mirrored.problem}")
    run.store.put(BUILT, json.dumps({"inputs": inputs}).encode())
    result.lines.append(f"report: {run.config.output}/{build.PAGE}")


_WORK = {
    "sample": _sample,
    "label": _label,
    "curate": _curate,
    "probe": _probe,
    "experiments": _experiments,
    "intervene": _intervene,
}


def complete(run: Run, stages: Sequence[str]) -> bool:
    """Whether nothing is left to do."""
    if "sample" in stages and sample.missing(run):
        return False
    if "label" in stages and label.missing(run):
        return False
    if "curate" in stages and not curate.done(run):
        return False
    if "probe" in stages and (probe.missing(run) or further.missing(run)):
        return False
    if "experiments" in stages and experiments_stage.missing(run):
        return False
    if "intervene" in stages:
        from sweeps.stages import intervene

        if intervene.missing(run):
            return False
    return True


def execute(config: Config, stages: Sequence[str] = STAGES) -> Result:
    """Runs the given stages to the end, leaving out what is finished."""
    result = Result()
    if "intervene" in stages:
        requirements.check(config, runs.facts(config))
    if previews(config):
        preview(config, result)
        if result.failed:
            return result
    elif "label" in stages:
        _check_labellers(config, runs.facts(config))
    run = prepare(config)
    working = [stage for stage in stages if stage in _WORK]
    with turns.lease(run.store, f"scenesweep {config.name}", wait=config.ray.address not in ("local", "none")):
        run.store.remove_partial_files()
        further.note(run)
        if not complete(run, working):
            with executor(config, run.store) as engine:
                for stage in working:
                    _WORK[stage](run, engine, result)
                    if result.failed and stage in ("sample", "label", "curate"):
                        return result
        if "report" in stages:
            _report(run, None, result, force=tuple(stages) == ("report",))
    return result
