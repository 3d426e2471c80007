"""The probe stage: Ray Tune fans the cells out in trials; finished cells are never fitted again."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.workers import pinned_threads
from sweeps import curate_stage
from sweeps.grid import Cell, Trial, cells, finished, pack
from sweeps.probe_work import ProbeJob, attempt_of, fit_trial
from sweeps.run import Run

STAGE = "probe"
Notice = Callable[[int, int], None]
"""(finished trials, all trials)"""


@dataclass(frozen=True)
class Fitted:
    """How a probe stage ended."""

    done: int
    """cells fitted now"""
    failed: dict[str, str]
    """trial or cell -> reason"""


def missing(run: Run) -> list[Cell]:
    """Cells of the grid without a finished row of the present settings."""
    sweep = run.config.sweep
    have = finished(run.store, sweep.experiment, run.hashes.probe)
    return [c for c in cells(sweep, run.config.sampling.variants, run.sites) if c not in have]


def standardisation(run: Run, samples: np.ndarray, train: np.ndarray) -> tuple[float, float]:
    """Mean and deviation that standardise depth: given, or those of the training split."""
    labels = run.config.labels
    if labels.depth_deviation > 0:
        return labels.depth_mean, labels.depth_deviation
    depth = run.store.read_labels("depth", samples[train].tolist()).astype(np.float64)
    return float(depth.mean()), float(max(depth.std(), 1e-6))


def job(run: Run) -> ProbeJob:
    """What all trials share."""
    samples, split = curate_stage.kept(run)
    mean, deviation = standardisation(run, samples, split.train)
    return ProbeJob(
        output=run.config.output,
        experiment=run.config.sweep.experiment,
        stage_hash=run.hashes.probe,
        curate_hash=run.hashes.curate,
        probe=run.config.probe,
        sites=run.sites,
        samples=tuple(samples.tolist()),
        split=split,
        threshold=run.config.labels.threshold,
        depth_mean=mean,
        depth_deviation=deviation,
        attempt=attempt_of(run.store),
        device=run.config.model.device if run.config.ray.probe_gpus else "cpu",
        gpus=run.config.ray.probe_gpus,
    )


def work(run: Run, wanted: Sequence[Cell], notice: Notice, *, ray: bool) -> Fitted:
    """Fits the given cells."""
    trials = pack(wanted, run.config.sweep.trial_axes)
    shared = job(run)
    if ray:
        errors = fan_out(run, shared, trials, notice)
    else:
        errors = _here(shared, trials, notice)
    left = set(missing(run)) & set(wanted)
    return Fitted(len(wanted) - len(left), errors | _cell_errors(run, left))


def _cell_errors(run: Run, left: set[Cell]) -> dict[str, str]:
    """Reasons of cells whose row says failed."""
    rows = run.store.table("probes", run.hashes.probe).to_pylist() if left else []
    return {
        f"{row['variant']}/{row['site']}/{row['step']}/{row['task']}": row["error"]
        for row in rows
        if row["status"] == "failed"
    }


def _here(shared: ProbeJob, trials: Sequence[Trial], notice: Notice) -> dict[str, str]:
    errors = {}
    with pinned_threads(1):
        for number, trial in enumerate(trials, start=1):
            try:
                fit_trial(shared, trial)
            except Exception as error:  # one broken trial must not stop the others
                errors[trial.key] = f"{type(error).__name__}: {error}"
            notice(number, len(trials))
    return errors


@contextmanager
def _tune_environment(slots: int):
    """Tune without its own loggers and with as many pending trials as can run."""
    wanted = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_MAX_PENDING_TRIALS_PG": str(slots + 2),
        "TUNE_GLOBAL_CHECKPOINT_S": "600",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _trainable(config: dict[str, Any]) -> dict[str, Any]:
    """One Tune trial, in an actor that Tune reuses for the next."""
    with pinned_threads(1):
        found = fit_trial(config["job"], config["trials"][config["trial"]])
    return {"cells": found["cells"], "failed": found["failed"], "fit_seconds": found["seconds"]}


def _slots(gpus: float) -> int:
    import ray

    has = ray.cluster_resources()
    return max(1, int(has.get("GPU", 0) / gpus) if gpus else int(has.get("CPU", 1)))


def fan_out(run: Run, shared: ProbeJob, trials: Sequence[Trial], notice: Notice) -> dict[str, str]:
    """Runs trials through Ray Tune; trial -> error of those that failed."""
    import ray
    from ray import tune

    gpus, slots = run.config.ray.probe_gpus, 0
    slots = _slots(gpus)
    with _tune_environment(slots), tempfile.TemporaryDirectory(prefix="scenesweep-tune-") as scratch:
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        references = ray.put({"job": shared, "trials": list(trials)})

        def fit(config: dict[str, Any]) -> dict[str, Any]:
            return _trainable(config | ray.get(references))

        fit.__name__ = "probe"
        resources = {"cpu": 1, "gpu": gpus} if gpus else {"cpu": 1}
        tuner = tune.Tuner(
            tune.with_resources(fit, resources),
            param_space={"trial": tune.grid_search(list(range(len(trials))))},
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                max_concurrent_trials=slots,
                trial_name_creator=lambda trial: f"probe-{trial.config['trial']:03d}",
                trial_dirname_creator=lambda trial: f"probe-{trial.config['trial']:03d}",
            ),
            run_config=tune.RunConfig(
                name="probes",
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=1),
                callbacks=[_counter(len(trials), notice)],
            ),
        )
        results = tuner.fit()
    errors = {}
    for result in results:
        if result.error is not None:
            key = trials[result.config["trial"]].key if result.config else "trial"
            errors[key] = str(result.error).strip().splitlines()[-1]
    return errors


def _counter(total: int, notice: Notice) -> Any:
    from ray.tune import Callback

    class Counter(Callback):
        """Counts trials that ended."""

        ended = 0

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.ended += 1
            notice(self.ended, total)

        on_trial_error = on_trial_complete

    return Counter()
