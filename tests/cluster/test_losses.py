"""A tiny sweep submitted to two machines: a node is lost in one stage, then the driver, and no work with them.

CHAOS_SEED=N chooses the stage, CHAOS_NODES=0 leaves the test out.
`test_cluster_sweep`, with CHAOS_NODES=1, loses a node in every stage.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import submit
from support import cluster_nodes as nodes
from support import tiny_model as tiny
from support.cluster_losses import NodeLosses, assert_no_probe_twice, ended, kill_driver, records
from support.tiny_runs import assert_same_scores, stored
from sweeps import pipeline
from sweeps.config.load import load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.chaos,
    pytest.mark.skipif(os.environ.get("CHAOS_NODES") == "0", reason="several Ray nodes here: CHAOS_NODES=0"),
    pytest.mark.filterwarnings("ignore:ssl=None:DeprecationWarning"),  # in Ray's own client
]
SEED = int(os.environ.get("CHAOS_SEED") or 0)
STAGES = {"sample": "shards/sample/*/*.json", "label": "shards/label/*/*.json", "probe": "results/probes/*.parquet"}
"""stage -> what it leaves of each finished piece"""
EARLIER = {"sample": (), "label": ("sample",), "probe": ("sample", "label", "curate")}
"""stages that are done before the sweep is submitted"""
STAGE = list(STAGES)[SEED % len(STAGES)]
SWEEP = [
    "prompts.count=6", "sampling.shard=1", "sampling.variants=[trained]", "sampling.sites=[mid.0,up.2.1]",
    "sweep.steps=[1,15]",
    "curation.train=3", "curation.val=1", "curation.test=2", "curation.min_foreground=0", "curation.min_contrast=0",
    "probe.epochs=1000", "sweep.trial_axes=[site,step]", "sweep.controls=[none]", "interventions.tasks=[]",
    "tracking.mode=disabled", "experiments.names=[]", "ray.sampling_gpus=1", "ray.label_gpus=1", "ray.probe_gpus=1",
]  # fmt: skip


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[nodes.Machines]:
    """A head without CPU and GPU, and two nodes with one of each."""
    with nodes.Machines(tmp_path / "nodes", {}, not nodes.no_namespaces()) as made:
        for name in ("gpu1", "gpu2"):
            made.add(name, cpus=1, gpus=1)
        yield made


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return [*SWEEP, f"model.name={tiny.save(tmp_path)}"]


@pytest.mark.parametrize("stage", [STAGE])
def test_a_node_and_the_driver_are_lost_and_the_store_is_the_same(
    stage: str, machines: nodes.Machines, words: list[str], tmp_path: Path
) -> None:
    output, whole = tmp_path / "run", tmp_path / "whole"
    undisturbed = load("scenes", [*words, f"output={whole}", "ray.address=none"])
    if EARLIER[stage]:
        assert pipeline.execute(undisturbed, EARLIER[stage]).failed == {}
        shutil.copytree(whole, output)
    arguments = ["scenes", *words, f"output={output}"]
    first = submit.submit(machines.address, arguments, output=str(output))
    losses = NodeLosses(machines, first, output)
    losses.wait(STAGES[stage])
    kept = losses.kill_node(stage)
    losses.wait(STAGES[stage], len(list(output.glob(STAGES[stage]))) + 1)
    kept |= records(output)
    kill_driver(machines, first)

    again = submit.submit(machines.address, arguments, output=str(output))
    assert pipeline.execute(undisturbed).failed == {}
    assert ended(machines, again).status == "SUCCEEDED", submit.logs(machines.address, again.id)
    assert stored(output) == stored(whole)
    assert_no_probe_twice(output)
    assert_same_scores(output, whole)
    now = records(output)
    assert {path: now[path] for path in kept} == kept, "finished work was done again"
