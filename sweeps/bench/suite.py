"""`scenesweep bench`: each number beside its baseline, measured in the same run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sweeps.bench import machine
from sweeps.bench.paired import row
from sweeps.config.load import load
from sweeps.config.schema import Config

PAIRS = 5
Rows = list[dict[str, Any]]
BARS = {
    "capture_over_sampling": ("most", 1.1), "write_over_tofile": ("least", 0.7), "read_over_fromfile": ("least", 0.7),
    "cell_speedup_scenes": ("least", 30), "cell_speedup_paper": ("least", 10), "grid_seconds": ("most", 60),
    "tune_over_inprocess": ("most", 1.25), "edit_speedup": ("least", 10), "cluster_over_local": ("most", 1.2),
}  # fmt: skip
"""row -> bar of its ratio on an idle machine of two cores"""


def report(name: str) -> dict[str, Any]:
    """What `bench NAME --json` prints: bench, machine, rows.

    A row has what, ratio, of, to, seconds (medians of both), pairs (all of them), and its bar with whether it is met,
    or null where it has none.
    """
    return {"bench": name, "machine": machine.facts(), "rows": [_judged(one) for one in measure(name)]}


def _judged(found: dict[str, Any]) -> dict[str, Any]:
    kind, bar = BARS.get(found["what"], ("", 0.0))
    if not kind:
        return found | {"bar": None, "met": None}
    return found | {"bar": {kind: bar}, "met": found["ratio"] >= bar if kind == "least" else found["ratio"] <= bar}


def line(found: dict[str, Any]) -> str:
    """A row for people."""
    of, to = found["seconds"]
    text = f"{found['what']}: {found['ratio']:.3g} = {found['of']} / {found['to']} ({of:.3g} s, {to:.3g} s)"
    if found["bar"] is None:
        return text
    ((kind, bar),) = found["bar"].items()
    return f"{text}; at {kind} {bar:g}: {'met' if found['met'] else 'missed'}"


def measure(name: str) -> Rows:
    """Rows of one bench, see `storage.paired`."""
    return {
        "capture": capture,
        "store": store,
        "codecs": codecs,
        "probes": probes,
        "tune": tune,
        "interventions": interventions,
        "cluster": cluster,
    }[name]()


def _pairs(one: Callable[[], float], other: Callable[[], float], pairs: int = PAIRS) -> list[tuple[float, float]]:
    """Seconds of each, run in turn after a warm-up of both."""
    one(), other()
    return [(one(), other()) for _ in range(pairs)]


def _timed(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _one_shard(count: int) -> tuple[Config, Any, list[str], list[int]]:
    """Settings, model, prompts and seeds of one shard of the scenes model."""
    from probing.dataset.prompts import read
    from probing.diffusion import model as models

    config = load("scenes", [f"prompts.count={count}", f"sampling.shard={count}"])
    prompts = read(config.prompts).prompts
    return config, models.load(config.model), [p.text for p in prompts], [p.seed for p in prompts]


def capture(count: int = 16, pairs: int = PAIRS) -> Rows:
    """Sampling one shard of the scenes model with capture and writing, against sampling alone."""
    from probing.diffusion import capture as capturing
    from probing.diffusion.sampling import sample
    from storage import Store
    from sweeps.runtime import run as runs

    config, model, words, seeds = _one_shard(count)
    found, guidance = runs.model_info(config), config.sampling.guidance
    with tempfile.TemporaryDirectory() as folder:
        target = Store.create(str(Path(folder) / "store"), runs.layout(config, found, count))

        def write(site: str, step: int, values: Any) -> None:
            target.write_activation("trained", site, step, 0, values)

        latents = partial(_write_latents, target)
        with_capture = partial(capturing.capture, model, words, seeds, model.sites(), write, latents, guidance=guidance)
        plain = partial(sample, model, words, seeds, guidance=guidance)
        timed = _pairs(lambda: _timed(with_capture), lambda: _timed(plain), pairs)
    return [row("capture_over_sampling", "sampling, recording and writing", "sampling", timed)]


def _write_latents(target: Any, step: int, after: Any, clean: Any) -> None:
    target.write_latents("trained", 0, step, after, clean)


def store() -> Rows:
    """Writing and reading 1 GB in 20 MB chunks against tofile and fromfile."""
    from sweeps.bench.store import bench_store

    with tempfile.TemporaryDirectory() as folder:
        return list(bench_store(folder))


def codecs(count: int = 16, steps: Sequence[int] = (1, 8, 15), repeats: int = 3) -> Rows:
    """What each codec makes of real activations of the scenes model: all sites, three steps, one shard.

    `ratio` is raw bytes over stored bytes, both under `bytes`; `seconds` are those of writing and of reading back, one
    thread, disk excluded, the best of the repeats, so that there are no pairs.
    """
    from sweeps.bench.store import bench_codecs

    _, model, words, seeds = _one_shard(count)
    chunks: dict[str, Any] = {}

    def keep(site: str, step: int, values: Any) -> None:
        if step in steps:
            chunks[f"{site}/{step}"] = values.copy()

    from probing.diffusion.capture import capture as sampled

    sampled(model, words, seeds, model.sites(), keep, guidance=load("scenes", []).sampling.guidance)
    found = bench_codecs(dict(sorted(chunks.items())), repeats)
    return [_codec_row(name, found, chunks) for name in dict.fromkeys(row["codec"] for row in found)]


def _codec_row(codec: str, found: Rows, chunks: dict[str, Any]) -> dict[str, Any]:
    """One codec over all chunks."""
    rows = [row for row in found if row["codec"] == codec]
    raw = {row["what"]: chunks[row["what"]].nbytes for row in rows}
    total = sum(raw.values())
    stored = sum(raw[row["what"]] / row["ratio"] for row in rows)
    seconds = [sum(raw[row["what"]] / row[way] for row in rows) for way in ("write", "read")]
    return {"what": f"codec_{codec}", "ratio": total / stored, "of": "raw bytes", "to": "stored bytes",
            "seconds": seconds, "pairs": [], "bytes": [total, round(stored)]}  # fmt: skip


def probes() -> Rows:
    """Batched pooled fitting against the paper's loop."""
    from sweeps.bench.probes import bench_probes

    return list(bench_probes())


def interventions() -> Rows:
    """Batched pooled editing against one trial at a time on full-size pixels."""
    from sweeps.bench.interventions import bench_interventions

    return list(bench_interventions())


def cluster() -> Rows:
    """A small sweep submitted to a cluster of this machine's cores, against the same run here."""
    from sweeps.bench import cluster as bench_cluster

    return bench_cluster.measure()


def tune(output: str = "runs/scenes") -> Rows:
    """The grid of a finished run through Tune, and through as many plain actors without Tune.

    Reads the run at `output`, writes nothing.
    """
    from dataclasses import replace
    from functools import partial

    from cluster import WorkerSpec
    from sweeps.pipeline import executor
    from sweeps.runtime.grid import pack, probe_specs
    from sweeps.runtime.run import model_info, reopen, stored_config
    from sweeps.stages import probe
    from sweeps.stages.probe_tune import fan_out

    config = stored_config(output)
    run = reopen(config, model_info(config))
    trials = pack(probe_specs(config.sweep, config.sampling.variants, run.sites), config.sweep.trial_axes)
    job = replace(probe.job(run), dry=True)
    spec = WorkerSpec(factory=partial(TrialWorker, job), count=None, name="probe")
    with executor(config) as engine:
        through_tune = partial(fan_out, config, job, trials, ())
        plainly = partial(engine.run, trials, spec)
        timed = _pairs(lambda: _timed(through_tune), lambda: _timed(plainly), pairs=1)
    return [
        row("tune_over_inprocess", "Ray Tune", "plain actors", timed),
        row("grid_seconds", "the grid through Tune", "1 s", [(one, 1.0) for one, _ in timed]),
    ]


class TrialWorker:
    """Fits trials without Tune."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def __call__(self, trial: Any) -> dict[str, Any]:
        from sweeps.stages.probe_trial import fit_trial

        return fit_trial(self.job, trial)
