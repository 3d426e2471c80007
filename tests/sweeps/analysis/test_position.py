"""The nested test of position: paired over images, both tasks, beside the ten pre-registered contrasts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from probing import statistics
from support.report_store import CONFIG, Made, image_rows, make_store, probe_rows, put_table
from sweeps.analysis import position, tables
from sweeps.analysis.baselines import PREREGISTERED
from sweeps.analysis.scores import collect
from sweeps.analysis.tables import RunData
from sweeps.config.load import load
from sweeps.report import build, context

FEW = ("mid.0", "up.2.1", "up.3.0")


def fitted(root: Path, sites: tuple[str, ...] = FEW) -> RunData:
    """A run with both position controls, the larger one at some sites."""
    made = Made(test=8, sites=FEW, pictures=False)
    store = make_store(root, made)
    rows = image_rows(made, position.LARGER, ("trained",), sites=sites)
    for name, better in (("dice", 0.1), ("rmse", -0.2)):
        values = np.array([np.nan if v is None else v for v in rows[name].to_pylist()]) + better
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values, mask=np.isnan(values)))
    put_table(store, "images", rows)
    put_table(store, "probes", probe_rows(rows))
    return tables.load(store, CONFIG)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    return fitted(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize(("task", "sign"), [("saliency", 1), ("depth", -1)])
def test_the_gain_is_the_paired_difference_of_the_decoder_means(run: RunData, task: str, sign: int) -> None:
    one = next(n for n in position.nested(run) if n.task == task)
    larger, smaller = (collect(run, control=c)[task] for c in (position.LARGER, position.SMALLER))
    gaps = sign * (larger.part("trained", "decoder")[-1] - smaller.part("trained", "decoder")[-1])
    expected = statistics.mean_interval(gaps, larger.counts)
    assert (one.gain.estimate, one.gain.low, one.gain.high) == pytest.approx(
        (expected.estimate, expected.low, expected.high)
    )
    assert one.gain.estimate == pytest.approx(sign * (one.larger - one.smaller))
    assert (one.sites, one.all_sites) == (2, 2)
    assert one.p == statistics.paired_test(gaps, np.zeros(len(gaps))).p


def test_p_is_corrected_over_the_tasks_and_the_ten_stay_as_they_are(run: RunData) -> None:
    found = position.nested(run)
    assert [n.task for n in found] == ["saliency", "depth"]
    assert [n.holm for n in found] == pytest.approx(list(statistics.holm([n.p for n in found])))
    assert len(PREREGISTERED) == 10
    assert position.LARGER not in {baseline for _, baseline in PREREGISTERED}


def test_the_mean_is_over_sites_where_both_were_fitted(tmp_path: Path) -> None:
    one = position.nested(fitted(tmp_path, ("mid.0", "up.3.0")))[0]
    assert (one.sites, one.all_sites) == (1, 2)
    assert np.isfinite(one.gain.low)


def test_scores_of_other_images_are_not_compared(run: RunData) -> None:
    larger, smaller = (collect(run, control=c) for c in (position.LARGER, position.SMALLER))
    moved = {t: replace(s, samples=s.samples + 1) for t, s in smaller.items()}
    assert position.compare(larger, moved) == []


def test_the_report_has_a_row_for_each_task_only_where_both_were_fitted(run: RunData, tmp_path: Path) -> None:
    page = build.draw_context(context.Context(run, collect(run))).html
    assert "Salient object: position and activations minus position" in page
    assert "Depth: position and activations minus position" in page
    assert "Ten pre-registered contrasts" in page
    store = make_store(tmp_path, Made(test=4, sites=FEW, pictures=False))
    bare = tables.load(store, CONFIG)
    assert "minus position<" not in build.draw_context(context.Context(bare, collect(bare))).html


def test_the_full_preset_fits_both() -> None:
    assert {position.LARGER, position.SMALLER} <= set(load("scenes-full", []).sweep.controls)
