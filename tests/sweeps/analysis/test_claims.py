"""The rules behind the five verdicts: each can come out either way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from probing.statistics import Interval
from support.report_store import CONFIG, Made, make_store
from sweeps.analysis import claims
from sweeps.analysis import experiments as findings_more
from sweeps.analysis import scores as analysis
from sweeps.analysis import summary as findings
from sweeps.analysis import tables as report_data
from sweeps.analysis.baselines import FIT_ALL
from sweeps.analysis.claims import CONTRADICTED, PARTLY, SUPPORTED, UNTESTED, ClaimInputs, judge
from sweeps.analysis.experiments import Emergence, EmergenceCurve

NAN = Interval(np.nan, np.nan, np.nan)
SITES = ("down.0.0", "mid.0", "up.2.1", "up.3.0")
NEVER = (np.nan, np.nan, np.nan)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> ClaimInputs:
    made = Made(pictures=False, sites=SITES, variants=("trained", "random", "random_forced"))
    run = report_data.load(make_store(tmp_path_factory.mktemp("run"), made), CONFIG)
    scores = analysis.collect(run)
    controls = {"position": analysis.collect(run, control="position")}
    return ClaimInputs(scores, findings_more.families(run), [], findings.interventions(run), controls)


def verdicts(found: ClaimInputs) -> dict[str, str]:
    return {claim.key: claim.verdict for claim in judge(found)}


def emergence(found: ClaimInputs, task: str, step: float, lead: tuple[float, float, float]) -> Emergence:
    zero = np.zeros(15)
    arrival = EmergenceCurve("probe", zero, zero, zero, Interval(step, step, step))
    scores = found.scores[task]
    return Emergence(scores.measure, scores.sites[0], scores.steps, 5, 0.0, (arrival,) * 3, Interval(*lead))


def worse(scores: analysis.Scores, by: float) -> analysis.Scores:
    """The trained network's scores made worse."""
    values = scores.values.copy()
    values[scores.at("trained")] -= scores.measure.sign * by
    return replace(scores, values=values)


def test_nothing_is_claimed_of_what_was_not_measured() -> None:
    assert set(verdicts(ClaimInputs({}, {}, [], [])).values()) == {UNTESTED}


def test_a_good_probe_is_linear_and_a_bad_one_is_not(material: ClaimInputs) -> None:
    assert verdicts(material)["linear-saliency"] == SUPPORTED
    assert verdicts(material)["linear-depth"] == SUPPORTED
    bad = {task: worse(scores, 0.9) for task, scores in material.scores.items()}
    found = verdicts(replace(material, scores=bad))
    assert found["linear-saliency"] == found["linear-depth"] == CONTRADICTED


def test_a_small_gain_is_linear_only_in_part(material: ClaimInputs) -> None:
    scores = material.scores["saliency"]
    best = findings.best_site(scores)
    last = scores.means[scores.at("trained"), best, -1]
    halfway = (scores.floor[best] + scores.oracle_means[best]) / 2
    less = {**material.scores, "saliency": worse(scores, float(last - halfway) + 0.1)}
    assert verdicts(replace(material, scores=less))["linear-saliency"] == PARTLY


def test_a_control_as_good_as_the_probe_refutes_linearity(material: ClaimInputs) -> None:
    controls = {**material.controls, "surface": {"depth": material.scores["depth"]}}
    found = verdicts(replace(material, controls=controls))
    assert found["linear-depth"] == CONTRADICTED
    assert found["linear-saliency"] == SUPPORTED


@pytest.mark.parametrize("missing", ["random_forced", "surface or position"])
def test_linearity_is_supported_only_over_the_named_rivals(material: ClaimInputs, missing: str) -> None:
    if missing == "random_forced":
        scores = {t: _without(s, "random_forced") for t, s in material.scores.items()}
        found = replace(material, scores=scores)
    else:
        found = replace(material, controls={})
    assert verdicts(found)["linear-depth"] == PARTLY
    claim = next(c for c in judge(found) if c.key == "linear-depth")
    assert f"no baseline {missing};" in claim.evidence
    assert FIT_ALL in claim.evidence


def _without(scores: analysis.Scores, variant: str) -> analysis.Scores:
    values = scores.values.copy()
    values[scores.at(variant)] = np.nan
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
def test_early_needs_the_first_third_and_a_lead(material: ClaimInputs, first, second, verdict: str) -> None:
    found = [emergence(material, "saliency", *first), emergence(material, "depth", *second)]
    assert verdicts(replace(material, emergence=found))["early"] == verdict


def test_a_vae_that_reads_as_well_refutes_its_absence(material: ClaimInputs) -> None:
    assert verdicts(material)["not-vae"] == SUPPORTED
    vae = {task: worse(scores, -2.0) for task, scores in material.families["vae"].items()}
    assert verdicts(replace(material, families={"vae": vae}))["not-vae"] == CONTRADICTED


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.25, "the VAE has 25 % of the decoder’s rise"),
        (-18.0, "the VAE is not above the floor"),
        (float("nan"), "the decoder is not above the floor"),
    ],
)
def test_a_share_is_told_only_where_both_rise(share: float, words: str) -> None:
    assert claims.share_words(share) == words


def test_edits_must_beat_every_control(material: ClaimInputs) -> None:
    def weaker(edit: findings.Edits) -> findings.Edits:
        against = tuple(replace(a, gain=Interval(0.0, -0.1, 0.1)) for a in edit.effect.against)
        return replace(edit, effect=replace(edit.effect, against=against))

    def none(edit: findings.Edits) -> findings.Edits:
        return replace(edit, effect=replace(edit.effect, gain=NAN))

    assert verdicts(replace(material, edits=[weaker(e) for e in material.edits]))["causal"] == PARTLY
    assert verdicts(replace(material, edits=[none(e) for e in material.edits]))["causal"] == CONTRADICTED


def test_evidence_never_shows_a_missing_number(material: ClaimInputs) -> None:
    found = [emergence(material, task, np.nan, NEVER) for task in ("saliency", "depth")]
    for claim in judge(replace(material, emergence=found)):
        assert "nan" not in claim.evidence
        assert claim.rule


def test_rules_are_the_ones_that_are_printed(material: ClaimInputs) -> None:
    assert {c.rule for c in judge(material)} == {
        claims.LINEAR_RULE, claims.EARLY_RULE, claims.VAE_RULE, claims.CAUSAL_RULE,
    }  # fmt: skip
