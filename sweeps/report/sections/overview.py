"""The report's first screen: where depth and objects can be read, when, and whether the model uses them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from markupsafe import Markup

from probing.statistics import Interval
from sweeps.analysis import summary
from sweeps.analysis.claims import CONTRADICTED, PARTLY, SUPPORTED
from sweeps.analysis.interventions import Verdict, verdicts
from sweeps.analysis.scores import Scores
from sweeps.analysis.vocabulary import CLAIM_NOUNS, DIRECTION_NOUNS, EDIT_CONTROL_TITLES, TASK_NOUNS, TASK_TITLES, plain
from sweeps.analysis.words import MISSING, bounds, listed, number, step_words
from sweeps.report import thumbnails
from sweeps.report.context import Context
from sweeps.report.gallery.explorer import Exploration
from sweeps.report.gallery.probes import pick
from sweeps.report.links import code
from sweeps.report.page import Answer, Chip, Folded, HeroColumn, Overview, Paragraph, Reading, Section
from sweeps.report.sections import results
from sweeps.report.tables import interval, p_value

HERO = (0, 1 / 7, 2 / 7, 4 / 7, 1)
"""places of the hero's steps between the first and the last: 1, 3, 5, 9 and 15 of 15"""
TONES = {SUPPORTED: "yes", PARTLY: "partly", CONTRADICTED: "no"}
SHORT = {"saliency": "Objects", "depth": "Depth"}


def overview(context: Context) -> Section:
    """Pictures, three answers and five verdicts; the same in full in a fold."""
    scores = list(context.scores.values())
    if not scores:
        text = "No probe has finished yet: run the sweep, then build this page again."
        return Section("findings", "No result yet", "Findings", [Paragraph(text)])
    answers = [_where(context.scores), _when(context), _used(context)]
    chips = [Chip(CLAIM_NOUNS[c.key], c.verdict, TONES.get(c.verdict, "open")) for c in context.claims]
    shown = context.exploration
    prompt = shown.images[0].caption if shown else ""
    screen = Overview(prompt, _hero(shown) if shown else [], answers, chips)
    folded = Folded("The findings in full, and how to read the numbers", results.in_full(context))
    return Section("findings", "Where, when, and does the model use it?", "Findings", [screen, folded])


def _hero(shown: Exploration) -> list[HeroColumn]:
    """The first image at five steps, and its labels at the end."""
    image, found = shown.images[0], []
    available = [s for s in shown.steps if s in image.estimates] or list(shown.steps)
    wanted = pick(shown.steps, HERO)
    for step in dict.fromkeys(min(available, key=lambda s: abs(s - goal)) for goal in wanted):
        photo = None
        if step in image.estimates:
            photo = thumbnails.photo(image.estimates[step], f"Clean estimate at step {step}: {image.caption}", "", 224)
        maps = [
            thumbnails.map_picture(
                image.maps[task, site.name, step], task, image.limits[task], f"{TASK_TITLES[task]}, probe, step {step}"
            )
            for task, site in shown.best.items()
            if (task, site.name, step) in image.maps
        ]
        found.append(HeroColumn(f"step {step}", photo, maps))
    labels = [
        thumbnails.map_picture(image.labels[t], t, image.limits[t], f"{TASK_TITLES[t]}, label of the finished image")
        for t in shown.best
    ]
    finished = thumbnails.photo(image.image, f"Finished image: {image.caption}", "", 224)
    return [*found, HeroColumn("finished, labels", finished, labels)]


def _where(scores: Mapping[str, Scores]) -> Answer:
    readings, places, ties = [], [], []
    for task, one in scores.items():
        group = summary.best_group(one)
        if not group:
            readings.append(Reading(SHORT[task], MISSING))
            continue
        share = summary.final_share(one, group[0])
        value = _percent(share) if share.estimate > 0 else "not above the floor"
        readings.append(Reading(SHORT[task], value, float(np.clip(share.estimate, 0, 1))))
        places.append(Markup("{} at {}").format(TASK_NOUNS[task], code(one.sites[group[0]].name)))
        if group[1:]:
            names = Markup(listed([code(one.sites[i].name) for i in group[1:]]))
            ties.append(Markup("{} for {}").format(names, TASK_NOUNS[task]))
    text = Markup("of the way from the best answer without activations to the best possible map: {}.").format(
        Markup(listed(places)) if places else "no site can be chosen"
    )
    if ties:
        text += Markup(" Not clearly worse: {}.").format(Markup("; ").join(ties))
    return Answer("Where can they be read?", readings, text)


def _percent(share: Interval) -> Markup:
    """``93 % (91–95)``."""
    scaled = Interval(*(100 * v for v in (share.estimate, share.low, share.high)))
    ends = bounds(scaled, 0)
    text = Markup("{} %").format(number(scaled.estimate, 0))
    return Markup('{} <span class="ci">({})</span>').format(text, ends) if ends else text


def _when(context: Context) -> Answer:
    readings = []
    for task, one in context.scores.items():
        group = summary.best_group(one)
        if not group:
            readings.append(Reading(SHORT[task], MISSING))
            continue
        rise = summary.emergence(one, "trained", one.sites[group[0]].name)
        readings.append(Reading(SHORT[task], results.step_of(rise, one) if rise.found else rise.reason))
    text = Markup("of {}: the best site’s probe has 95 % of its final lead over the floor.").format(context.steps)
    parts = []
    for e in context.emergence:
        noun = TASK_NOUNS[e.measure.task]
        if np.isfinite(e.passed.estimate):
            parts.append(f"for {noun} from {step_words(e.passed.estimate, e.steps)} on")
        else:
            parts.append(f"for {noun} never")
    if parts:
        text += f" A labeller on the decoded clean estimate scores better than the probe {listed(parts)}"
        text += f" ({context.emergence[0].images} images)."
    return Answer("When?", readings, text)


def _used(context: Context) -> Answer:
    readings, parts, lead_over = [], [], []
    for task in context.scores:
        main = [v for v in verdicts(context.edits, task) if v.edit.main and v.lead is not None]
        if not main:
            readings.append(Reading(SHORT[task], "not tested"))
            continue
        shown = max(main, key=lambda v: (v.acts, v.lead.gain.estimate if v.lead else -np.inf))
        assert shown.lead is not None
        readings.append(Reading(SHORT[task], Markup("{}").format(interval(shown.lead.gain))))
        parts.append(_edit_words(task, shown))
        null = EDIT_CONTROL_TITLES.get(shown.lead.other, plain(shown.lead.other))
        lead_over.append(null)
    if not parts:
        return Answer("Does the model use it?", readings, "Edits of the activations with nulls of the same size tell.")
    text = Markup("more agreement with the requested scene than under the strongest null of the same size ({}). {}")
    nulls = "; ".join(dict.fromkeys(lead_over))
    return Answer("Does the model use it?", readings, text.format(nulls, Markup(" ").join(parts)))


def _edit_words(task: str, verdict: Verdict) -> Markup:
    """Whether the scene follows an edit, in one sentence."""
    way = DIRECTION_NOUNS[verdict.edit.effect.series.direction]
    if verdict.acts:
        outcome = "follows"
    else:
        outcome = "does not clearly follow" if verdict.testable else "cannot be judged with so few images under"
    n = verdict.edit.effect.images
    return Markup("{} {} edits {} (n&nbsp;=&nbsp;{}, p&nbsp;{}).").format(
        TASK_NOUNS[task].capitalize(), outcome, way, n, _p_words(verdict.p)
    )


def _p_words(p: float) -> Markup:
    words = p_value(p)
    return words if words.startswith("&lt;") else Markup("=&nbsp;") + words if np.isfinite(p) else Markup(number(p))
