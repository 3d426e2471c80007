"""Prints how far a run is: per variant and stage done, failed with reason, and left."""

from __future__ import annotations

from sweeps import curate_stage, experiments, experiments_stage, label_stage, probe_stage, sample_stage
from sweeps import run as runs
from sweeps.config import Config
from sweeps.grid import cells
from sweeps.run import Run


def _line(name: str, done: int, total: int, failed: int, unit: str) -> str:
    return f"{name:22} {done:>6} done {failed:>4} failed {total - done - failed:>6} to do  of {total} {unit}"


def _experiments(run: Run) -> list[str]:
    """One line for each experiment of probes, and one for the tasks that follow them."""
    wanted, left = experiments.cells(run), experiments.missing(run)
    lines = [_line(f"  {n}", len(c) - len(left.get(n, ())), len(c), 0, "probes") for n, c in wanted.items()]
    if curate_stage.done(run):
        lines.append(f"emergence, transfer    {len(experiments_stage.missing(run))} tasks to do")
    return lines


def describe(config: Config) -> tuple[str, dict[str, str]]:
    """The status as text, and what failed with its reason."""
    run = runs.reopen(config, runs.facts(config))
    store, shards = run.store, run.store.layout.shards
    failed = sample_stage.failed(store, config.sampling.variants)
    lines = [f"{config.output}: {store.layout.samples} samples in {shards} shards"]
    for variant in config.sampling.variants:
        broken = store.failures(sample_stage.STAGE, variant)
        done = len(store.completed(sample_stage.STAGE, variant))
        lines.append(_line(f"sampling {variant}", done, shards, len(broken), "shards"))
    broken = store.failures(label_stage.STAGE, label_stage.VARIANT)
    done = len(store.completed(label_stage.STAGE, label_stage.VARIANT))
    failed |= {f"label/{shard:05d}": why for shard, why in broken.items()}
    lines.append(_line("labelling", done, shards, len(broken), "shards"))
    lines.append(f"curation               {'done' if curate_stage.done(run) else 'to do'}")
    wanted = cells(config.sweep, config.sampling.variants, run.sites)
    rows = store.table("probes", run.hashes.probe).select(["status", "experiment"]).to_pylist()
    bad = sum(r["status"] == "failed" and r["experiment"] == config.sweep.experiment for r in rows)
    lines.append(
        _line("probing", len(wanted) - len(probe_stage.missing(run)), len(wanted), bad, "probes")
    )
    lines += _experiments(run)
    if store.cleaned:
        lines.append("activations were dropped by `scenesweep clean`")
    return "\n".join(lines), failed
