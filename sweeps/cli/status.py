"""Prints how far a run is: per variant and stage done, running, failed with reason, left, rate and time left."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import storage
from storage import Store
from sweeps.config.schema import GRID, PREVIEW, Config
from sweeps.runtime import failures as failure_notes
from sweeps.runtime import live_status
from sweeps.runtime import run as runs
from sweeps.runtime.grid import cells
from sweeps.runtime.run import Run
from sweeps.runtime.units import format_duration
from sweeps.stages import curate, decode, intervene, label, probe, replay, sample
from sweeps.stages.experiments import registry
from sweeps.stages.experiments import stage as experiments_stage

WIDTH = 32
"""of the first column: `sampling` and the longest name of a variant"""


def _line(name: str, done: int, total: int, failed: int, unit: str, running: int = 0) -> str:
    left = max(0, total - done - failed - running)
    counts = f"{done:>6} done {running:>3} running {failed:>4} failed {left:>6} to do"
    return f"{name:{WIDTH}} {counts}  of {total} {unit}"


def _pace(note: dict[str, Any], stage: str) -> str:
    """Rate and time left of a stage that is at work, as the end of a line."""
    if note.get("stage") != stage or not note.get("rate"):
        return ""
    left = note["seconds_left"]
    return f"; {60 * note['rate']:.3g} a minute" + (f", {format_duration(left)} left" if left else "")


def _running(note: dict[str, Any], prefix: str) -> int:
    return sum(key.startswith(prefix) for key in note.get("running", {}))


def describe(output: str) -> tuple[str, dict[str, str]]:
    """The status of an output as text, and what failed with its reason.

    Raises ValueError where there is no run.
    """
    preview = f"{output}/{PREVIEW}"
    lines, failed = _shards(preview, "preview ") if _is_store(preview) else ([], {})
    if lines and not _is_store(output):
        return "\n".join([*lines, "recording              to do, once the preview is curated"]), failed
    config = runs.stored_config(output)
    more, failures = _shards(output, "")
    later, why = _later(config)
    return "\n".join([*lines, *more, *later]), failed | failures | why


def _is_store(url: str) -> bool:
    try:
        storage.open(url)
    except ValueError:
        return False
    return True


def _shards(output: str, which: str) -> tuple[list[str], dict[str, str]]:
    """Sampling per variant and labelling of one store."""
    config = runs.stored_config(output)
    run = runs.reopen(config, runs.facts(config))
    store, shards, note = run.store, run.store.layout.shards, live_status.read(run.store)
    failed = {f"{which}{key}": reason for key, reason in sample.failed(store, config.sampling.variants).items()}
    lines = [f"{output}: {store.layout.samples} samples in {shards} shards"]
    for variant in config.sampling.variants:
        stage = sample.STAGE
        busy, done = _running(note, f"{stage}/{variant}/"), len(store.completed(stage, variant))
        broken = len(store.failures(stage, variant))
        pace = _pace(note, stage) if busy else ""
        lines.append(_line(f"{which}sampling {variant}", done, shards, broken, "shards", busy) + pace)
    lines.append(_labelling(run, which, note))
    failed |= {f"{which}label/{shard:05d}": why for shard, why in _label_failures(store).items()}
    state = "done" if curate.done(run) else "to do"
    return [*lines, f"{which + 'curation':{WIDTH}} {state:>6}"], failed


def _label_failures(store: Store) -> dict[int, str]:
    return store.failures(label.STAGE, label.VARIANT)


def _labelling(run: Run, which: str, note: dict[str, Any]) -> str:
    done = len(run.store.completed(label.STAGE, label.VARIANT, stage_hash=run.hashes.label))
    busy = _running(note, f"{label.STAGE}/")
    pace = _pace(note, label.STAGE) if busy else ""
    broken = len(_label_failures(run.store))
    return _line(f"{which}labelling", done, run.store.layout.shards, broken, "shards", busy) + pace


def _later(config: Config) -> tuple[list[str], dict[str, str]]:
    """What follows curation, whether activations are still there, and what failed."""
    run = runs.reopen(config, runs.facts(config))
    lines, failed = _probes(run)
    for stage in (_further_sites, _experiments, _interventions):
        more, why = stage(run)
        lines, failed = [*lines, *more], failed | why
    dropped = ["activations were dropped by `scenesweep clean`"] if run.store.cleaned else []
    return [*lines, *dropped], failed


def _probes(run: Run) -> tuple[list[str], dict[str, str]]:
    """A line for the grid and one for each experiment that consists of probes."""
    named = {GRID: cells(run.config.sweep, run.config.sampling.variants, run.sites)}
    left = {GRID: probe.missing(run)} | registry.missing(run)
    named |= registry.cells(run)
    hashes = [run.hashes.probe, *(registry.stage_hash(run, name) for name in registry.cells(run))]
    failed = {key: why for key, why in probe.cell_errors(run, hashes).items() if key.partition("/")[0] in named}
    lines = []
    for name, wanted in named.items():
        bad = sum(key.startswith(f"{name}/") for key in failed)
        shown = "probing" if name == GRID else f"  {name}"
        lines.append(_line(shown, len(wanted) - len(left.get(name, ())), len(wanted), bad, "probes"))
    return lines, {f"{probe.STAGE}/{key}": why for key, why in failed.items()}


def _still(run: Run, stage: str, left: Collection[str]) -> dict[str, str]:
    """Reasons that the stage noted of tasks that are still left."""
    return {key: why for key, why in failure_notes.read(run.store, stage).items() if key in left}


def _further_sites(run: Run) -> tuple[list[str], dict[str, str]]:
    """Nothing, unless shards are left whose further sites or decoded pictures are to be read."""
    lines: list[str] = []
    failed: dict[str, str] = {}
    for name, stage in (("reading further sites", replay), ("decoding estimates", decode)):
        if left := {task.key for task in stage.missing(run)}:
            broken = _still(run, stage.STAGE, left)
            counts = f"{len(broken):>4} failed {len(left) - len(broken):>6} to do  shards"
            lines, failed = [*lines, f"{name:{WIDTH}} {'':>24}{counts}"], failed | broken
    return lines, failed


def _experiments(run: Run) -> tuple[list[str], dict[str, str]]:
    """One line for the tasks that follow the probes."""
    if not curate.done(run):
        return [], {}
    left = {task.key for task in experiments_stage.missing(run)}
    failed = _still(run, experiments_stage.STAGE, left)
    total = experiments_stage.total(run)
    return [_line("other experiments", total - len(left), total, len(failed), "tasks")], failed


def _interventions(run: Run) -> tuple[list[str], dict[str, str]]:
    """One line for the interventions; before curation nobody knows how many there are."""
    if not curate.done(run):
        return [f"{'intervening':{WIDTH}} {'to do':>6}"], {}
    total, left = len(intervene.tasks(run)), intervene.missing(run)
    failed = intervene.failures(run, left)
    return [_line("intervening", total - len(left), total, len(failed), "images, each with its controls")], failed


def grouped(failed: Mapping[str, str]) -> dict[str, str]:
    """Failures of one stage with one reason as one entry: an example, and how many more.

    Reasons that differ in numbers alone, such as those of a shard or step, count as one.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for key in sorted(failed):
        alike = re.sub(r"\d+", "#", failed[key])
        groups.setdefault((re.split(r"[/.]", key)[0], alike), []).append(key)
    more = {keys[0]: f" and {len(keys) - 1} more" if len(keys) > 1 else "" for keys in groups.values()}
    return {first + rest: failed[first] for first, rest in more.items()}
