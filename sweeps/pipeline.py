"""The full pipeline, from sampling to the report; each stage resumes by subtraction."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import storage
from cluster import Executor, InProcess, Observer
from probing.dataset.prompts import Prompt
from probing.diffusion.metadata import ModelInfo
from storage import Store, audit, budget
from storage.keys import BUILT
from storage.lease import Lease
from sweeps.config.load import to_dict
from sweeps.config.schema import PREVIEW, Config, previews
from sweeps.planning import checks, durations, table
from sweeps.planning.checks import Start
from sweeps.runtime import damage, experiments, failures, inputs, live_status, machines, side_store
from sweeps.runtime.layout import PAGE, PREDICTIONS
from sweeps.runtime.progress import Display
from sweeps.runtime.run import Run, begin, layout, reopen
from sweeps.stages import preview
from sweeps.stages.all import STAGES
from sweeps.stages.base import NOTES, Stage

if TYPE_CHECKING:
    from sweeps.report.build import Drawn

VERBS = (*dict.fromkeys(stage.INFO.verb for stage in STAGES), "report")
"""verbs that run stages, in order; `run` runs all of them"""
TRACKED = "tracking.json"
"""what the W&B mirror holds, and where it was sent"""
COSTS = "costs.json"


@dataclass
class Result:
    """What a command did, and what failed."""

    lines: list[str] = field(default_factory=list)
    """what a user should know beside the counts"""
    counts: list[str] = field(default_factory=list)
    """how much each stage did"""
    ending: dict[str, Any] | None = None
    """findings and claims of the report, as its record holds them; None if there is no report"""
    failed: dict[str, str] = field(default_factory=dict)


def prepare(config: Config, verbs: Sequence[str] = VERBS) -> Run:
    """Check everything that can be wrong, price the run, then create its store or open the existing one.

    Raises ValueError before anything is written. If the run has a preview, that must be finished.
    """
    start = checks.check(config, verbs)
    return begin(config, start.model_info, _priced(start))


def _priced(start: Start) -> tuple[Prompt, ...]:
    """Return the prompts of the recording pass, which fits the disk; the preview, if there is one, must be finished."""
    config, info = start.config, start.model_info
    prompts = preview.kept(config, info, start.prompts) if previews(config) else start.prompts
    side_stores = table.side_store_space(config, info, len(prompts))
    table.check_fits(config, budget.price(layout(config, info, len(prompts))), side_stores)
    return prompts


def _lease(config: Config, verb: str = "") -> Lease:
    """Return the lease of the run's output, to be entered before anything is written there."""
    return storage.hold(config.output, f"scenesweep {config.name} {verb}".strip())


@contextmanager
def executor(config: Config, display: Display, store: Store | None = None) -> Iterator[Executor]:
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
        display.say(f"Ray: {session.cpus:.0f} CPUs, {session.gpus:.0f} GPUs on {session.nodes} node(s)")
        if store is not None:
            machines.begin(store, facts.of(session))
        observers: Callable | None = partial(machines.observers, store.url) if store is not None else None
        yield Observed(OnRay(retries=config.sampling.retries), config.name, observers)


@contextmanager
def _watched(run: Run, result: Result) -> Iterator[Callable[[str], Sequence[Observer]]]:
    """Show the stages in W&B while they run, where the settings want it; yields further observers by stage."""
    if run.config.tracking.mode == "disabled":
        yield lambda stage: ()
        return
    from sweeps.tracking.live import live

    with live(run, result.failed) as further:
        yield further


@contextmanager
def _timed(run: Run, cost: str) -> Iterator[None]:
    """Add the wall-clock seconds of the block to the run's costs."""
    started = time.perf_counter()
    yield
    with suppress(OSError):  # no result depends on it
        costs = run.store.readable_document(COSTS)
        costs[cost] = round(costs.get(cost, 0.0) + time.perf_counter() - started, 2)
        run.store.put_document(COSTS, costs)


def run_stage(
    run: Run,
    stage: Stage,
    executor: Executor,
    result: Result,
    display: Display,
    prefix: str = "",
    further: Callable[[str], Sequence[Observer]] = lambda stage: (),
) -> None:
    """Execute what a stage is missing, with progress for the user and for `scenesweep status`."""
    tasks, info = stage.missing(run), stage.INFO
    if not tasks:
        display.skip(prefix + info.name)
        return
    with display.stage(prefix + info.name, prefix + info.doing, info.unit) as observer, _timed(run, info.cost):
        observers: list[Observer] = [observer, live_status.LiveStatusWriter(run.store, info.name), *further(info.name)]
        outcome = stage.execute(run, executor, observers, tasks)
    failures.write(run.store, info.name, outcome.failed)
    result.failed |= outcome.failed
    notes = [line for task_result in outcome.done.values() for line in task_result.get(NOTES, ())]
    result.lines += notes
    if not notes:
        counts = f"{len(outcome.done)} of {len(tasks)} {info.tasks or info.unit} done"
        result.counts.append(f"{prefix}{info.doing}: {counts}")


def run_preview(config: Config, result: Result, display: Display | None = None) -> None:
    """Sample and curate an image of every raw prompt; both passes are priced before anything is written."""
    display = display or Display()
    _preview(_checked(config, ("sample", "label"), display), result, display)


def _checked(config: Config, verbs: Sequence[str], display: Display) -> Start:
    """Check a run, tell what was found, and price the preview if there is one."""
    with display.stage("checks", "checking settings and files"):
        start = checks.check(config, ("label", *verbs) if previews(config) else verbs)
        if previews(config):
            _, recording, previewed = table.with_preview(config, start.model_info, start.samples)
            table.check_fits(config, recording, previewed)
        else:
            _priced(start)
    for reason, count in start.reading.dropped.items() if start.reading else ():
        display.say(f"prompts: {count} dropped ({reason})")
    for line in start.notes:
        display.say(line)
    return start


def _preview(start: Start, result: Result, display: Display, following: Collection[str] = ()) -> None:
    """Sample and curate an image of every prompt; following: names of the stages of the recording pass."""
    with _lease(preview.settings(start.config), "preview"):
        run = preview.begin(start.config, start.model_info, start.prompts)
        inputs.record(run)
        plan = table.plan_input(start)
        first = durations.expected(replace(plan, config=run.config))
        names = [stage.INFO.name for stage in preview.STAGES if stage.INFO.name in first]
        named = {f"{PREVIEW} {name}": first[name] for name in names}
        # the recording pass has at most as many samples
        display.expect(named | {name: s for name, s in durations.expected(plan).items() if name in following})
        _fill_preview(run, start.samples, result, display)


def _fill_preview(run: Run, prompts: int, result: Result, display: Display) -> None:
    if preview.complete(run):
        return
    run.store.remove_partial_files()
    with executor(run.config, display, run.store) as engine:
        for stage in preview.STAGES:
            run_stage(run, stage, engine, result, display, f"{PREVIEW} ")
            if result.failed:
                return
        with _timed(run, "curate"):
            dropped = preview.decide(run)
    reasons = "".join(f", {count} dropped ({reason})" for reason, count in sorted(dropped.items()))
    result.lines.append(f"preview: {prompts - dropped.total()} of {prompts} samples kept{reasons}")


def _report(run: Run, result: Result, display: Display, force: bool = False) -> None:
    """Build the report and mirror the run to W&B, each unless it shows the current results already."""
    parts = [path for path in run.store.list("results/") if path.endswith(".parquet")]
    hashes = {name: experiments.stage_hash(run, name) for name in run.config.experiments.names}
    inputs = hashlib.sha256(json.dumps([vars(run.hashes), hashes, parts]).encode()).hexdigest()
    drawn, built = None, run.store.readable_document(BUILT)
    if force or not run.store.exists(PAGE) or built.get("inputs") != inputs:
        from sweeps.analysis import tables
        from sweeps.report import build
        from sweeps.report.ending import ending

        with display.stage("report", "report"), _timed(run, "report"):
            drawn = build.draw(tables.load(run.store, to_dict(run.config)), run.store)
            build.write(run.store, drawn)
            built = {"inputs": inputs, "ending": asdict(ending(drawn.context))}
        run.store.put_document(BUILT, built, run.store.checksums([PAGE, PREDICTIONS]))
        result.lines += filter(None, [drawn.context.run.warning])
        result.counts.append("report: built")
    result.ending = built.get("ending", {})
    _track(run, result, inputs, drawn, display)


def _track(run: Run, result: Result, inputs: str, drawn: Drawn | None, display: Display) -> None:
    """Mirror the run to W&B unless the mirror of these inputs is complete, where the settings want it."""
    tracking = run.config.tracking
    if tracking.mode == "disabled":
        return
    from sweeps.tracking import place

    record = {"inputs": inputs, "server": place.server() if tracking.mode == "online" else "", **vars(tracking)}
    complete = drawn is None and run.store.readable_document(TRACKED) == record
    if complete and place.is_written(run.store.url):
        return
    from sweeps.tracking import mirror

    with display.stage("track", "W&B"), _timed(run, "track"):
        mirrored = mirror.mirror(run.store, to_dict(run.config), tracking.mode, tracking.runs, drawn=drawn)
    if mirrored.problem:
        result.lines.append(f"W&B: {mirrored.problem}; the same command tries again")
        return
    run.store.put_document(TRACKED, record)
    if drawn is None and (mirrored.written or mirrored.sent):
        result.lines.append(f"W&B: {mirrored.written} runs written, {mirrored.sent} sent")


def _mended(config: Config, model: ModelInfo, prompts: tuple[Prompt, ...], result: Result) -> Run:
    """Begin a run; what is damaged in its output is named and cleared away, so that stages miss it."""
    stored = side_store.open_if_present(config.output)
    found = {item.path: item for item in audit.documents(stored)} if stored else {}
    run = begin(config, model, prompts)
    inputs.record(run)
    run.store.remove_partial_files()
    experiments.write_hashes(run)
    found |= {item.path: item for item in damage.find(run.store)}
    audit.repair(run.store, found.values(), damage.stage_hashes(run.store))
    result.lines += damage.lines(found.values())
    return run


def execute(config: Config, verbs: Sequence[str] = VERBS, display: Display | None = None) -> Result:
    """Run the stages of the given verbs to the end, leaving out what is finished; `display` shows the progress.

    Raises ValueError for wrong settings before anything is written.
    """
    result, display = Result(), display or Display()
    start = _checked(config, verbs, display)
    stages = [stage for stage in STAGES if stage.INFO.verb in verbs]
    with _lease(config):
        if previews(config):
            more = ("report", "track") if "report" in verbs else ()
            _preview(start, result, display, {*(stage.INFO.name for stage in stages), *more})
            if result.failed:
                return result
        run = _mended(config, start.model_info, _priced(start), result)
        if any(stage.missing(run) for stage in stages):
            display.expect(durations.left(run, stages, table.plan_input(start), "report" in verbs))
            with _watched(run, result) as further, executor(config, display, run.store) as engine:
                for stage in stages:
                    run_stage(run, stage, engine, result, display, further=further)
                    if result.failed and stage.INFO.required:
                        return result
        if "report" in verbs:
            _report(run, result, display)
    return result


def rebuild_report(config: Config, display: Display | None = None) -> Result:
    """Build the report of an existing output again, from its tables; prompts and model are not needed.

    Raises ValueError if there is no run.
    """
    damage.refuse(config.output)
    run, result, display = reopen(config), Result(), display or Display()
    with _lease(config):
        experiments.write_hashes(run)
        _report(run, result, display, force=True)
    return result
