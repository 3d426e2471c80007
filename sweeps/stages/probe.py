"""The probe stage: fits all missing probes of the grid and of the experiments that consist of probes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cluster import Executor, Observer, Outcome, Progress
from probing.scoring import targets
from storage import LeaseHeld
from sweeps.config.schema import GRID
from sweeps.runtime import experiments
from sweeps.runtime.grid import ProbeSpec, Trial, finished, pack, probe_specs
from sweeps.runtime.live_status import LiveStatus
from sweeps.runtime.run import Run
from sweeps.stages import curate, decode, replay
from sweeps.stages.base import PlanInput, StageInfo, StagePrice, StageStatus, StatusRow, next_attempt
from sweeps.stages.probe_trial import ProbeJob, fit_trial

INFO = StageInfo("probe", verb="probe", doing="probing", unit="trials", tasks="probes", cost="probe")
STAGE = INFO.name


def _requested(run: Run) -> list[ProbeSpec]:
    grid = probe_specs(run.config.sweep, run.config.sampling.variants, run.sites)
    return [*grid, *experiments.probe_specs(run.config, run.model_info)]


def missing(run: Run) -> list[ProbeSpec]:
    """Return the probes of the grid and of the experiments without a finished row of the current settings."""
    done = finished(run.store, GRID, run.hashes.probe)
    grid = probe_specs(run.config.sweep, run.config.sampling.variants, run.sites)
    return [*(probe for probe in grid if probe not in done), *experiments.missing(run)]


def standardisation(run: Run, samples: np.ndarray, train: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation for standardising depth: given, or those of the training split."""
    labels = run.config.labels
    if labels.depth_deviation > 0:
        return labels.depth_mean, labels.depth_deviation
    return targets.standardisation(run.store.read_labels("depth", samples[train].tolist()))


def job(run: Run) -> ProbeJob:
    """Return what all trials of the grid share. Raises ValueError if the samples are not curated yet."""
    samples, split = curate.kept(run)
    mean, std = standardisation(run, samples, split.train)
    return ProbeJob(
        output=run.config.output,
        experiment=GRID,
        stage_hash=run.hashes.probe,
        curate_hash=run.hashes.curate,
        probe=run.config.probe,
        sites=run.sites,
        samples=tuple(samples.tolist()),
        split=split,
        threshold=run.config.labels.threshold,
        depth_mean=mean,
        depth_std=std,
        attempt=next_attempt(run.store, "probes"),
        device=run.config.model.device if run.config.ray.probe_gpus else "cpu",
        gpus=run.config.ray.probe_gpus,
        decoded=decode.url(run.config.output),
    )


def experiment_job(run: Run, main: ProbeJob, name: str) -> ProbeJob:
    """Return the job of an experiment beside the main grid."""
    family = run.model_info.families.get(name)
    return replace(
        main,
        experiment=name,
        stage_hash=experiments.stage_hash(run, name),
        probe=experiments.probe_config(run, name),
        sites=family or run.sites,
        activations=replay.url(run.config.output) if family else "",
        folder=f"experiments/{name}/",
    )


def execute(run: Run, executor: Executor, observers: Sequence[Observer], tasks: Sequence[ProbeSpec]) -> Outcome:
    """Fit the given probes in trials, through Ray Tune unless the run does without Ray.

    The outcome holds a result for each fitted probe, and a reason for each failed probe and trial.
    """
    main = job(run)
    names = dict.fromkeys(probe.experiment for probe in tasks if probe.experiment != GRID)
    shared = replace(main, experiments=tuple(experiment_job(run, main, name) for name in names))
    trials = pack(tasks, run.config.sweep.trial_axes)
    if run.config.ray.address == "none":
        errors = fit_here(shared, trials, observers)
    else:
        from sweeps.stages.probe_tune import fan_out

        errors = fan_out(run.config, shared, trials, observers)
    left = set(missing(run)) & set(tasks)
    if left:
        errors |= failed_rows(run)
        errors = errors or {STAGE: "stopped before every trial had ended"}
    return Outcome({probe.key: {} for probe in tasks if probe not in left}, errors, {})


def failed_rows(run: Run) -> dict[str, str]:
    """Return the reasons of probes whose row of the current settings has status `failed`."""
    names = [name for name in experiments.PROBED if experiments.requested(run.config, name)]
    hashes = {GRID: run.hashes.probe} | {name: experiments.stage_hash(run, name) for name in names}
    rows = run.store.table("probes", list(hashes.values())).to_pylist()
    return {
        f"{row['experiment']}/{row['variant']}/{row['site']}/{row['step']}/{row['task']}": row["error"]
        for row in rows
        if row["status"] == "failed" and row["experiment"] in hashes
    }


def fit_here(job: ProbeJob, trials: Sequence[Trial], observers: Sequence[Observer]) -> dict[str, str]:
    """Fit trials one after another in this process; return trial to error of those that failed."""
    from cluster.process import pinned_threads

    errors: dict[str, str] = {}
    with pinned_threads(1):
        for number, trial in enumerate(trials, start=1):
            try:
                fit_trial(job, trial)
            except LeaseHeld:
                raise
            except Exception as error:  # one broken trial must not stop the others
                errors[trial.key] = f"{type(error).__name__}: {error}"
            for observer in observers:
                observer(Progress(number - len(errors), len(errors), 0, len(trials)))
    return errors


def status(run: Run, live: LiveStatus) -> StageStatus:
    """Return one row for the grid and one for each experiment that consists of probes."""
    total = Counter(probe.experiment for probe in _requested(run))
    left = Counter(probe.experiment for probe in missing(run))
    failed = failed_rows(run)
    failures = Counter(key.partition("/")[0] for key in failed)
    rows = [
        StatusRow(
            "probing" if name == GRID else f"  {name}",
            "probes",
            done=count - left[name],
            total=count,
            failed=failures[name],
        )
        for name, count in total.items()
    ]
    return StageStatus(rows, {f"{STAGE}/{key}": reason for key, reason in failed.items()})


def prices(plan: PlanInput) -> list[StagePrice]:
    """Return the number of probes of the grid and of each experiment that consists of probes."""
    config, sites = plan.config, plan.sites
    grid = len(probe_specs(config.sweep, config.sampling.variants, sites))
    counts = Counter(probe.experiment for probe in experiments.probe_specs(config, plan.model_info))
    return [
        StagePrice("probing", f"{grid} probes"),
        *(StagePrice(f"probing: {name}", f"{count} probes") for name, count in counts.items()),
    ]
