"""Memory of a sampling actor does not grow with the number of shards."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import TaskDone, WorkerSpec
from storage import Layout, SiteShape, Store
from support.tiny_runs import configured
from sweeps.config.schema import Config
from sweeps.runtime import run
from sweeps.stages import sample
from sweeps.stages.sample import SampleTask

SHARDS = int(os.environ.get("MEMORY_SHARDS", "125"))
SAMPLES = 4
"""samples in a shard"""
STEPS = 2
ROOM = 25_000_000
"""bytes by which allocators may vary; less than half of what is recorded in total"""


def resident() -> int:
    return psutil.Process().memory_info().rss


def measured(worker: Callable[[SampleTask], dict[str, Any]], task: SampleTask) -> dict[str, Any]:
    return {**worker(task), "resident": resident()}


def build(config: Config) -> Callable[[SampleTask], dict[str, Any]]:
    return partial(measured, sample.SampleWorker(config, ""))


def store_of(config: Config) -> Store:
    """A new store of `SHARDS` shards for the trained variant."""
    found = run.model_info(config)
    sites = tuple(SiteShape(site.name, site.tokens, site.channels) for site in found.sites)
    layout = Layout(SHARDS * SAMPLES, SAMPLES, ("trained",), sites, STEPS, found.image, found.latent)
    store = Store.create(config.output, layout)
    rows = ({"sample": i, "prompt": "a red box", "seed": i, "shard": i // SAMPLES} for i in range(SHARDS * SAMPLES))
    store.write_samples(rows)
    return store


@pytest.mark.slow
def test_memory_is_flat_after_the_tenth_shard(ray_local, tiny_pipeline, tmp_path: Path):
    from cluster.actors import OnRay

    config = configured(tiny_pipeline, tmp_path / "out", f"sampling.shard={SAMPLES}", f"sampling.steps={STEPS}",
                        "sweep.steps=[]")  # fmt: skip
    store = store_of(config)
    shard_bytes = SAMPLES * STEPS * sum(site.tokens * site.channels * 2 for site in store.layout.sites)
    assert shard_bytes * SHARDS > 2 * ROOM, "too little is recorded for a leak to show"
    sizes: list[int] = []

    def watch(event: Any) -> None:
        if isinstance(event, TaskDone):
            sizes.append(event.result["resident"])

    spec = WorkerSpec(partial(build, config), count=1, name="memory")
    outcome = OnRay().run([SampleTask("trained", shard) for shard in range(SHARDS)], spec, [watch])
    assert outcome.ok
    assert store.completed("sample", "trained") == set(range(SHARDS))
    assert len(sizes) == SHARDS
    early, late = statistics.median(sizes[10:30]), max(sizes[-20:])
    assert late - early < ROOM, f"{early / 1e6:.0f} MB after ten shards, {late / 1e6:.0f} MB at the end"
