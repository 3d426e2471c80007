"""The whole road: sample, label, curate, probe, intervene, report; each stage resumes by subtraction."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import storage
from cluster import Executor, InProcess, Outcome, turns
from probing import prompts as prompt_files
from storage import budget
from sweeps import curate_stage, label_stage, probe_stage, sample_stage
from sweeps import run as runs
from sweeps.config import Config
from sweeps.progress import Meter, StageObserver
from sweeps.run import Run

STAGES = ("sample", "label", "curate", "probe", "intervene", "report")
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

    Raises ValueError before anything is written.
    """
    _check_writable(config)
    found = runs.facts(config)
    runs.check_other(config, found)
    reading = prompt_files.read(config.prompts)
    layout = runs.layout(config, found, len(reading.prompts))
    _check_space(config, layout)
    for reason, count in reading.dropped.items():
        say(f"prompts: {count} dropped ({reason})")
    return runs.begin(config, found, reading.prompts)


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


def _check_space(config: Config, layout: storage.Layout) -> None:
    """Refuses a plan that does not fit its disk beside what is there already."""
    folder = runs.local_path(config.output)
    chunks = (p for p in folder.rglob("c/**/*") if p.is_file()) if folder else ()
    present = sum(p.stat().st_size for p in chunks)
    budget.check_disk(config.output, budget.price(layout).total, present)


@contextmanager
def executor(config: Config) -> Iterator[Executor]:
    """The executor that the configuration asks for; a private Ray ends with the block."""
    if config.ray.address == "none":
        yield InProcess(retries=config.sampling.retries)
        return
    from cluster.actors import OnRay
    from cluster.observed import Observed
    from cluster.resources import check_shared_output
    from cluster.session import connect
    from cluster.signals import sigterm_stops
    from cluster.submit import check_arrival

    check_arrival()
    with connect(config.ray.address, num_cpus=config.ray.num_cpus or None) as session, sigterm_stops():
        check_shared_output(config.output)
        say(f"Ray: {session.cpus:.0f} CPUs, {session.gpus:.0f} GPUs on {session.nodes} node(s)")
        yield Observed(OnRay(retries=config.sampling.retries), config.name)


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


def _sample(run: Run, executor: Executor, result: Result) -> None:
    tasks = sample_stage.missing(run)
    if tasks:
        meter = Meter("sampling", "shards")
        with _timed(run, "sample"):
            _note(result, "sample", sample_stage.work(run, executor, [StageObserver(meter)], tasks))
        meter.close()


def _label(run: Run, executor: Executor, result: Result) -> None:
    tasks = label_stage.missing(run)
    if tasks:
        meter = Meter("labelling", "shards")
        with _timed(run, "label"):
            _note(result, "label", label_stage.work(run, executor, [StageObserver(meter)], tasks))
        meter.close()


def _curate(run: Run, executor: Executor, result: Result) -> None:
    if not curate_stage.done(run):
        with _timed(run, "curate"):
            curate_stage.work(run)
        samples, split = curate_stage.kept(run)
        sizes = ", ".join(f"{len(part)} {name}" for name, part in split.parts)
        result.lines.append(f"curate: {len(samples)} samples in use ({sizes})")


def _probe(run: Run, executor: Executor, result: Result) -> None:
    wanted = probe_stage.missing(run)
    if wanted:
        meter = Meter("probing", "trials")
        with _timed(run, "probe"):
            fitted = probe_stage.work(run, wanted, meter, ray=run.config.ray.address != "none")
        meter.close()
        result.failed |= fitted.failed
        if fitted.done < len(wanted) and not fitted.failed:
            result.failed["probe"] = "stopped before every trial had ended"
        result.lines.append(f"probe: {fitted.done} of {len(wanted)} probes fitted")


def _intervene(run: Run, executor: Executor, result: Result) -> None:
    from sweeps import intervene_stage

    tasks = intervene_stage.missing(run)
    if tasks:
        meter = Meter("intervening", "images")
        with _timed(run, "intervene"):
            outcome = intervene_stage.work(run, executor, [StageObserver(meter)], tasks)
        meter.close()
        result.failed |= outcome.failed
        result.lines.append(f"intervene: {len(outcome.done)} images, {len(outcome.failed)} failed")


def _inputs(run: Run) -> str:
    """What the report shows: hashes of the stages and names of all result files."""
    listed = [p for p in run.store.list("results/") if p.endswith(".parquet")]
    text = json.dumps([vars(run.hashes), listed])
    return hashlib.sha256(text.encode()).hexdigest()


def _report(run: Run, executor: Executor | None, result: Result, force: bool = False) -> None:
    inputs = _inputs(run)
    if not force and run.store.exists(BUILT):
        built = json.loads(run.store.get(BUILT))
        if built.get("inputs") == inputs:
            return
    from sweeps import report, tracking

    plain = runs.plain(run)
    with _timed(run, "track"):
        mirrored = tracking.mirror(run.store, plain, run.config.tracking.mode, run.config.tracking.runs)
    if mirrored.problem:
        result.lines.append(f"W&B: {mirrored.problem}")
    with _timed(run, "report"):
        report.build(run.store, plain)
    run.store.put(BUILT, json.dumps({"inputs": inputs}).encode())
    result.lines.append(f"report: {run.config.output}/{report.PAGE}")


_WORK = {
    "sample": _sample,
    "label": _label,
    "curate": _curate,
    "probe": _probe,
    "intervene": _intervene,
}


def complete(run: Run, stages: Sequence[str]) -> bool:
    """Whether nothing is left to do."""
    if "sample" in stages and sample_stage.missing(run):
        return False
    if "label" in stages and label_stage.missing(run):
        return False
    if "curate" in stages and not curate_stage.done(run):
        return False
    if "probe" in stages and probe_stage.missing(run):
        return False
    if "intervene" in stages:
        from sweeps import intervene_stage

        if intervene_stage.missing(run):
            return False
    return True


def carry_out(config: Config, stages: Sequence[str] = STAGES) -> Result:
    """Runs the given stages to the end, leaving out what is finished."""
    result = Result()
    run = prepare(config)
    working = [stage for stage in stages if stage in _WORK]
    with turns.lease(run.store, f"scenesweep {config.name}", wait=config.ray.address not in ("local", "none")):
        run.store.janitor()
        if not complete(run, working):
            with executor(config) as engine:
                for stage in working:
                    _WORK[stage](run, engine, result)
                    if result.failed and stage in ("sample", "label"):
                        return result
        if "report" in stages:
            _report(run, None, result, force=tuple(stages) == ("report",))
    return result
