"""Sampling whose workers, nodes or driver get SIGKILL at seeded moments ends with the bytes of an undisturbed run.

CHAOS_MOMENTS is the number of moments of each kind (default 3): CHAOS_MOMENTS=20 pytest -m chaos FILE
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from support import cluster_fakes, sweep_chaos
from support.tiny_runs import SMALL, configured
from sweeps import pipeline
from sweeps.stages import sample

pytestmark = pytest.mark.chaos

MOMENTS = int(os.environ.get("CHAOS_MOMENTS", "3"))
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # a busy machine would starve the workers, and start nodes late
    "RAY_raylet_start_wait_time_s": "180",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def undisturbed(sampled: Path) -> dict[str, str]:
    """Hashes of the undisturbed run, made in this process without Ray."""
    found = sweep_chaos.digests(sampled)
    assert len([path for path in found if path.startswith("shards/")]) == sweep_chaos.SHARDS
    return found


def job(**what: Any) -> dict[str, Any]:
    return cluster_fakes.apart(sweep_chaos.SCRIPT, json.dumps(what), **ENVIRONMENT)


def lines(**what: Any) -> list[dict[str, Any]]:
    done = subprocess.run(**job(**what), capture_output=True, timeout=300 * MOMENTS + 600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


NODES = pytest.mark.skipif(os.environ.get("CHAOS_NODES") != "1", reason="several Ray nodes here: set CHAOS_NODES=1")


@pytest.mark.parametrize("kind", ["worker", pytest.param("raylet", marks=NODES)])
def test_killed_workers_and_nodes_leave_the_undisturbed_bytes(kind, undisturbed, tiny_pipeline, tmp_path):
    seeds = [300 + moment for moment in range(MOMENTS)]
    words = [*SMALL, f"model.name={tiny_pipeline}"]
    moments = lines(kind=kind, folder=str(tmp_path), seeds=seeds, words=words)
    assert [moment["seed"] for moment in moments] == seeds
    for moment in moments:
        assert moment["killed"], moment
        assert not moment["failed_again"], moment
        assert sweep_chaos.problems(tmp_path / str(moment["seed"]), undisturbed, moment["before"]) == [], moment["seed"]


@pytest.mark.parametrize("seed", [400 + moment for moment in range(MOMENTS)])
def test_killed_drivers_on_ray_resume_to_the_undisturbed_bytes(seed, undisturbed, tiny_pipeline, tmp_path):
    output = tmp_path / "out"
    ray = ["ray.address=local", "ray.num_cpus=2", "ray.sampling_actors=2"]
    what = job(kind="run", words=[*SMALL, f"model.name={tiny_pipeline}", f"output={output}", *ray])
    rng = random.Random(seed)
    goal, delay = rng.randint(0, sweep_chaos.SHARDS - 2), rng.uniform(0, sweep_chaos.DELAY_S)
    driver = subprocess.Popen(**what, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 900
    while len(sweep_chaos.records(output)) < goal or not (output / "layout.json").exists():
        assert time.monotonic() < until, "the driver makes no progress"
        time.sleep(0.01)
    time.sleep(delay)
    below = cluster_fakes.holders(driver.pid)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    while any(Path(f"/proc/{pid}").exists() for pid in below):
        assert time.monotonic() < until, "processes outlive the driver"
        time.sleep(0.05)

    before = sweep_chaos.complete(output)
    again = subprocess.run(**what, capture_output=True, timeout=600, check=False)
    assert again.returncode == 0, again.stderr[-4000:]
    assert json.loads(again.stdout.splitlines()[-1]) == {"failed": {}}
    assert sweep_chaos.problems(output, undisturbed, before) == []


@pytest.fixture
def interrupted(sampled: Path, tmp_path: Path) -> Path:
    """A run that was killed: four shards without records, one of them half written."""
    output = tmp_path / "interrupted"
    shutil.copytree(sampled, output)
    for path in sorted(sweep_chaos.records(output))[2:]:
        path.unlink()
    shutil.rmtree(output / "activations.zarr" / "trained" / "mid.0" / "activations" / "c" / "2")
    return output


def test_the_check_accepts_a_resumed_run(interrupted, undisturbed, tiny_pipeline):
    before = sweep_chaos.complete(interrupted)
    assert len(before) > 2 * 15 * 16
    assert "lost" in str(sweep_chaos.problems(interrupted, undisturbed, before))
    pipeline.execute(configured(tiny_pipeline, interrupted), ("sample",))
    assert sweep_chaos.problems(interrupted, undisturbed, before) == []


def test_the_check_fails_when_resume_is_switched_off(interrupted, undisturbed, tiny_pipeline, monkeypatch):
    def everything(run):
        return [sample.SampleTask(v, s) for v in ("trained", "random") for s in range(run.store.layout.shards)]

    before = sweep_chaos.complete(interrupted)
    monkeypatch.setattr(sample, "missing", everything)
    pipeline.execute(configured(tiny_pipeline, interrupted), ("sample",))
    found = sweep_chaos.problems(interrupted, undisturbed, before)
    assert {problem.partition(":")[0] for problem in found} == {"redone"}
    assert len(found) == len(before)


def test_the_check_sees_a_flipped_bit(interrupted, undisturbed, tiny_pipeline):
    pipeline.execute(configured(tiny_pipeline, interrupted), ("sample",))
    chunk = interrupted / "latents.zarr" / "random" / "x0" / "c" / "1" / "7" / "0" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[5] ^= 4
    chunk.write_bytes(bytes(data))
    kinds = {problem.partition(":")[0] for problem in sweep_chaos.problems(interrupted, undisturbed, {})}
    assert kinds == {"other bytes", "checksum"}


def test_one_two_and_four_actors_give_the_same_bytes(undisturbed, tiny_pipeline, tmp_path):
    words = [*SMALL, f"model.name={tiny_pipeline}"]
    found = lines(kind="actors", counts=[1, 2, 4], folder=str(tmp_path), words=words)
    assert [line["failed"] for line in found] == [{}, {}, {}]
    one, *more = (line["used"] for line in found)
    assert one == 1
    assert min(more) >= 2, found
    for count in (1, 2, 4):
        assert sweep_chaos.problems(tmp_path / str(count), undisturbed, {}) == []
