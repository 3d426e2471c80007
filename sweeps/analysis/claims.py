"""Which of the paper's five claims a run supports, by rules that were fixed before any number was seen.

Every rule reads the tables alone. Where a needed experiment is absent the answer is `not tested`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from probing.statistics import Interval, difference_interval
from sweeps.analysis import baselines, summary
from sweeps.analysis.experiments import Emergence
from sweeps.analysis.scores import Scores
from sweeps.analysis.summary import Edits

SUPPORTED, PARTLY, CONTRADICTED, UNTESTED = "supported", "partly supported", "not supported", "not tested"
HALFWAY = 0.5
"""share of the way from floor to grid oracle that a probe has to go"""
EARLY = 1 / 3
"""share of the denoising steps that counts as early"""
TASKS = ("saliency", "depth")


@dataclass(frozen=True)
class Claim:
    """One claim, its rule, and what the run says."""

    key: str
    name: str
    rule: str
    verdict: str
    evidence: str


@dataclass(frozen=True)
class Material:
    """What the rules read."""

    scores: dict[str, Scores]
    families: dict[str, dict[str, Scores]]
    emergence: list[Emergence]
    edits: list[Edits]
    controls: dict[str, dict[str, Scores]] = field(default_factory=dict)
    """scores by fitted control and task, of controls that do not know the image's content"""


def judge(found: Material) -> list[Claim]:
    """The five claims in the paper's order."""
    return [
        _linear(found, "depth", "Depth is linear in the activations"),
        _linear(found, "saliency", "The salient object is linear in the activations"),
        _early(found),
        _not_vae(found),
        _causal(found),
    ]


LINEAR_RULE = (
    "At the last step the best site (chosen on validation images; by training loss where a run has none) goes at "
    "least half of the way from the floor "
    "(the best answer without activations: mean mask, all foreground or mean depth map, and position alone where it "
    "was fitted) to its grid oracle, and the interval of its gain over every other network and every fitted control "
    "that knows no activations (position, other image, surface) is above zero, with random_forced and one "
    "of surface and position among them (another image of the same prompt counts as another network where it was "
    "sampled); partly: only the gains over those that the run holds."
)


def _linear(found: Material, task: str, name: str) -> Claim:
    key, scores = f"linear-{task}", found.scores.get(task)
    best = summary.best_site(scores) if scores else None
    others = summary.contrasts(scores) if scores else ()
    if scores is None or not others:
        return Claim(key, name, LINEAR_RULE, UNTESTED, "needs the grid on the trained and another network")
    if best is None:
        return Claim(key, name, LINEAR_RULE, UNTESTED, "needs validation scores or training losses to choose a site")
    site = scores.sites[best].name
    value = summary.final(scores, "trained", site).estimate
    floor, oracle = float(scores.floor[best]), float(scores.oracle_means[best])
    share = (value - floor) / (oracle - floor)
    gains = {v: summary.gap(scores, site, v) for v in others}
    gains |= {c: _over(scores, by_task[task], site) for c, by_task in found.controls.items() if task in by_task}
    gains = {v: g for v, g in gains.items() if np.isfinite(g.estimate)}
    better = all(g.low > 0 for g in gains.values()) and scores.measure.sign * (value - floor) > 0
    lacking = baselines.lacking(set(gains))
    verdict = CONTRADICTED if not better else SUPPORTED if share >= HALFWAY and not lacking else PARTLY
    how = "" if scores.validated else " (chosen by training loss)"
    text = f"{site}{how}: {scores.measure.label} {value:.2f}, {_percent(share)} of the way from "
    text += f"{floor:.2f} ({scores.floor_word(site)}) to {oracle:.2f}; "
    text += "; ".join(f"gain over {v} {_span(g)}" for v, g in gains.items())
    if lacking:
        text += f"; not among the baselines: {', '.join(lacking)}; to fit them run {baselines.CURE}"
    return Claim(key, name, LINEAR_RULE, verdict, text)


def _over(scores: Scores, control: Scores, site: str) -> Interval:
    """Gain at a site over a control, NaN where the control was not fitted there."""
    if not control.which(site) or not np.array_equal(control.samples, scores.samples):
        return Interval(np.nan, np.nan, np.nan)
    sign = scores.measure.sign
    ours, theirs = scores.part("trained", site)[-1], control.part("trained", site)[-1]
    return difference_interval(sign * ours, sign * theirs, scores.counts)


def _span(found: Interval) -> str:
    if not np.isfinite(found.estimate):
        return "unknown"
    return f"{found.estimate:.2f} ({found.low:.2f} to {found.high:.2f})".replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %".replace("-", "−") if np.isfinite(share) else "an unknown share"


EARLY_RULE = (
    "For both tasks the best site’s probe has 90 % of the way from the floor to its final score within the first "
    "third of the steps, and the interval of its lead over the labeller on the decoded clean estimate of the same "
    "step is above zero; partly: the first holds for both tasks, or both hold for one."
)


def _early(found: Material) -> Claim:
    name = "It emerges early, before the image shows it"
    if len(found.emergence) < len(TASKS):
        return Claim("early", name, EARLY_RULE, UNTESTED, "needs the emergence experiment on both tasks")
    soon, ahead, words = [], [], []
    for one in found.emergence:
        step = one.arrivals[0].step.estimate
        soon.append(bool(step <= EARLY * one.steps[-1]))
        ahead.append(bool(one.lead.low > 0))
        others = ", ".join(f"{a.name} {_when(a.step)}" for a in one.arrivals[1:])
        words.append(f"{one.measure.task}: probe {_when(one.arrivals[0].step)}, {others}, lead {_span(one.lead)} steps")
    both = [a and b for a, b in zip(soon, ahead, strict=True)]
    verdict = SUPPORTED if all(both) else PARTLY if all(soon) or any(both) else CONTRADICTED
    return Claim("early", name, EARLY_RULE, verdict, "; ".join(words))


def _when(step: Interval) -> str:
    return f"step {step.estimate:.0f}" if np.isfinite(step.estimate) else "never"


VAE_RULE = (
    "For both tasks the interval of the UNet decoder’s lead over the VAE’s self-attention is above zero a third of "
    "the way through and at the last step, and at the former the VAE has less than half of the decoder’s rise above "
    "the floor; partly: the lead holds at both steps for both tasks, the share does not."
)


def _not_vae(found: Material) -> Claim:
    name = "It is not in the VAE’s self-attention"
    vae, words, leads, small = found.families.get("vae", {}), [], [], []
    for task in TASKS:
        main, other = found.scores.get(task), vae.get(task)
        if main is None or other is None or not main.which("decoder"):
            return Claim("not-vae", name, VAE_RULE, UNTESTED, "needs the vae experiment on both tasks")
        steps = [s for s in (round(EARLY * main.steps[-1]), main.steps[-1]) if s in other.steps and s in main.steps]
        gaps = [_lead(main, other, step) for step in steps]
        share = _share(main, other, steps[0]) if steps else np.nan
        leads.append(len(steps) == 2 and all(gap.low > 0 for gap in gaps))
        small.append(bool(share < HALFWAY))
        seen = ", ".join(f"step {s} {_span(g)}" for s, g in zip(steps, gaps, strict=True))
        rise = f"at step {steps[0]} {_rise(share)}" if steps else "no shared step"
        words.append(f"{task}: lead {seen}; {rise}")
    verdict = CONTRADICTED if not all(leads) else SUPPORTED if all(small) else PARTLY
    return Claim("not-vae", name, VAE_RULE, verdict, "; ".join(words))


def _lead(main: Scores, vae: Scores, step: int) -> Interval:
    ours = main.part("trained", "decoder")[main.steps.index(step)]
    theirs = vae.part("trained", "all")[vae.steps.index(step)]
    if ours.shape != theirs.shape:
        return Interval(np.nan, np.nan, np.nan)
    sign = main.measure.sign
    return difference_interval(sign * ours, sign * theirs, main.counts)


def _share(main: Scores, vae: Scores, step: int) -> float:
    floor = float(np.mean(main.floor[main.which("decoder")]))
    ours = summary.curve(main, "trained", "decoder")[0][main.steps.index(step)] - floor
    theirs = summary.curve(vae, "trained", "all")[0][vae.steps.index(step)] - floor
    return float(theirs / ours) if main.measure.sign * ours > 0 else float("nan")


def _rise(share: float) -> str:
    """What the VAE has of the decoder's rise above the floor, in words; below the floor a share says nothing."""
    if not np.isfinite(share):
        return "the decoder is not above the floor"
    return f"the VAE has {_percent(share)} of the decoder’s rise" if share > 0 else "the VAE is not above the floor"


CAUSAL_RULE = (
    "For both tasks the interval of the edit’s improvement is above zero and so is that of its advantage over every "
    "control and every other label it is compared with; partly: for one task, or the improvement for both but an "
    "advantage for neither or one."
)


def _causal(found: Material) -> Claim:
    name = "The model uses it: edits move the picture"
    words, moved, clean = [], [], []
    for task in TASKS:
        edit = next((e for e in found.edits if e.main and e.measure.task == task and e.effect.control == "edit"), None)
        if edit is None:
            return Claim("causal", name, CAUSAL_RULE, UNTESTED, "needs the interventions of both tasks")
        gain, against = edit.effect.gain, edit.effect.against
        short = [a.other for a in against if not a.gain.low > 0]
        moved.append(bool(gain.low > 0))
        clean.append(moved[-1] and bool(against) and not short)
        below = f", not clearly above {', '.join(short)}" if short else ""
        words.append(f"{task}: improvement {_span(gain)}{below}")
    verdict = SUPPORTED if all(clean) else PARTLY if any(clean) or all(moved) else CONTRADICTED
    return Claim("causal", name, CAUSAL_RULE, verdict, "; ".join(words))
