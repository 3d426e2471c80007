"""The probe grid of a finished run through Ray Tune, against plain actors."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from cluster import WorkerSpec
from sweeps.bench.paired import Row, row, timed_pairs
from sweeps.pipeline import executor
from sweeps.runtime.grid import Trial, pack, probe_specs
from sweeps.runtime.progress import Display
from sweeps.runtime.run import model_info, reopen, stored_config
from sweeps.stages import probe
from sweeps.stages.probe_trial import ProbeJob, fit_trial
from sweeps.stages.probe_tune import fan_out


class TrialWorker:
    """Fits trials without Tune."""

    def __init__(self, job: ProbeJob) -> None:
        self.job = job

    def __call__(self, trial: Trial) -> dict[str, float]:
        return fit_trial(self.job, trial)


def bench_tune(output: str = "runs/scenes") -> list[Row]:
    """Rows `tune_over_inprocess` and `grid_seconds`. Reads the finished run at `output`, writes nothing."""
    config = stored_config(output)
    run = reopen(config, model_info(config))
    trials = pack(probe_specs(config.sweep, config.sampling.variants, run.sites), config.sweep.trial_axes)
    job = replace(probe.job(run), dry=True)
    spec = WorkerSpec(factory=partial(TrialWorker, job), count=None, name="probe")
    with executor(config, Display()) as engine:
        timed = timed_pairs(lambda: fan_out(config, job, trials, ()), lambda: engine.run(trials, spec), 1)
    return [
        row("tune_over_inprocess", "Ray Tune", "plain actors", timed),
        row("grid_seconds", "the grid through Tune", "1 s", [(through_tune, 1.0) for through_tune, _ in timed]),
    ]
