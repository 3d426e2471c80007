"""The rules of the five claims: each can give every verdict."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from probing.statistics import Interval
from support.report_store import CONFIG, Made, make_store
from sweeps.analysis import claims, interventions, summary
from sweeps.analysis.baselines import FIT_ALL
from sweeps.analysis.claims import CONTRADICTED, PARTLY, SUPPORTED, UNTESTED, ClaimInputs, judge
from sweeps.analysis.experiments import Emergence, EmergenceCurve, families
from sweeps.analysis.scores import Scores, collect
from sweeps.analysis.summary import Edits
from sweeps.analysis.tables import load
from sweeps.analysis.vocabulary import baseline_noun
from sweeps.report.sections.interventions import why_they_differ

NAN = Interval(np.nan, np.nan, np.nan)
SITES = ("down.0.0", "mid.0", "up.2.1", "up.3.0")
NEVER = (np.nan, np.nan, np.nan)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> ClaimInputs:
    made = Made(pictures=False, sites=SITES, variants=("trained", "random", "random_forced"))
    run = load(make_store(tmp_path_factory.mktemp("run"), made), CONFIG)
    scores = collect(run)
    controls = {"position": collect(run, control="position")}
    return ClaimInputs(scores, families(run), [], summary.interventions(run), controls)


def verdicts(inputs: ClaimInputs) -> dict[str, str]:
    return {claim.key: claim.verdict for claim in judge(inputs)}


def emergence(inputs: ClaimInputs, task: str, step: float, lead: tuple[float, float, float]) -> Emergence:
    zero = np.zeros(15)
    arrival = EmergenceCurve("probe", zero, zero, zero, Interval(step, step, step), Interval(0.2, 0.1, 0.3))
    scores = inputs.scores[task]
    rise = arrival.rise
    return Emergence(
        scores.measure, scores.sites[0], scores.steps, 5, 0.0, (arrival,) * 3, Interval(*lead), NAN, rise=rise
    )


def worse(scores: Scores, by: float) -> Scores:
    """The trained network's scores made worse."""
    values = scores.values.copy()
    values[scores.variant_index("trained")] -= scores.measure.sign * by
    return replace(scores, values=values)


def test_claims_without_results_are_not_tested() -> None:
    assert set(verdicts(ClaimInputs({}, {}, [], [])).values()) == {UNTESTED}


def test_a_good_probe_is_linear_and_a_bad_one_is_not(inputs: ClaimInputs) -> None:
    assert verdicts(inputs)["linear-saliency"] == SUPPORTED
    assert verdicts(inputs)["linear-depth"] == SUPPORTED
    bad = {task: worse(scores, 0.9) for task, scores in inputs.scores.items()}
    result = verdicts(replace(inputs, scores=bad))
    assert result["linear-saliency"] == result["linear-depth"] == CONTRADICTED


def test_a_small_gain_supports_linearity_only_partly(inputs: ClaimInputs) -> None:
    scores = inputs.scores["saliency"]
    best = summary.best_site(scores)
    last = scores.means[scores.variant_index("trained"), best, -1]
    halfway = (scores.floor[best] + scores.oracle_means[best]) / 2
    less = {**inputs.scores, "saliency": worse(scores, float(last - halfway) + 0.1)}
    assert verdicts(replace(inputs, scores=less))["linear-saliency"] == PARTLY


def test_a_control_as_good_as_the_probe_contradicts_linearity(inputs: ClaimInputs) -> None:
    controls = {**inputs.controls, "surface": {"depth": inputs.scores["depth"]}}
    result = verdicts(replace(inputs, controls=controls))
    assert result["linear-depth"] == CONTRADICTED
    assert result["linear-saliency"] == SUPPORTED


@pytest.mark.parametrize("missing", ["random_forced", "surface"])
def test_linearity_is_supported_only_with_the_required_baselines(inputs: ClaimInputs, missing: str) -> None:
    if missing == "random_forced":
        scores = {t: _without(s, "random_forced") for t, s in inputs.scores.items()}
        reduced = replace(inputs, scores=scores)
    else:
        reduced = replace(inputs, controls={})
    assert verdicts(reduced)["linear-depth"] == PARTLY
    claim = next(c for c in judge(reduced) if c.key == "linear-depth")
    lacking = baseline_noun("random_forced") if missing == "random_forced" else "the surface or position alone"
    assert f"missing from this run: {lacking};" in claim.evidence
    assert "random_forced" not in claim.evidence + claim.rule
    assert FIT_ALL in claim.evidence


def _without(scores: Scores, variant: str) -> Scores:
    values = scores.values.copy()
    values[scores.variant_index(variant)] = np.nan
    return replace(scores, values=values)


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ((3, (4.0, 2.0, 6.0)), (5, (1.0, 0.5, 2.0)), SUPPORTED),
        ((3, (4.0, 2.0, 6.0)), (5, (0.0, -1.0, 2.0)), PARTLY),
        ((3, (4.0, 2.0, 6.0)), (9, (1.0, 0.5, 2.0)), PARTLY),
        ((6, (4.0, 2.0, 6.0)), (9, (1.0, 0.5, 2.0)), CONTRADICTED),
        ((np.nan, NEVER), (np.nan, NEVER), CONTRADICTED),
    ],
)
def test_early_emergence_needs_the_first_third_and_a_lead(inputs: ClaimInputs, first, second, verdict: str) -> None:
    curves = [emergence(inputs, "saliency", *first), emergence(inputs, "depth", *second)]
    assert verdicts(replace(inputs, emergence=curves))["early"] == verdict


def test_when_is_answered_over_all_test_images(inputs: ClaimInputs) -> None:
    """As on the report's first screen, although the few images of the emergence experiment show no clear rise."""
    never = EmergenceCurve("probe", *[np.zeros(15)] * 3, Interval(*[np.nan] * 3), Interval(0.2, -0.1, 0.3))
    found = [
        replace(emergence(inputs, task, 3, (4.0, 2.0, 6.0)), curves=(never,) * 3) for task in ("saliency", "depth")
    ]
    (claim,) = (c for c in judge(replace(inputs, emergence=found)) if c.key == "early")
    assert claim.verdict == SUPPORTED
    assert claim.evidence.count("probe step 3") == 2
    assert claim.evidence.count("probe never (not above the floor)") == 4


def test_a_vae_as_good_as_the_decoder_contradicts_its_claim(inputs: ClaimInputs) -> None:
    assert verdicts(inputs)["not-vae"] == SUPPORTED
    vae = {task: worse(scores, -2.0) for task, scores in inputs.families["vae"].items()}
    assert verdicts(replace(inputs, families={"vae": vae}))["not-vae"] == CONTRADICTED


@pytest.mark.parametrize(
    ("share", "fragment"), [(0.25, "25 %"), (-18.0, "the VAE is not above"), (float("nan"), "the decoder is not above")]
)
def test_a_share_is_given_only_if_both_are_above_the_floor(share: float, fragment: str) -> None:
    assert fragment in claims.share_words(share)


def changed(edits: list[Edits], task: str = "", direction: str = "", **comparison: object) -> list[Edits]:
    """The edits with other comparisons of a task's real edits, or with another direction."""

    def change(edit: Edits) -> Edits:
        if task not in ("", edit.measure.task):
            return edit
        series = replace(edit.effect.series, direction=direction or edit.effect.series.direction)
        against = tuple(replace(a, **comparison) for a in edit.effect.comparisons)
        return replace(edit, effect=replace(edit.effect, series=series, comparisons=against))

    return [change(edit) for edit in edits]


def test_the_causal_claim_needs_edits_that_beat_every_null(inputs: ClaimInputs) -> None:
    def causal(edits: list[Edits]) -> str:
        return verdicts(replace(inputs, edits=edits))["causal"]

    weak = {"gain": Interval(0.0, -0.1, 0.1)}
    assert causal(inputs.edits) == SUPPORTED
    assert causal(changed(inputs.edits, "depth", **weak)) == PARTLY
    assert causal(changed(inputs.edits, **weak)) == CONTRADICTED
    unmoved = [replace(e, effect=replace(e.effect, improved=NAN)) for e in inputs.edits]
    assert causal(unmoved) == CONTRADICTED
    # one direction that acts on saliency and another that acts on depth are two partial answers
    by_pattern = changed(changed(inputs.edits, direction="pattern"), "saliency", **weak)
    assert causal([*changed(inputs.edits, "depth", **weak), *by_pattern]) == PARTLY
    assert causal([*inputs.edits, *changed(inputs.edits, direction="pattern", **weak)]) == SUPPORTED


def test_a_probe_of_labels_shuffled_inside_images_decides_nothing(inputs: ClaimInputs) -> None:
    def against(edit: Edits, other: str) -> Edits:
        beaten = next(c for c in edit.effect.comparisons if c.null)
        more = replace(beaten, other=other, gain=Interval(-0.1, -0.2, 0.0))
        return replace(edit, effect=replace(edit.effect, comparisons=(*edit.effect.comparisons, more)))

    real = [e for e in inputs.edits if e.effect.comparisons]
    for other, verdict in (("shuffled_probe", SUPPORTED), ("permuted_probe", CONTRADICTED)):
        edits = [against(e, other) if e in real else e for e in inputs.edits]
        assert verdicts(replace(inputs, edits=edits))["causal"] == verdict


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        ("reading", "moves the probe’s reading 3 times as far as the paper’s"),
        ("label", "gives each patch 3 times the natural change for the change of its label"),
    ],
)
def test_one_sentence_compares_the_papers_edit_with_another_direction(
    inputs: ClaimInputs, scale: str, words: str
) -> None:
    paper = changed(inputs.edits, gain=Interval(0.0, -0.1, 0.1))
    other = [
        replace(e, effect=replace(e.effect, series=replace(e.effect.series, scale=scale, gain=3.0)))
        for e in changed(inputs.edits, direction="mean_difference")
    ]
    (sentence,) = why_they_differ(interventions.verdicts([*paper, *other], "depth"))
    assert "does not move the scene, the edit along the difference of class means does" in sentence.text
    assert words in sentence.text
    assert why_they_differ(interventions.verdicts(paper, "depth")) == []


def test_late_edits_that_paint_as_well_refute_nothing(inputs: ClaimInputs) -> None:
    late = [
        replace(e, effect=replace(e.effect, comparisons=(*e.effect.comparisons, replace(
            e.effect.comparisons[0], other="late_steps", gain=Interval(0.0, -0.1, 0.1)))))
        for e in inputs.edits if e.effect.comparisons
    ]  # fmt: skip
    assert verdicts(replace(inputs, edits=late))["causal"] == SUPPORTED


def test_without_nulls_the_causal_claim_is_not_tested(inputs: ClaimInputs) -> None:
    bare = [
        replace(e, effect=replace(e.effect, comparisons=tuple(c for c in e.effect.comparisons if not c.null)))
        for e in inputs.edits
    ]
    assert verdicts(replace(inputs, edits=bare))["causal"] == UNTESTED


def test_more_doses_need_a_smaller_p(inputs: ClaimInputs) -> None:
    edits = [e for e in inputs.edits if e.effect.control == "edit"]
    (single,) = interventions.verdicts(edits, "saliency")
    doses = [
        replace(e, effect=replace(e.effect, series=replace(e.effect.series, experiment="gain", gain=gain)))
        for e in edits
        for gain in (2.0, 3.0)
    ]
    main, *_ = interventions.verdicts([*edits, *doses], "saliency")
    assert single.acts
    assert main.p == pytest.approx(3 * single.p)


def test_evidence_contains_no_nan(inputs: ClaimInputs) -> None:
    curves = [emergence(inputs, task, np.nan, NEVER) for task in ("saliency", "depth")]
    for claim in judge(replace(inputs, emergence=curves)):
        assert "nan" not in claim.evidence
        assert claim.rule


def test_every_claim_states_its_rule(inputs: ClaimInputs) -> None:
    assert {c.rule for c in judge(inputs)} == {
        claims.LINEAR_RULE, claims.EARLY_RULE, claims.VAE_RULE, claims.CAUSAL_RULE,
    }  # fmt: skip
