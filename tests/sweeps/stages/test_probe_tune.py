"""The border to Ray Tune: its errors as one line, and trials that it gives to a node without the output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import TaskDone, WorkerFailed, WorkerLost
from storage import LeaseHeld
from sweeps.stages import probe_tune

ROOT = Path(__file__).parents[3]


class Broken:
    """A tuner that ends with an error of Tune, as it wraps what went wrong inside its loop."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause

    def fit(self) -> None:
        from ray.tune.error import TuneError

        try:
            raise self.cause
        except Exception as cause:
            raise TuneError("The Ray Tune run failed. Please inspect\nthe previous error messages") from cause


def test_an_error_of_tune_is_one_line() -> None:
    with pytest.raises(WorkerFailed, match="Ray Tune ended: RuntimeError: no placement group") as raised:
        probe_tune._fitted(Broken(RuntimeError("no placement\ngroup")))  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("cause", [LeaseHeld("s3://b/run: another run writes it"), ValueError("wrong")])
def test_what_is_no_fault_of_tune_s_stays_what_it_is(cause: Exception) -> None:
    with pytest.raises(type(cause)) as raised:
        probe_tune._fitted(Broken(cause))  # type: ignore[arg-type]
    assert raised.value is cause


def test_a_node_that_is_left_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []

    class Ended:
        config = {"trial": "probe-a"}  # noqa: RUF012
        last_result = {"cells": 3, "fit_seconds": 1.0, "left_out": "/shared/run is another folder there"}  # noqa: RUF012

        def __str__(self) -> str:
            return "probe-a"

    class Named:
        name, key = "probe-a", "probe/a"

    probe_tune.TrialEvents([Named()], [events.append]).on_trial_complete(1, [], Ended())  # type: ignore[list-item, arg-type]
    assert WorkerLost("probe-a", "its node is left out: /shared/run is another folder there") in events
    assert [event.key for event in events if isinstance(event, TaskDone)] == ["probe/a"]


SCRIPT = """
import json, sys
from dataclasses import replace

import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import storage
from storage.lease import held_tokens
from support.tiny_runs import configured
from sweeps.runtime.grid import pack, probe_specs
from sweeps.runtime.run import reopen
from sweeps.stages import probe, probe_tune

pipeline, output, shared, other = sys.argv[1:]
config = configured(pipeline, output)
run = reopen(config)
trial = pack(probe_specs(config.sweep, config.sampling.variants, run.sites)[:1], ["variant"])[0]
job = replace(probe.job(run), dry=True)
cluster = Cluster()
try:
    cluster.add_node(num_cpus=1, env_vars={"HOME": shared}, include_dashboard=False)
    cluster.add_node(num_cpus=1, env_vars={"HOME": other})
    ray.init(address=cluster.address, log_to_driver=False)
    with storage.open(output).lease("test"):
        (token,) = held_tokens().values()
        settings = {"job": job, "trials": {"t": trial}, "trial": "t", "leases": {"~/run": token}}
        results = []
        for node in ray.nodes():
            on = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            fit = ray.remote(probe_tune.run_trial).options(num_cpus=1, scheduling_strategy=on)
            results.append(ray.get(fit.remote(settings), timeout=120))
    print(json.dumps(results))
finally:
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.slow
def test_a_trial_on_a_node_without_the_output_is_fitted_on_another(
    finished: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    """`~/run` is the output on one node, and nothing on the other, whose home is another."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "shared" / "run").symlink_to(finished)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "RAY_AUTH_MODE": "disabled"}
    words = [str(tiny_pipeline), str(finished), str(tmp_path / "shared"), str(tmp_path / "other")]
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    results = json.loads(ran.stdout.splitlines()[-1])
    assert [one["cells"] for one in results] == [1, 1]
    assert sorted(one.get("left_out", "") for one in results) == ["", "~/run is another folder there"]
