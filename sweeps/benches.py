"""`scenesweep bench`: each number beside its baseline, measured in the same run."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAIRS = 5
Rows = list[dict[str, Any]]


def measure(name: str) -> Rows:
    """Rows of one bench: what, ratio, of, to, seconds."""
    return {
        "capture": capture,
        "store": store,
        "probes": probes,
        "tune": tune,
        "interventions": interventions,
        "cluster": cluster,
    }[name]()


def _pairs(one: Callable[[], float], other: Callable[[], float], pairs: int = PAIRS) -> tuple[float, float]:
    """Median seconds of each, run in turn after a warm-up of both."""
    one(), other()
    both = [(one(), other()) for _ in range(pairs)]
    return tuple(statistics.median(values) for values in zip(*both, strict=True))


def _timed(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def capture() -> Rows:
    """Sampling one shard of the scenes model with capture and writing, against sampling alone."""
    from functools import partial

    from probing import capture as capturing
    from probing import model as models
    from probing.sampling import sample
    from storage import Store
    from sweeps import run as runs
    from sweeps.config import load

    config = load("scenes", ["prompts.count=16"])
    found = runs.facts(config)
    model = models.load(config.model)
    from probing.prompts import read

    prompts = read(config.prompts).prompts
    words, seeds = [p.text for p in prompts], [p.seed for p in prompts]
    guidance = config.sampling.guidance
    with tempfile.TemporaryDirectory() as folder:
        target = Store.create(str(Path(folder) / "store"), runs.layout(config, found, len(prompts)))

        def write(site: str, step: int, values: Any) -> None:
            target.write_activation("trained", site, step, 0, values)

        latents = partial(_write_latents, target)
        with_capture = partial(
            capturing.capture, model, words, seeds, model.sites(), write, latents, guidance=guidance
        )
        plain = partial(sample, model, words, seeds, guidance=guidance)
        one, other = _pairs(lambda: _timed(with_capture), lambda: _timed(plain))
    return [_row("capture_over_sampling", one, other, "sampling, recording and writing", "sampling")]


def _write_latents(target: Any, step: int, after: Any, clean: Any) -> None:
    target.write_latents("trained", 0, step, after, clean)


def _row(what: str, one: float, other: float, of: str, to: str) -> dict[str, Any]:
    return {"what": what, "ratio": one / other, "of": of, "to": to, "seconds": [one, other]}


def store() -> Rows:
    """Writing and reading 1 GB in 20 MB chunks against tofile and fromfile."""
    from storage.bench import bench_store

    with tempfile.TemporaryDirectory() as folder:
        return list(bench_store(folder))


def probes() -> Rows:
    """Batched pooled fitting against the paper's loop."""
    from probing.bench import bench_probes

    return list(bench_probes())


def interventions() -> Rows:
    """Batched pooled editing against one trial at a time on full-size pixels."""
    from interventions.bench import bench_interventions

    return list(bench_interventions())


def cluster() -> Rows:
    """A small sweep submitted to a cluster of this machine's cores, against the same run here."""
    from sweeps import bench_cluster

    return bench_cluster.measure()


def tune(output: str = "runs/scenes") -> Rows:
    """The grid of a finished run through Tune, and through as many plain actors without Tune.

    Reads the run at `output`, writes nothing.
    """
    from dataclasses import replace
    from functools import partial

    from cluster import WorkerSpec
    from sweeps import probe_stage
    from sweeps.grid import cells, pack
    from sweeps.pipeline import executor
    from sweeps.run import facts, reopen, stored_config

    config = stored_config(output)
    run = reopen(config, facts(config))
    trials = pack(cells(config.sweep, config.sampling.variants, run.sites), config.sweep.trial_axes)
    job = replace(probe_stage.job(run), dry=True)
    spec = WorkerSpec(factory=partial(TrialWorker, job), count=None, name="probe")
    with executor(config) as engine:
        through_tune = partial(probe_stage.fan_out, run, job, trials, _silent)
        plainly = partial(engine.run, trials, spec)
        one, other = _pairs(lambda: _timed(through_tune), lambda: _timed(plainly), pairs=1)
    return [
        _row("tune_over_inprocess", one, other, "Ray Tune", "plain actors"),
        {"what": "grid_seconds", "ratio": one, "of": "the grid through Tune", "to": "1 s", "seconds": [one]},
    ]


class TrialWorker:
    """Fits trials without Tune."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def __call__(self, trial: Any) -> dict[str, Any]:
        from sweeps.probe_work import fit_trial

        return fit_trial(self.job, trial)


def _silent(done: int, total: int) -> None:
    """No progress while measuring."""
