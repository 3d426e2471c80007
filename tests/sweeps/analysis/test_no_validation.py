"""A run without validation images, as the paper's: sites are chosen by training loss, never by a test score."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import storage
from support.report_store import CONFIG, Made, make_store
from support.tiny_runs import configured
from sweeps import pipeline
from sweeps.analysis import claims, summary, tables
from sweeps.analysis.claims import PARTLY, UNTESTED, ClaimInputs, judge
from sweeps.analysis.experiments import emergence, families
from sweeps.analysis.scores import Scores, collect
from sweeps.cli import compare
from sweeps.report import build
from sweeps.report.context import build_context

FEW = ("mid.0", "up.2.1", "up.3.0")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> storage.Store:
    return make_store(tmp_path_factory.mktemp("made"), Made(sites=FEW, val=False))


@pytest.fixture(scope="module")
def scores(store: storage.Store) -> dict[str, Scores]:
    return collect(tables.load(store, CONFIG))


def test_the_site_of_the_lowest_training_loss_is_chosen_whatever_the_test_scores_are(scores) -> None:
    for found in scores.values():
        assert not found.validated
        low = int(np.argmin(found.train_loss[found.variant_index("trained"), :, -1]))
        assert summary.best_site(found) == low
        turned = replace(found, values=-found.values)
        assert summary.best_site(turned) == low
        other = replace(found, train_loss=-found.train_loss)
        assert summary.best_site(other) != low


def test_with_validation_images_training_losses_choose_nothing(tmp_path: Path) -> None:
    for found in collect(tables.load(make_store(tmp_path, Made(sites=FEW)), CONFIG)).values():
        assert found.validated
        best = summary.best_site(found)
        assert summary.best_site(replace(found, train_loss=-found.train_loss)) == best
        assert summary.best_site(replace(found, val=-found.val)) != best


def test_the_report_keeps_its_core_and_states_how_sites_were_chosen(store: storage.Store) -> None:
    context = build_context(tables.load(store, CONFIG), store)
    page = build.draw_context(context).html
    assert "is decoded best at" in page
    assert context.examples
    assert context.emerging
    assert "This run has no validation images" in page
    assert "on validation" not in page.replace("chosen on validation images; by training loss if a run has none", "")


def test_the_claims_are_judged_and_name_the_criterion(store: storage.Store, scores) -> None:
    run = tables.load(store, CONFIG)
    found = ClaimInputs(scores, families(run), emergence(run, scores), [])
    by_key = {claim.key: claim for claim in judge(found)}
    for key in ("linear-depth", "linear-saliency"):
        assert by_key[key].verdict == PARTLY  # this run has no baseline but the randomised network
        assert "(chosen by training loss)" in by_key[key].evidence
    assert by_key["early"].verdict != UNTESTED
    lost = {task: replace(one, train_loss=one.train_loss * np.nan) for task, one in scores.items()}
    bare = claims.judge(ClaimInputs(lost, {}, [], []))[0]
    assert (bare.verdict, bare.evidence) == (UNTESTED, "needs validation scores or training losses to choose a site")


def test_a_finished_run_without_validation_images(finished: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    config = configured(tiny_pipeline, tmp_path / "run", "curation.val=0", "probe.selection=last")
    result = pipeline.execute(config)
    assert result.failed == {}
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "is decoded best at" in page
    assert "This run has no validation images" in page
    assert 'id="examples"' in page
    assert "chosen by training loss" in page or "are chosen as a baseline by training loss" in page
    assert "trained dice, best site, last step" in compare.compare(config, config).results
