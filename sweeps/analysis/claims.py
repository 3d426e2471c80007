"""Which of the paper's five claims a run supports, by pre-registered rules.

Every rule reads only the tables. If an experiment that a rule needs is missing, the verdict is `not tested`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from probing.statistics import Interval, difference_interval
from sweeps.analysis import summary
from sweeps.analysis.baselines import FIT_ALL, missing_for_claim
from sweeps.analysis.experiments import Emergence
from sweeps.analysis.interventions import Verdict, verdicts
from sweeps.analysis.scores import Scores
from sweeps.analysis.summary import NAN_INTERVAL, Edits
from sweeps.analysis.vocabulary import DIRECTION_TITLES, EDIT_CONTROL_TITLES, OTHER_LABEL_TITLES, baseline_noun

SUPPORTED, PARTLY, CONTRADICTED, UNTESTED = "supported", "partly supported", "not supported", "not tested"
HALFWAY = 0.5
"""share of the way from floor to grid oracle that a probe must reach"""
EARLY = 1 / 3
"""share of the denoising steps that counts as early"""
TASKS = ("saliency", "depth")
COMPARISONS = EDIT_CONTROL_TITLES | OTHER_LABEL_TITLES
LINEAR_RULE = (
    "At the last step the best site (chosen on validation images; by training loss if a run has none) goes at "
    "least half of the way from the floor (the best answer without activations: mean mask, all foreground or mean "
    "depth map, and position alone if it was fitted) to its grid oracle, and the interval of its gain is above zero "
    "over every other network and every fitted control that does not know the image’s content (position, other image, "
    "surface). Another image of the same prompt counts as another network if it was sampled. The comparisons must "
    "include the randomised network on the trained network’s inputs, and the surface or position alone. Partly: only "
    "the gains over the comparisons in the run."
)
EARLY_RULE = (
    "For both tasks the best site’s probe has 90 % of the way from the floor to its final score within the first "
    "third of the steps, and the interval of its lead over the labeller on the decoded clean estimate of the same "
    "step is above zero. Partly: the first holds for both tasks, or both hold for one."
)
VAE_RULE = (
    "For both tasks the interval of the UNet decoder’s lead over the VAE’s self-attention is above zero a third of "
    "the way through and at the last step, and a third of the way through the VAE has less than half of the decoder’s "
    "rise above the floor. Partly: the lead holds at both steps for both tasks, the share does not."
)
CAUSAL_RULE = (
    "An edit acts on a task if, at the dose fixed beforehand, the interval of its improvement is above zero; its lead "
    "in target minus original (agreement with the target label minus agreement with the unedited one) over every null "
    "of the same size has an interval above zero and p of at most 0.05, corrected by Holm over directions and doses; "
    "and it matches its target better than the opposite move’s label, a constant map and the other moves’ labels. "
    "Nulls are random directions, probes of another network or of shuffled labels, the mirrored target and the edit at "
    "a decoy place; late steps and activation patching compare timing and dose and decide nothing. Supported: the "
    "edits of at least one direction act on both tasks. Partly: some edit acts on one task."
)


@dataclass(frozen=True)
class Claim:
    """One claim, its rule, and the run's verdict with evidence."""

    key: str
    name: str
    rule: str
    verdict: str
    evidence: str


@dataclass(frozen=True)
class ClaimInputs:
    """Everything the rules read."""

    scores: dict[str, Scores]
    """the main grid, by task"""
    families: dict[str, dict[str, Scores]]
    """by experiment and task"""
    emergence: list[Emergence]
    edits: list[Edits]
    controls: dict[str, dict[str, Scores]] = field(default_factory=dict)
    """by fitted control and task, of controls that do not know the image's content"""


def judge(inputs: ClaimInputs) -> list[Claim]:
    """The five claims in the paper's order."""
    return [
        Claim("linear-depth", "Depth is linear in the activations", LINEAR_RULE, *_linear(inputs, "depth")),
        Claim(
            "linear-saliency",
            "The salient object is linear in the activations",
            LINEAR_RULE,
            *_linear(inputs, "saliency"),
        ),
        Claim("early", "It emerges early, before the image shows it", EARLY_RULE, *_early(inputs)),
        Claim("not-vae", "It is not in the VAE’s self-attention", VAE_RULE, *_not_vae(inputs)),
        Claim("causal", "The model uses it: edits move the picture", CAUSAL_RULE, *_causal(inputs)),
    ]


def _linear(inputs: ClaimInputs, task: str) -> tuple[str, str]:
    """Verdict and evidence."""
    scores = inputs.scores.get(task)
    if scores is None or not (others := summary.other_variants(scores)):
        return UNTESTED, "needs the grid on the trained and another network"
    best = summary.best_site(scores)
    if best is None:
        return UNTESTED, "needs validation scores or training losses to choose a site"
    site = scores.sites[best].name
    score = summary.final(scores, "trained", site).estimate
    floor, oracle = float(scores.floor[best]), float(scores.oracle_means[best])
    share = (score - floor) / (oracle - floor) if oracle != floor else np.nan  # as with masks that are all foreground
    gains = {v: summary.gap(scores, site, v) for v in others}
    for control, by_task in inputs.controls.items():
        if task in by_task and by_task[task].site_indices(site):
            gains[control] = _lead(scores, site, by_task[task], site)
    gains = {name: gain for name, gain in gains.items() if np.isfinite(gain.estimate)}
    better = all(gain.low > 0 for gain in gains.values()) and scores.measure.sign * (score - floor) > 0
    missing = missing_for_claim(set(gains))
    verdict = CONTRADICTED if not better else SUPPORTED if share >= HALFWAY and not missing else PARTLY
    criterion = "" if scores.validated else " (chosen by training loss)"
    evidence = (
        f"{site}{criterion}: {scores.measure.label} {score:.2f}, {_percent(share)} of the way from "
        f"{floor:.2f} ({scores.floor_word(site)}) to {oracle:.2f}; "
        + "; ".join(f"gain over {baseline_noun(name)} {_with_interval(gain)}" for name, gain in gains.items())
    )
    if missing:
        evidence += f"; baselines missing from this run: {', '.join(missing)}; to fit all baselines run {FIT_ALL}"
    return verdict, evidence


def _early(inputs: ClaimInputs) -> tuple[str, str]:
    """Verdict and evidence."""
    if len(inputs.emergence) < len(TASKS):
        return UNTESTED, "needs the emergence experiment on both tasks"
    early, ahead, evidence = [], [], []
    for result in inputs.emergence:
        early.append(bool(result.curves[0].step.estimate <= EARLY * result.steps[-1]))
        ahead.append(bool(result.lead.low > 0))
        steps = ", ".join(
            f"{c.name} step {c.step.estimate:.0f}" if np.isfinite(c.step.estimate) else f"{c.name} never"
            for c in result.curves
        )
        evidence.append(f"{result.measure.task}: {steps}; lead of the probe {_with_interval(result.lead)} steps")
    both = [a and b for a, b in zip(early, ahead, strict=True)]
    verdict = SUPPORTED if all(both) else PARTLY if all(early) or any(both) else CONTRADICTED
    return verdict, "; ".join(evidence)


def _not_vae(inputs: ClaimInputs) -> tuple[str, str]:
    """Verdict and evidence."""
    leads, small, evidence = [], [], []
    for task in TASKS:
        unet, vae = inputs.scores.get(task), inputs.families.get("vae", {}).get(task)
        if unet is None or vae is None or not unet.site_indices("decoder"):
            return UNTESTED, "needs the vae experiment on both tasks"
        last = unet.steps[-1]
        steps = [s for s in (round(EARLY * last), last) if s in vae.steps and s in unet.steps]
        gains = [_lead(unet, "decoder", vae, "all", step) for step in steps]
        share = _vae_share(unet, vae, steps[0]) if steps else np.nan
        leads.append(len(steps) == 2 and all(gain.low > 0 for gain in gains))
        small.append(bool(share < HALFWAY))
        by_step = ", ".join(f"{_with_interval(g)} at step {s}" for s, g in zip(steps, gains, strict=True))
        rise = f"at step {steps[0]} {share_words(share)}" if steps else "no step in both experiments"
        evidence.append(f"{task}: lead of the decoder {by_step}; {rise}")
    verdict = CONTRADICTED if not all(leads) else SUPPORTED if all(small) else PARTLY
    return verdict, "; ".join(evidence)


def _vae_share(unet: Scores, vae: Scores, step: int) -> float:
    """The VAE's rise above the decoder's floor as a share of the decoder's; NaN if that is not above its floor."""
    floor = float(np.mean(unet.floor[unet.site_indices("decoder")]))
    unet_rise = summary.curve(unet, "trained", "decoder")[0][unet.steps.index(step)] - floor
    vae_rise = summary.curve(vae, "trained", "all")[0][vae.steps.index(step)] - floor
    return float(vae_rise / unet_rise) if unet.measure.sign * unet_rise > 0 else float("nan")


def share_words(share: float) -> str:
    """The VAE's share of the decoder's rise in words; a share is given only if both are above the floor."""
    if not np.isfinite(share):
        return "the decoder is not above the floor"
    return f"the VAE has {_percent(share)} of the decoder’s rise" if share > 0 else "the VAE is not above the floor"


def _causal(inputs: ClaimInputs) -> tuple[str, str]:
    """Verdict and evidence."""
    acting: list[set[str]] = []
    evidence = []
    for task in TASKS:
        main = [v for v in verdicts(inputs.edits, task) if v.edit.main]
        if not main:
            return UNTESTED, "needs the interventions of both tasks"
        if not any(v.nulls for v in main):
            return UNTESTED, "needs nulls of the same size beside the edits (interventions.controls)"
        acting.append({v.edit.effect.series.direction for v in main if v.acts})
        evidence.append(f"{task}: " + "; ".join(_edit_words(v) for v in main))
    verdict = SUPPORTED if acting[0] & acting[1] else PARTLY if any(acting) else CONTRADICTED
    return verdict, ". ".join(evidence)


def _edit_words(verdict: Verdict) -> str:
    """One edit's effect in a few words."""
    effect, lead = verdict.edit.effect, verdict.lead
    words = f"{DIRECTION_TITLES[effect.series.direction]}: improvement {_with_interval(effect.improved)}"
    if lead is not None:
        words += f", lead over {COMPARISONS.get(lead.other, lead.other)} {_with_interval(lead.gain)}"
    others = [COMPARISONS.get(name, name) for name in verdict.not_beaten if lead is None or name != lead.other]
    return words + (f", not clearly better than {', '.join(others)}" if others else "")


def _lead(scores: Scores, part: str, other: Scores, other_part: str, step: int | None = None) -> Interval:
    """Gain of the trained network's part over a part of other scores at a step (default: the last).

    NaN if the two are not of the same images.
    """
    if not np.array_equal(scores.samples, other.samples):
        return NAN_INTERVAL
    pair = ((scores, part), (other, other_part))
    values, other_values = (s.part("trained", name)[-1 if step is None else s.steps.index(step)] for s, name in pair)
    return difference_interval(scores.measure.sign * values, scores.measure.sign * other_values, scores.counts)


def _with_interval(gain: Interval) -> str:
    if not np.isfinite(gain.estimate):
        return "unknown"
    return f"{gain.estimate:.2f} ({gain.low:.2f} to {gain.high:.2f})".replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %".replace("-", "−") if np.isfinite(share) else "an unknown share"
