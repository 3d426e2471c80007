"""Runs probe trials through Ray Tune."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.error import TuneError
from ray.util.scheduling_strategies import NodeLabelSchedulingStrategy, NotIn

import storage
from cluster import (
    Event,
    Observer,
    Progress,
    TaskDone,
    TaskFailed,
    TaskStarted,
    WorkerFailed,
    WorkerLost,
    WorkerSpec,
    resources,
)
from cluster.observers.combined import watchers
from cluster.process import pinned_threads, process_title, temporary_environment
from cluster.workers import Worker, one_line
from storage import LeaseHeld
from storage.lease import follow, held_tokens, unshared
from sweeps.config.schema import Config
from sweeps.runtime import machines
from sweeps.runtime.grid import Trial, finished
from sweeps.stages.probe_trial import ProbeJob, fit_trial

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

STAGE = "probe"
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Tune without loggers, checkpoints and output of its own: results are in our tables"""


def fan_out(config: Config, job: ProbeJob, trials: Sequence[Trial], observers: Sequence[Observer]) -> dict[str, str]:
    """Run trials through Ray Tune; return trial to error of those that failed."""
    gpus = config.ray.probe_gpus
    slots = min(len(trials), resources.room(WorkerSpec(_unused_factory, num_gpus=gpus, name=STAGE)))
    by_name = {trial.name: trial for trial in trials}
    assert len(by_name) == len(trials), "two trials have the same name"
    counting = [] if job.dry else machines.observers(job.output, STAGE)
    callback = TrialEvents(trials, [*observers, *watchers(config.name, STAGE), *counting])
    environment = QUIET | {"TUNE_MAX_PENDING_TRIALS_PG": str(slots + 2)}  # no more pending trials than can run
    with temporary_environment(environment), tempfile.TemporaryDirectory(prefix="scenesweep-tune-") as scratch:
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        shared = ray.put({"job": job, "trials": by_name, "leases": held_tokens()})

        def fit(settings: dict[str, Any]) -> dict[str, Any]:
            return run_trial(settings | ray.get(shared))

        fit.__name__ = STAGE  # the name of its actors in Ray's dashboard
        tuner = tune.Tuner(
            tune.with_resources(fit, {"cpu": 1, "gpu": gpus} if gpus else {"cpu": 1}),
            param_space={"trial": tune.grid_search(list(by_name))},
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                max_concurrent_trials=slots,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="probes",
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=1),
                callbacks=[callback],
            ),
        )
        results = _fitted(tuner)
    errors = {}
    for result in (results[i] for i in range(len(results))):
        if result.error is not None:
            key = by_name[result.config["trial"]].key if result.config else "trial"
            errors[key] = str(result.error).strip().splitlines()[-1]
    return errors


def _fitted(tuner: tune.Tuner) -> tune.ResultGrid:
    """Run Tune. Raises WorkerFailed with one line for an error of Tune or Ray beyond the trials."""
    try:
        return tuner.fit()
    except (TuneError, RayError) as error:
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
            causes.append(cause)
        for cause in causes:  # the lease is lost, or an observer found the input wrong
            if isinstance(cause, LeaseHeld | ValueError):
                raise cause from None
        raise WorkerFailed(f"Ray Tune ended: {one_line(causes[-1])}") from error


def run_trial(settings: dict[str, Any]) -> dict[str, Any]:
    """Fit one Tune trial, in an actor that Tune reuses for the next one."""
    job, trial = settings["job"], settings["trials"][settings["trial"]]
    follow(settings["leases"])
    if problem := unshared(settings["leases"]):
        return _elsewhere(settings, problem)
    name = trial.name  # before probes are left out, perhaps all of them
    if settings.get("again"):
        # An earlier attempt at this trial was lost; leave out the probes that it finished.
        own = job.of(trial.experiment)
        done = finished(storage.open(own.output), own.experiment, own.stage_hash)
        trial = replace(trial, probes=tuple(probe for probe in trial.probes if probe not in done))
    with pinned_threads(1), process_title(name):
        result = fit_trial(job, trial)
    return {"cells": result["cells"], "failed": result["failed"], "fit_seconds": result["seconds"]}


def _elsewhere(settings: dict[str, Any], problem: str) -> dict[str, Any]:
    """Fit a trial on another node than this one, which does not share the output; `problem` says why.

    A node can join after the check of a shared output, and Tune can't leave it out. The trial keeps its place on this
    node meanwhile, so that Tune gives the place to no other. Raises ValueError if no other node can hold it.
    """
    avoided = (*settings.get("avoided", ()), ray.get_runtime_context().get_node_id())
    gpus = settings["job"].gpus
    spec = WorkerSpec(_unused_factory, num_gpus=gpus, name=STAGE)
    try:
        resources.check_fits(spec, without=avoided)
    except ValueError as error:
        raise ValueError(f"{problem}, and no other node is free of that: {error}") from None
    elsewhere = NodeLabelSchedulingStrategy({"ray.io/node-id": NotIn(*avoided)})
    remote = ray.remote(run_trial).options(num_cpus=1, num_gpus=gpus, scheduling_strategy=elsewhere)
    return ray.get(remote.remote(settings | {"avoided": avoided})) | {"left_out": problem}


def _unused_factory() -> Worker:
    raise AssertionError("Tune builds the trials' workers; this spec only serves to ask how many fit the cluster")


def _trial_name(trial: TuneTrial) -> str:
    """Return the name of a Tune trial and of its folder; at module level, since Tune pickles it with every trial."""
    return trial.config["trial"]


class TrialEvents(tune.Callback):
    """Passes the start and end of trials to observers."""

    def __init__(self, trials: Sequence[Trial], observers: Sequence[Observer]) -> None:
        self.keys, self.observers = {trial.name: trial.key for trial in trials}, observers
        self.done = self.failed = self.running = 0

    def __getstate__(self) -> dict[str, object]:
        # Tune pickles its callbacks with the experiment's state; observers hold a terminal and an open store.
        return self.__dict__ | {"observers": []}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        self.running += 1
        self._emit(TaskStarted(self._key(trial), _attempt(trial), str(trial)))

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        self.done, self.running = self.done + 1, self.running - 1
        last = trial.last_result or {}
        if problem := last.get("left_out"):
            self._emit(WorkerLost(str(trial), f"its node is left out: {problem}"))
        counts = {"cells": last.get("cells", 0)}
        self._emit(TaskDone(self._key(trial), _attempt(trial), last.get("fit_seconds", 0.0), counts))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        self.failed, self.running = self.failed + 1, self.running - 1
        self._emit(TaskFailed(self._key(trial), _attempt(trial), 0.0, "see the end of the run", final=True))

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        # Its actor or node is gone; the next attempt leaves out what this one finished.
        self.running -= 1
        trial.config["again"] = trial.config.get("again", 0) + 1
        self._emit(TaskFailed(self._key(trial), trial.config["again"], 0.0, "its actor or node is gone"))

    def _emit(self, event: Event) -> None:
        progress = Progress(self.done, self.failed, self.running, len(self.keys))
        for observer in self.observers:
            observer(event)
            observer(progress)

    def _key(self, trial: TuneTrial) -> str:
        return self.keys[trial.config["trial"]]


def _attempt(trial: TuneTrial) -> int:
    return 1 + trial.config.get("again", 0)
