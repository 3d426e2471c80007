"""Several seeds of the weight permutation and of the probes: one is reported, with the spread beside it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import storage
from support.report_store import CONFIG, Made, image_rows, make_store, probe_rows, put_table
from support.tiny_runs import configured
from sweeps import pipeline
from sweeps.analysis import baselines, seeds, summary, tables
from sweeps.analysis.scores import collect
from sweeps.analysis.tables import RunData
from sweeps.report import build, context
from sweeps.stages import sample
from sweeps.tracking.runs import plan

FEW = ("mid.0", "up.2.1", "up.3.0")
COPIES = ("trained", "random", "random@7", "random@8")


def shifted(rows: pa.Table, by: float, **columns: Any) -> pa.Table:
    """Rows with every score moved and some columns replaced."""
    for name in ("dice", "rmse"):
        values = np.array([np.nan if v is None else v for v in rows[name].to_pylist()]) + by
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values, mask=np.isnan(values)))
    for name, value in columns.items():
        rows = rows.set_column(rows.column_names.index(name), name, pa.array([value] * rows.num_rows))
    return rows


def text(run: RunData) -> str:
    html = build.draw_context(context.Context(run, collect(run))).html
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    """A run with three permutations of the weights, the later ones better by 0.1 and 0.3."""
    made = Made(test=8, sites=FEW, pictures=False, extras=False, variants=COPIES[:2])
    store = make_store(tmp_path_factory.mktemp("run"), made)
    for name, by in (("random@7", 0.1), ("random@8", 0.3)):
        rows = shifted(image_rows(made, "none", ("random",)), by, variant=name)
        put_table(store, "images", rows)
        put_table(store, "probes", probe_rows(rows))
    run = tables.load(store, CONFIG)
    return RunData(**{**vars(run), "variants": COPIES})


@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_the_spread_over_permutations_is_that_of_the_decoder_means(copies: RunData, task: str) -> None:
    scores = collect(copies)[task]
    (found,) = seeds.permutations(copies, scores)
    means = [summary.final(scores, v, "decoder").estimate for v in COPIES[1:]]
    assert (found.label, found.seeds) == ("random", (100, 7, 8))
    assert found.scores == pytest.approx(means)
    assert (found.mean, found.std) == pytest.approx((np.mean(means), np.std(means, ddof=1)))
    gains = [summary.gap(scores, "decoder", v).estimate for v in COPIES[1:]]
    assert found.smallest_gain.estimate == min(gains)


def test_contrasts_use_only_the_seed_of_the_settings(copies: RunData) -> None:
    scores = collect(copies)["saliency"]
    assert summary.other_variants(scores) == ("random",)
    page = text(copies)
    lead = baselines.headline(replace(scores, floor=np.full(len(scores.sites), np.nan)), {})
    assert lead is not None
    assert lead.baseline.name == "random"
    found = seeds.permutations(copies, scores)[0]
    assert f"randomised 100, 7, 8 {found.scores[0]:.3f} {found.mean:.3f} {found.std:.3f}" in page


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunData, RunData]:
    """A run with one probe seed, and the same with two more whose scores are off by 0.1 and 0.2."""
    made = Made(test=8, sites=FEW, pictures=False, extras=False)
    store = make_store(tmp_path_factory.mktemp("run"), made)
    one = tables.load(store, CONFIG)
    for seed in (1, 2):
        rows = shifted(image_rows(made, "none", made.variants), -seed / 10, seed=seed)
        put_table(store, "images", rows)
        put_table(store, "probes", probe_rows(rows))
    return one, tables.load(store, CONFIG)


def test_other_seeds_do_not_change_the_reported_scores(probed: tuple[RunData, RunData]) -> None:
    for task, alone in collect(probed[0]).items():
        among = collect(probed[1])[task]
        for name in ("values", "val", "train_loss", "floor"):
            np.testing.assert_array_equal(getattr(among, name), getattr(alone, name))


def test_the_spread_over_probe_seeds_is_shown_if_there_are_several(probed: tuple[RunData, RunData]) -> None:
    one, three = probed
    scores = collect(three)["saliency"]
    assert seeds.probes(one, scores) == []
    best, decoder = seeds.probes(three, scores)
    name = scores.sites[summary.best_site(scores)].name
    assert (best.label, best.seeds, decoder.label) == (f"best site {name}", (0, 1, 2), "decoder mean")
    first = summary.final(scores, "trained", name).estimate
    assert best.scores == pytest.approx((first, first - 0.1, first - 0.2))
    assert best.std == pytest.approx(0.1)
    page = text(three)
    assert f"best site {name} 0, 1, 2 {first:.3f} {first - 0.1:.3f} 0.100" in page
    assert "Every other number on this page uses seed 0" in page
    assert "How much do the seeds matter?" not in text(one)


def test_the_mirror_shows_the_reported_seed(probed: tuple[RunData, RunData]) -> None:
    one, three = ({r.name: r.history for r in plan(run, "site")} for run in probed)
    assert one == three


def test_permutations_of_one_seed_are_sampled_apart_and_forced_ones_last(tiny_pipeline: Path, tmp_path: Path) -> None:
    names = "trained,random,random@7,random_forced,random_forced@7"
    short = ("sampling.steps=3", "sweep.steps=[1,3]", "experiments.names=[]", "interventions.tasks=[]")
    config = configured(tiny_pipeline, tmp_path / "run", f"sampling.variants=[{names}]", *short)
    order = [task.variant for task in sample.missing(pipeline.prepare(config))]
    assert list(dict.fromkeys(order)) == names.split(",")
    assert pipeline.execute(config, ("sample",)).failed == {}
    store = storage.open(config.output)
    first, second, forced, other = (store.read_activations(v, "up.2.1", 1, [0, 1]) for v in names.split(",")[1:])
    assert not np.array_equal(first, second)
    assert not np.array_equal(forced, other)
    # The first step starts from the same noise, so there being forced changes nothing.
    np.testing.assert_array_equal(second, other)
    later = (store.read_activations(v, "up.2.1", 3, [0, 1]) for v in ("random@7", "random_forced@7"))
    assert not np.array_equal(*later)
