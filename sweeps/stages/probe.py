"""The probe stage: Ray Tune fans the cells out in trials; finished cells are never fitted again."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

import storage
from cluster import Event, Observer, Progress, TaskDone, TaskFailed, TaskStarted, WorkerSpec
from cluster.observers.combined import watchers
from cluster.workers import Worker, pinned_threads, process_title
from sweeps.config.schema import GRID
from sweeps.runtime import machines
from sweeps.runtime.grid import Cell, Trial, cells, finished, pack
from sweeps.runtime.run import Run
from sweeps.stages import curate, decode, replay
from sweeps.stages.experiments import registry
from sweeps.stages.probe_trial import ProbeJob, attempt_of, fit_trial

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
    have = finished(run.store, GRID, run.hashes.probe)
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
    samples, split = curate.kept(run)
    mean, deviation = standardisation(run, samples, split.train)
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
        depth_deviation=deviation,
        attempt=attempt_of(run.store),
        device=run.config.model.device if run.config.ray.probe_gpus else "cpu",
        gpus=run.config.ray.probe_gpus,
        decoded=decode.url(run.config.output),
    )


def experiment_job(run: Run, main: ProbeJob, name: str) -> ProbeJob:
    """The job of an experiment beside the main grid."""
    sites = run.facts.families.get(name)
    return replace(
        main,
        experiment=name,
        stage_hash=registry.stage_hash(run, name),
        probe=registry.probe_config(run, name),
        sites=sites or run.sites,
        activations=replay.url(run.config.output) if sites else "",
        folder=f"experiments/{name}/",
    )


def work(
    run: Run,
    wanted: Sequence[Cell],
    notice: Notice,
    *,
    ray: bool,
    further: Mapping[str, Sequence[Cell]] = MappingProxyType({}),
) -> Fitted:
    """Fits the given cells of the grid and, by experiment, further ones; all in one fan-out."""
    axes = run.config.sweep.trial_axes
    main = job(run)
    shared = replace(main, further=tuple(experiment_job(run, main, name) for name in further))
    trials = pack(wanted, axes)
    for name, cells_ in further.items():
        trials += pack(cells_, axes, name)
    if ray:
        errors = fan_out(run, shared, trials, notice)
    else:
        errors = _here(shared, trials, notice)
    left = {("", cell) for cell in set(missing(run)) & set(wanted)}
    still = registry.missing(run) if further else {}
    left |= {(name, cell) for name, cells_ in still.items() for cell in cells_}
    asked = len(wanted) + sum(map(len, further.values()))
    hashes = [run.hashes.probe, *(one.stage_hash for one in shared.further)]
    return Fitted(asked - len(left), errors | (cell_errors(run, hashes) if left else {}))


def cell_errors(run: Run, hashes: Sequence[str]) -> dict[str, str]:
    """Reasons of cells whose row says failed."""
    rows = run.store.table("probes", hashes).to_pylist()
    return {
        f"{row['experiment']}/{row['variant']}/{row['site']}/{row['step']}/{row['task']}": row["error"]
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
    job, trial = config["job"], config["trials"][config["trial"]]
    left = _unfinished(job, trial) if config.get("again") else trial
    with pinned_threads(1), process_title(trial.name):
        found = fit_trial(job, left)
    return {"cells": found["cells"], "failed": found["failed"], "fit_seconds": found["seconds"]}


def _unmade() -> Worker:
    raise AssertionError("Tune makes the trials' workers; the cluster is only asked how many it holds")


def _unfinished(job: ProbeJob, trial: Trial) -> Trial:
    """A trial without the cells that have a row already."""
    mine = job.of(trial.experiment)
    have = finished(storage.open(mine.output), mine.experiment, mine.stage_hash)
    return replace(trial, cells=tuple(cell for cell in trial.cells if cell not in have))


def fan_out(run: Run, shared: ProbeJob, trials: Sequence[Trial], notice: Notice) -> dict[str, str]:
    """Runs trials through Ray Tune; trial -> error of those that failed."""
    import ray
    from ray import tune

    from cluster import resources

    gpus = run.config.ray.probe_gpus
    slots = min(len(trials), resources.room(WorkerSpec(_unmade, num_gpus=gpus, name=STAGE)))
    by_name = {trial.name: trial for trial in trials}
    assert len(by_name) == len(trials), "two trials with one name"
    counts = [] if shared.dry else machines.observers(shared.output, STAGE)
    with _tune_environment(slots), tempfile.TemporaryDirectory(prefix="scenesweep-tune-") as scratch:
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        references = ray.put({"job": shared, "trials": by_name})

        def fit(config: dict[str, Any]) -> dict[str, Any]:
            return _trainable(config | ray.get(references))

        fit.__name__ = STAGE  # what its actors are called in Ray's dashboard
        tuner = tune.Tuner(
            tune.with_resources(fit, {"cpu": 1, "gpu": gpus} if gpus else {"cpu": 1}),
            param_space={"trial": tune.grid_search(list(by_name))},
            tune_config=tune.TuneConfig(
                reuse_actors=True, max_concurrent_trials=slots, trial_name_creator=_name, trial_dirname_creator=_name
            ),
            run_config=tune.RunConfig(
                name="probes",
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=1),
                callbacks=[_counter(trials, notice, [*watchers(run.config.name, STAGE), *counts])],
            ),
        )
        results = tuner.fit()
    errors = {}
    for result in (results[i] for i in range(len(results))):
        if result.error is not None:
            key = by_name[result.config["trial"]].key if result.config else "trial"
            errors[key] = str(result.error).strip().splitlines()[-1]
    return errors


def _counter(trials: Sequence[Trial], notice: Notice, observers: Sequence[Observer]) -> Any:
    """Tells progress and observers of trials that start and end."""
    from ray.tune import Callback

    class Counter(Callback):
        """Counts trials that ended."""

        ended, failed, running = 0, 0, 0

        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.running += 1
            self._tell(TaskStarted(_key(trial), _attempt(trial), str(trial)))

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.ended, self.running = self.ended + 1, self.running - 1
            last = trial.last_result or {}
            seconds = last.get("fit_seconds", 0.0)
            self._tell(TaskDone(_key(trial), _attempt(trial), seconds, {"cells": last.get("cells", 0)}))
            notice(self.ended + self.failed, total)

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.failed, self.running = self.failed + 1, self.running - 1
            self._tell(TaskFailed(_key(trial), _attempt(trial), 0.0, "see the run's end", final=True))
            notice(self.ended + self.failed, total)

        def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            # Its actor or node went; the next one leaves out what this one finished.
            self.running -= 1
            trial.config["again"] = trial.config.get("again", 0) + 1
            self._tell(TaskFailed(_key(trial), trial.config["again"], 0.0, "its actor or node went"))

        def _tell(self, event: Event) -> None:
            progress = Progress(self.ended, self.failed, self.running, total)
            for observer in observers:
                observer(event)
                observer(progress)

    total, keys = len(trials), {trial.name: trial.key for trial in trials}

    def _key(trial: Any) -> str:
        return keys[trial.config["trial"]]

    return Counter()


def _name(trial: Any) -> str:
    """Of a Tune trial and its folder; at the module's top, as Tune pickles it with every trial."""
    return trial.config["trial"]


def _attempt(trial: Any) -> int:
    return 1 + trial.config.get("again", 0)
