"""The probe benchmark's rows on tiny sizes."""

from __future__ import annotations

import pytest

from probing.probes.config import ProbeConfig
from sweeps.bench import paired
from sweeps.bench.probes import Size, bench_probes, scenes_sizes

TINY = Size((2, 2), 3, 8, (4, 0, 2), 2, 5)
OTHER = Size((1, 1), 3, 8, (4, 0, 2), 1, 1)


def test_rows_measure_both_ways_on_the_same_problem():
    rows = bench_probes((TINY, OTHER), OTHER, pairs=1, config=ProbeConfig(epochs=2))
    names = ["cell_speedup_scenes", "cell_speedup_scenes_2x2", "cell_speedup_scenes_1x1", "cell_speedup_paper"]
    assert [row["what"] for row in rows] == names
    for row in rows:
        assert tuple(row) == paired.KEYS
        assert row["ratio"] > 0
        assert min(row["seconds"]) > 0


def test_the_total_weighs_kinds_of_sites_by_their_number():
    times = {TINY: [(10.0, 1.0)], OTHER: [(80.0, 2.0)]}
    rows = bench_probes((TINY, OTHER), None, measured=lambda size, config, pairs: times[size])
    assert rows[0]["ratio"] == pytest.approx((5 * 10 + 80) / (5 * 1 + 2))
    assert rows[1]["ratio"] == pytest.approx(10)
    assert len(rows) == 3


def test_sizes_come_from_the_scenes_model_and_its_preset():
    sizes = scenes_sizes()
    assert sum(size.sites for size in sizes) == 16
    assert len({size.grid for size in sizes}) == len(sizes)
    assert {size.samples for size in sizes} == {(72, 0, 96)}
