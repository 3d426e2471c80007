"""The interventions benchmark: equal work, and faster than one trial at a time."""

from __future__ import annotations

import pytest

from sweeps.bench import paired
from sweeps.bench.interventions import bench_interventions


def test_the_bench_measures_equal_work():
    (row,) = bench_interventions(side=4, channels=48, size=32, trials=2, iterations=12, pairs=1)
    assert row["what"] == "edit_speedup"
    assert set(paired.KEYS) < set(row)
    assert row["difference"] < 1e-5
    assert row["ratio"] == pytest.approx(row["seconds"][0] / row["seconds"][1])


def test_the_inner_optimisation_is_faster_than_the_plain_way_and_the_same():
    """At the widest site of the scenes model; how much faster is for the bench, on a quiet machine."""
    (row,) = bench_interventions(iterations=16, pairs=1)
    assert row["ratio"] > 2
    assert row["difference"] < 1e-4
