"""Which of the paper's five claims a run supports, by pre-registered rules.

Every rule reads only the tables. If an experiment that a rule needs is missing, the verdict is `not tested`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from probing.statistics import Interval, holm, least_p, paired_test
from sweeps.analysis import summary
from sweeps.analysis.baselines import (
    FIT_ALL,
    FLOOR,
    SIGNIFICANCE,
    Contrast,
    clearly_better,
    floor_baseline,
    missing_for_claim,
    preregistered,
)
from sweeps.analysis.experiments import Emergence
from sweeps.analysis.interventions import Verdict, images_needed, verdicts
from sweeps.analysis.scores import Scores
from sweeps.analysis.summary import NAN_INTERVAL, Edits, Rise
from sweeps.analysis.vocabulary import (
    DIRECTION_TITLES,
    EDIT_CONTROL_TITLES,
    OTHER_LABEL_TITLES,
    TASK_TITLES,
    baseline_noun,
    plain,
)
from sweeps.analysis.words import listed, number, percent, step_words, with_bounds

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
    "depth map, and position alone if it was fitted) to its grid oracle, and it is clearly better than the floor, "
    "every other network and every fitted control that does not know the image’s content (position, other image, "
    "surface). Clearly better: the interval of the gain is above zero and the signed-rank test over images, corrected "
    "by Holm, gives p of at most 0.05. Another image of the same prompt counts as another network if it was sampled. "
    "The comparisons must include the randomised network on the trained network’s inputs, and the surface or position "
    "alone, and the pre-registered contrasts of the task must be clear, too. Partly: only the gains of "
    "the best site over the comparisons in the run."
)
EARLY_RULE = (
    "For both tasks the best site’s probe has, over all test images, 95 % of the way from the floor to its final score "
    "within the first third of the steps, and the interval of its lead over the labeller on the decoded clean estimate "
    "of the same step, over the images of the emergence experiment, is above zero. Partly: the first holds for both "
    "tasks, or both hold for one."
)
VAE_RULE = (
    "For both tasks the interval of the UNet decoder’s lead over the VAE’s self-attention is above zero a third of "
    "the way through and at the last step, the pre-registered contrast at the last step is clear (p of at most 0.05, "
    "corrected by Holm over the contrasts in the run), and a third of the way through the VAE has less than half of "
    "the decoder’s rise above the floor. Partly: the lead holds at both steps for both tasks, the share does not."
)
CAUSAL_RULE = (
    "An edit acts on a task if, at the dose fixed beforehand, the interval of its improvement is above zero; its lead "
    "in target minus original (agreement with the target label minus agreement with the unedited one) over every null "
    "of the same size has an interval above zero and p of at most 0.05, corrected by Holm over directions and doses "
    "(not tested if the images are too few for such a p); "
    "and it matches its target better than the opposite move’s label, a constant map and the other moves’ labels. "
    "Nulls are random directions, probes of another network or of permuted labels, the mirrored target and the edit at "
    "a decoy place; probes of labels shuffled inside images (which know each image’s share of object), late steps and "
    "activation patching are compared and decide nothing. Supported: the "
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
    compared = {FLOOR: (floor_baseline(scores).scores, "trained"), **{v: (scores, v) for v in others}}
    for control, by_task in inputs.controls.items():
        if task in by_task and by_task[task].site_indices(site):
            compared[control] = (by_task[task], "trained")
    gains = {name: _lead(scores, site, other, site, variant=variant) for name, (other, variant) in compared.items()}
    gains = {name: gain for name, gain in gains.items() if np.isfinite(gain[0].estimate)}
    contrasts = _contrasts(inputs)
    if too_few := _too_few(scores, max(len(gains), len(contrasts))):
        return UNTESTED, too_few
    p = dict(zip(gains, holm([raw for _, raw in gains.values()]).tolist(), strict=True))
    # Without scores of images there is nothing to test: then the means decide.
    better = all(
        clearly_better(gain, p[name]) if scores.per_image else gain.estimate > 0 for name, (gain, _) in gains.items()
    )
    missing = missing_for_claim(set(gains))
    unclear = [c for c in contrasts if c.task == task and c.baseline != "vae" and not clearly_better(c.gain, c.holm)]
    verdict = CONTRADICTED if not better else SUPPORTED if share >= HALFWAY and not missing + unclear else PARTLY
    criterion = "" if scores.validated else " (chosen by training loss)"
    ways = [
        f"gain over {baseline_noun(name)}{f' ({scores.floor_word(site)})' if name == FLOOR else ''} {with_bounds(gain)}"
        for name, (gain, _) in gains.items()
    ]
    tied = [scores.sites[i].name for i in summary.best_group(scores)[1:]]
    also = f", not clearly better than {listed(tied)}" if tied else ""
    evidence = (
        f"{site}{criterion}{also}: {scores.measure.label} {number(score)}, {percent(share)} of the way from "
        f"{number(floor)} to {number(oracle)}; {'; '.join(ways)}"
    )
    if unclear:
        nouns = [f"{baseline_noun(c.baseline)} (p = {number(c.holm, 3)})" for c in unclear]
        evidence += f"; as a mean over sites, not clearly better than {listed(nouns)}"
    if missing:
        evidence += f"; baselines missing from this run: {', '.join(missing)}; to fit all baselines run {FIT_ALL}"
    return verdict, evidence


def _contrasts(inputs: ClaimInputs) -> list[Contrast]:
    """The pre-registered contrasts that the run has."""
    found = preregistered(inputs.scores, inputs.controls, inputs.families.get("vae", {}))
    return [c for c in found if np.isfinite(c.p)]


def _too_few(scores: Scores, comparisons: int) -> str:
    """Why no test can be passed with the images at hand; empty if one can."""
    images = scores.images
    if images is None or least_p(images, comparisons) <= SIGNIFICANCE:
        return ""
    least = number(least_p(images, comparisons))
    return (
        f"with {images} test images and {comparisons} comparisons no p can fall below {least}; "
        f"{images_needed(comparisons)} images are needed"
    )


def _early(inputs: ClaimInputs) -> tuple[str, str]:
    """Verdict and evidence."""
    if len(inputs.emergence) < len(TASKS):
        return UNTESTED, "needs the emergence experiment on both tasks"
    early, ahead, evidence = [], [], []
    for result in inputs.emergence:
        scores, labellers = inputs.scores[result.measure.task], result.curves[1:]
        early.append(bool(result.rise.step.estimate <= EARLY * scores.steps[-1]))
        ahead.append(bool(result.lead.low > 0))
        arrivals = [(result.curves[0].name, result.rise, scores.steps)]
        arrivals += [(curve.name, curve.rise, result.steps) for curve in labellers]
        steps = ", ".join(f"{name} {_arrival(rise, measured)}" for name, rise, measured in arrivals)
        lead = "" if not np.isfinite(result.lead.estimate) else f"; lead of the probe {with_bounds(result.lead)} steps"
        evidence.append(f"{TASK_TITLES[result.measure.task]}: {steps}{lead}")
    both = [a and b for a, b in zip(early, ahead, strict=True)]
    verdict = SUPPORTED if all(both) else PARTLY if all(early) or any(both) else CONTRADICTED
    return verdict, "; ".join(evidence)


def _arrival(rise: Rise, steps: Sequence[int]) -> str:
    """When a curve has most of its final score, in words."""
    step = rise.step.estimate
    if not np.isfinite(step):
        return f"never ({rise.reason})"
    return step_words(step, steps) if rise.found else f"from step {step:.0f} on ({rise.reason})"


def _not_vae(inputs: ClaimInputs) -> tuple[str, str]:
    """Verdict and evidence."""
    leads, small, evidence = [], [], []
    for task in TASKS:
        unet, vae = inputs.scores.get(task), inputs.families.get("vae", {}).get(task)
        if unet is None or vae is None:
            return UNTESTED, "needs the vae experiment on both tasks"
        last = unet.steps[-1]
        steps = [s for s in (round(EARLY * last), last) if s in vae.steps and s in unet.steps]
        gains = [_lead(unet, unet.lead_part, vae, "all", step)[0] for step in steps]
        share = _vae_share(unet, vae, steps[0]) if steps else np.nan
        contrasts = _contrasts(inputs)
        if too_few := _too_few(unet, len(contrasts)):
            return UNTESTED, too_few
        clear = all(clearly_better(c.gain, c.holm) for c in contrasts if (c.task, c.baseline) == (task, "vae"))
        leads.append(len(steps) == 2 and all(gain.low > 0 for gain in gains) and clear)
        small.append(bool(share < HALFWAY))
        by_step = ", ".join(f"{with_bounds(g)} at step {s}" for s, g in zip(steps, gains, strict=True))
        rise = f"at step {steps[0]} {share_words(share)}" if steps else "no step in both experiments"
        evidence.append(f"{TASK_TITLES[task]}: lead of the network {by_step}; {rise}")
    verdict = CONTRADICTED if not all(leads) else SUPPORTED if all(small) else PARTLY
    return verdict, "; ".join(evidence)


def _vae_share(unet: Scores, vae: Scores, step: int) -> float:
    """The VAE's rise above the decoder's floor as a share of the decoder's; NaN if that is not above its floor."""
    floor = float(np.mean(unet.floor[unet.site_indices(unet.lead_part)]))
    unet_rise = summary.curve(unet, "trained", unet.lead_part)[0][unet.steps.index(step)] - floor
    vae_rise = summary.curve(vae, "trained", "all")[0][vae.steps.index(step)] - floor
    return float(vae_rise / unet_rise) if unet.measure.sign * unet_rise > 0 else float("nan")


def share_words(share: float) -> str:
    """The VAE's share of the decoder's rise in words; a share is given only if both are above the floor."""
    if not np.isfinite(share):
        return "the decoder is not above the floor"
    return f"the VAE has {percent(share)} of the decoder’s rise" if share > 0 else "the VAE is not above the floor"


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
        if not any(v.testable for v in main):
            images, compared = main[0].edit.effect.images, main[0].compared
            return UNTESTED, (
                f"{TASK_TITLES[task]}: with {images} images and {compared} directions and doses no p can fall below "
                f"{number(main[0].least_p)}; {images_needed(compared)} images are needed (interventions.images)"
            )
        acting.append({v.edit.effect.series.direction for v in main if v.acts})
        evidence.append(f"{TASK_TITLES[task]}: " + "; ".join(_edit_words(v) for v in main))
    verdict = SUPPORTED if acting[0] & acting[1] else PARTLY if any(acting) else CONTRADICTED
    return verdict, ". ".join(evidence)


def _edit_words(verdict: Verdict) -> str:
    """One edit's effect in a few words."""
    effect, lead = verdict.edit.effect, verdict.lead
    words = f"{DIRECTION_TITLES[effect.series.direction]}: improvement {with_bounds(effect.improved)}"
    if lead is not None:
        words += f", lead over {COMPARISONS.get(lead.other, plain(lead.other))} {with_bounds(lead.gain)}"
    others = [COMPARISONS.get(name, plain(name)) for name in verdict.not_beaten if lead is None or name != lead.other]
    return words + (f", not clearly better than {', '.join(others)}" if others else "")


def _lead(
    scores: Scores, part: str, other: Scores, other_part: str, step: int | None = None, variant: str = "trained"
) -> tuple[Interval, float]:
    """Gain of the trained network's part over a part of other scores at a step (default: the last), and its p.

    NaN if the two are not of the same images.
    """
    if not np.array_equal(scores.samples, other.samples):
        return NAN_INTERVAL, np.nan
    ours, theirs = (
        s.measure.sign * s.part(v, name)[-1 if step is None else s.steps.index(step)]
        for s, v, name in ((scores, "trained", part), (other, variant, other_part))
    )
    return summary.mean_of(scores, ours - theirs), paired_test(ours, theirs).p
