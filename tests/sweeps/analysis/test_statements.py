"""Statements that would mislead, each on a case that is built to provoke it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from probing.statistics import Interval, least_p, paired_test
from storage.tables import IMAGES
from support.report_store import CONFIG, Made, make_store, scene
from sweeps.analysis import baselines, claims, floors, summary
from sweeps.analysis.claims import PARTLY, SUPPORTED, UNTESTED, ClaimInputs, judge
from sweeps.analysis.experiments import emergence, families
from sweeps.analysis.interventions import images_needed, verdicts
from sweeps.analysis.scores import Scores, collect
from sweeps.analysis.tables import RunData, load
from sweeps.analysis.words import number, step_words, with_bounds

SITES = ("down.0.0", "mid.0", "up.2.1", "up.3.0")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    made = Made(pictures=False, sites=SITES, variants=("trained", "random", "random_forced"))
    return load(make_store(tmp_path_factory.mktemp("run"), made), CONFIG)


@pytest.fixture(scope="module")
def inputs(run: RunData) -> ClaimInputs:
    controls = {"position": collect(run, control="position")}
    return ClaimInputs(collect(run), families(run), [], summary.interventions(run), controls)


def with_values(scores: Scores, change: np.ndarray) -> Scores:
    """The trained network's scores with another score at each step (T,) or place."""
    values = scores.values.copy()
    values[scores.variant_index("trained")] = change
    return replace(scores, values=values)


# -- the floor is a baseline like any other


def test_a_floor_that_is_harder_than_every_baseline_is_the_one_to_beat(inputs: ClaimInputs) -> None:
    scores = inputs.scores["depth"]
    decoder = scores.values[scores.variant_index("trained"), scores.site_indices("decoder"), -1].mean()
    hard = replace(scores, floor=np.full(len(scores.sites), decoder - 0.1))
    found = baselines.headline(hard, {})
    assert found is not None
    assert found.baseline.name == "floor"
    assert found.baseline.noun("decoder") == "the floor (mean depth map)"
    assert found.gain.estimate == pytest.approx(-0.1)
    assert found.gain.high < 0
    easy = baselines.headline(replace(scores, floor=np.full(len(scores.sites), 9.0)), {})
    assert easy is not None
    assert easy.baseline.name != "floor"


def test_a_claim_fails_if_only_the_floor_is_not_beaten_clearly(inputs: ClaimInputs) -> None:
    scores = inputs.scores["depth"]
    best = summary.best_site(scores)
    assert best is not None
    site = scores.values[scores.variant_index("trained"), best, -1]
    floor = scores.floor.copy()
    floor[best] = site.mean() + 0.001  # below the probe's error, within its interval
    claim = next(
        c for c in judge(replace(inputs, scores={"depth": replace(scores, floor=floor)})) if c.key == "linear-depth"
    )
    assert claim.verdict == claims.CONTRADICTED
    assert "gain over the floor (mean depth map) 0.00" in claim.evidence


def test_the_floor_of_each_image_gives_the_recorded_mean(tmp_path: Path) -> None:
    """Recomputed here from the definition: the training images' mean depth in each patch, at every pixel."""
    made = Made(test=5, sites=("up.2.1",), extras=False)
    store = make_store(tmp_path, made)
    depth = np.stack([scene(i, made.size)[2] for i in range(made.samples)]).astype(np.float64)
    train, test = depth[: made.train], depth[made.train :]
    units = (depth - train.mean()) / train.std()
    patches = units.reshape(len(depth), 8, 4, 8, 4).mean((2, 4))
    answer = patches[: made.train].mean(0).repeat(4, 0).repeat(4, 1)
    expected = np.sqrt(np.square(units[made.train :] - answer).mean((1, 2)))
    run = load(store, CONFIG)
    scores = collect(run)["depth"]
    assert floors.on_images(run, scores).floor_images is None  # the made store records another floor
    recorded = replace(scores, floor=np.full(1, expected.mean()))
    np.testing.assert_allclose(floors.on_images(run, recorded).floor_values[0], expected, atol=1e-6)
    assert len(test) == len(expected)


# -- no share of a rise that is none


@pytest.mark.parametrize(("first", "last", "reason"), [(0.9, 0.8, "no rise"), (0.8, 0.8, "no rise"), (0.2, 0.8, "")])
def test_a_score_that_falls_or_stays_has_no_step_of_its_rise(
    inputs: ClaimInputs, first: float, last: float, reason: str
) -> None:
    scores = inputs.scores["saliency"]
    line = np.linspace(first, last, len(scores.steps))[None, :, None]
    noise = np.random.default_rng(0).normal(0, 0.02, scores.values.shape[1:])
    found = summary.emergence(with_values(scores, line + noise), "trained", "decoder")
    assert found.reason == reason
    assert found.found == (reason == "")
    assert np.isfinite(found.step.estimate)  # it is above its floor from the first step on


def test_a_score_that_ends_at_its_floor_has_no_rise(inputs: ClaimInputs) -> None:
    scores = inputs.scores["saliency"]
    line = np.linspace(0.0, scores.floor.mean(), len(scores.steps))[None, :, None]
    noise = np.random.default_rng(0).normal(0, 0.02, scores.values.shape[1:])
    assert summary.emergence(with_values(scores, line + noise), "trained", "decoder").reason == "not above the floor"


# -- emergence: same images, absolute scores, steps between


def emergence_run(run: RunData, labeller: dict[int, float], samples: list[int]) -> RunData:
    """A run whose emergence rows are of some images and steps, with given Dice of the labeller on x0."""
    rows = [
        {"experiment": "emergence", "variant": "trained", "site": f"labeller.{kind}", "step": step, "task": "saliency",
         "control": "none", "seed": 0, "sample": sample, "dice": dice if kind == "x0" else 0.1}
        for kind in ("x0", "xt") for step, dice in labeller.items() for sample in samples
    ]  # fmt: skip
    images = run.tables["images"].cast(IMAGES)
    images = images.filter(pc.not_equal(images["experiment"], "emergence"))
    table = pa.concat_tables([images, pa.Table.from_pylist(rows)], promote_options="permissive")
    return replace(run, tables={**run.tables, "images": table})


def test_curves_and_floor_of_emergence_are_of_the_same_images(run: RunData) -> None:
    scores = collect(run)["saliency"]
    samples = scores.samples[:4].tolist()
    by_image = np.broadcast_to(np.linspace(0.1, 0.5, len(scores.samples)), (len(scores.sites), len(scores.samples)))
    known = replace(scores, floor_images=by_image, floor=by_image.mean(1))
    (found,) = emergence(emergence_run(run, {1: 0.1, 5: 0.6, 15: 0.99}, samples), {"saliency": known})
    assert found.images == 4
    assert found.floor == pytest.approx(by_image[0, :4].mean())


def test_a_labeller_that_passes_the_probe_is_found_by_its_absolute_score(run: RunData) -> None:
    scores = collect(run)["saliency"]
    best = summary.best_site(scores)
    assert best is not None
    probe = dict(zip(scores.steps, scores.means[scores.variant_index("trained"), best], strict=True))
    labeller = {1: probe[1] - 0.3, 5: probe[5] - 0.1, 10: probe[10] + 0.2, 15: probe[15] + 0.2}
    (found,) = emergence(emergence_run(run, labeller, scores.samples.tolist()), {"saliency": scores})
    assert found.passed.estimate == 10
    assert step_words(found.passed.estimate, found.steps) == "at or before step 10"
    never = {step: value - 0.3 for step, value in probe.items()}
    (found,) = emergence(emergence_run(run, never, scores.samples.tolist()), {"saliency": scores})
    assert np.isnan(found.passed.estimate)


def test_steps_between_that_were_not_measured_are_marked() -> None:
    assert step_words(4, (1, 2, 3, 4)) == "step 4"
    assert step_words(8, (1, 4, 8)) == "at or before step 8"
    assert step_words(1, (1, 8)) == "step 1"
    assert step_words(3, (3, 8)) == "at or before step 3"


# -- p values that the images cannot give


@pytest.mark.parametrize("pairs", [3, 6, 9])
def test_the_least_p_is_that_of_pairs_that_all_agree(pairs: int) -> None:
    assert least_p(pairs) == pytest.approx(paired_test(np.arange(1.0, pairs + 1), np.zeros(pairs)).p)
    assert least_p(6, 8) == 0.25


def test_with_too_few_images_the_causal_claim_is_not_tested(tmp_path: Path) -> None:
    made = Made(pictures=False, sites=SITES, test=4, variants=("trained", "random"))
    run = load(make_store(tmp_path, made), CONFIG)
    edits = summary.interventions(run)
    assert all(v.least_p == 0.125 and not v.testable and not v.acts for v in verdicts(edits, "depth"))
    claim = judge(ClaimInputs(collect(run), {}, [], edits))[-1]
    assert claim.verdict == UNTESTED
    assert "with 4 images and 1 directions and doses no p can fall below 0.12; 6 images are needed" in claim.evidence
    assert least_p(images_needed(8), 8) <= 0.05 < least_p(images_needed(8) - 1, 8)


# -- one test for one claim


def test_a_named_contrast_that_is_not_clear_keeps_its_claim_from_being_supported(inputs: ClaimInputs) -> None:
    """The best site beats the network on the trained inputs; the mean over the decoder does not."""
    scores = inputs.scores["depth"]
    best = summary.best_site(scores)
    values = scores.values.copy()
    other, trained = scores.variant_index("random_forced"), scores.variant_index("trained")
    for i in scores.site_indices("decoder"):
        if i != best:
            values[other, i] = values[trained, i] - 0.9
    result = {c.key: c for c in judge(replace(inputs, scores={"depth": replace(scores, values=values)}))}
    assert result["linear-depth"].verdict == PARTLY
    assert "as a mean over sites, not clearly better than the randomised network on" in result["linear-depth"].evidence
    assert {c.key: c.verdict for c in judge(inputs)}["linear-depth"] == SUPPORTED


def test_a_gain_is_clear_only_if_interval_and_test_agree() -> None:
    assert baselines.clearly_better(Interval(0.2, 0.1, 0.3), 0.04)
    assert not baselines.clearly_better(Interval(0.2, 0.1, 0.3), 0.06)
    assert not baselines.clearly_better(Interval(0.2, -0.1, 0.3), 0.04)
    assert not baselines.clearly_better(Interval(0.2, 0.1, 0.3), np.nan)


# -- the group of the best sites


def test_sites_that_tie_with_the_best_are_named_with_it(inputs: ClaimInputs) -> None:
    scores = inputs.scores["saliency"]
    best = summary.best_site(scores)
    assert best is not None
    rng = np.random.default_rng(0)
    values = np.full(scores.values.shape[1:], 0.3) + rng.normal(0, 0.02, scores.values.shape[1:])
    tied = next(i for i in range(len(scores.sites)) if i != best)
    for i in (best, tied):
        values[i, -1] = 0.8 + rng.normal(0, 0.05, len(scores.samples))
    values[tied, -1] += values[best, -1].mean() - values[tied, -1].mean()
    assert summary.best_group(with_values(scores, values)) == [best, tied]
    values[tied, -1] -= 0.2
    assert summary.best_group(with_values(scores, values)) == [best]


# -- numbers and words


def test_no_number_is_a_negative_zero() -> None:
    assert with_bounds(Interval(-0.001, -0.002, 0.001)) == "0.00 (0.00–0.00)"
    assert number(-0.0049) == "0.00"
    assert with_bounds(Interval(-0.2, -0.3, 0.0)) == "−0.20 (−0.30 to 0.00)"
