"""Prints how far a run is: per variant and stage done, running, failed with reason, left, rate and time left."""

from __future__ import annotations

from typing import Any

import storage
from storage import Store
from sweeps import (
    curate_stage,
    experiments,
    experiments_stage,
    label_stage,
    probe_stage,
    progress_note,
    sample_stage,
)
from sweeps import run as runs
from sweeps.config import PREVIEW, Config
from sweeps.grid import cells
from sweeps.run import Run


def _line(name: str, done: int, total: int, failed: int, unit: str, running: int = 0) -> str:
    left = max(0, total - done - failed - running)
    counts = f"{done:>6} done {running:>3} running {failed:>4} failed {left:>6} to do"
    return f"{name:22} {counts}  of {total} {unit}"


def _experiments(run: Run) -> list[str]:
    """One line for each experiment of probes, and one for the tasks that follow them."""
    wanted, left = experiments.cells(run), experiments.missing(run)
    lines = [_line(f"  {n}", len(c) - len(left.get(n, ())), len(c), 0, "probes") for n, c in wanted.items()]
    if curate_stage.done(run):
        lines.append(f"other experiments      {len(experiments_stage.missing(run))} tasks to do")
    return lines


def _pace(note: dict[str, Any], stage: str) -> str:
    """Rate and time left of a stage that is at work, as the end of a line."""
    if note.get("stage") != stage or not note.get("rate"):
        return ""
    left = note["seconds_left"]
    return f"; {60 * note['rate']:.3g} a minute" + (f", {_duration(left)} left" if left else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s"


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
    return "\n".join([*lines, *more, *_later(config)]), failed | failures


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
    store, shards, note = run.store, run.store.layout.shards, progress_note.read(run.store)
    failed = {f"{which}{key}": reason for key, reason in sample_stage.failed(store, config.sampling.variants).items()}
    lines = [f"{output}: {store.layout.samples} samples in {shards} shards"]
    for variant in config.sampling.variants:
        stage = sample_stage.STAGE
        busy, done = _running(note, f"{stage}/{variant}/"), len(store.completed(stage, variant))
        broken = len(store.failures(stage, variant))
        pace = _pace(note, stage) if busy else ""
        lines.append(_line(f"{which}sampling {variant}", done, shards, broken, "shards", busy) + pace)
    lines.append(_labelling(run, which, note))
    failed |= {f"{which}label/{shard:05d}": why for shard, why in _label_failures(store).items()}
    state = "done" if curate_stage.done(run) else "to do"
    return [*lines, f"{which + 'curation':22} {state:>6}"], failed


def _label_failures(store: Store) -> dict[int, str]:
    return store.failures(label_stage.STAGE, label_stage.VARIANT)


def _labelling(run: Run, which: str, note: dict[str, Any]) -> str:
    done = len(run.store.completed(label_stage.STAGE, label_stage.VARIANT, stage_hash=run.hashes.label))
    busy = _running(note, f"{label_stage.STAGE}/")
    pace = _pace(note, label_stage.STAGE) if busy else ""
    broken = len(_label_failures(run.store))
    return _line(f"{which}labelling", done, run.store.layout.shards, broken, "shards", busy) + pace


def _later(config: Config) -> list[str]:
    """The probe grid, and whether activations are still there."""
    run = runs.reopen(config, runs.facts(config))
    wanted = cells(config.sweep, config.sampling.variants, run.sites)
    rows = run.store.table("probes", run.hashes.probe).select(["status", "experiment"]).to_pylist()
    bad = sum(r["status"] == "failed" and r["experiment"] == config.sweep.experiment for r in rows)
    done = len(wanted) - len(probe_stage.missing(run))
    dropped = ["activations were dropped by `scenesweep clean`"] if run.store.cleaned else []
    return [_line("probing", done, len(wanted), bad, "probes"), *_experiments(run), *dropped]
