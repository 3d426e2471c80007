"""The report's main results: headline, curves, heatmaps, sites."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from probing.diffusion.variants import OTHER_SEED
from probing.statistics import Interval
from sweeps.analysis import baselines, summary
from sweeps.analysis.baselines import Baseline, Headline
from sweeps.analysis.scores import Scores
from sweeps.analysis.summary import Rise
from sweeps.analysis.vocabulary import TASK_NOUNS, TASK_TITLES, baseline_noun, variant_title
from sweeps.analysis.words import MISSING, listed, number, step_words
from sweeps.report.context import Context
from sweeps.report.figures.network import network_drawing
from sweeps.report.figures.probes import block_curves, dumbbells, heatmap, site_curves
from sweeps.report.links import code, site_link
from sweeps.report.page import Block, Figures, Folded, Heading, Paragraph, Section, downloads
from sweeps.report.sections.measures import least_note, nested_test, other_measures, ten_contrasts
from sweeps.report.tables import Cell, Table, interval, p_value


def in_full(context: Context) -> list[Block]:
    """The main findings in words."""
    scores = list(context.scores.values())
    lead = Markup(" ").join(filter(None, (_best_sentence(context, s, s is scores[0]) for s in scores)))
    more = Markup(" ").join(filter(None, (gap_sentence(context), _rise_sentence(scores))))
    return [Paragraph(lead), Paragraph(more), _reading_note(scores)]


def _best_sentence(context: Context, scores: Scores, first: bool) -> Markup:
    """The best site's score with its floor and oracle; empty if no site can be chosen."""
    index = summary.best_site(scores)
    if index is None:
        return Markup()
    measure, site = scores.measure, scores.sites[index]
    value, floor = summary.final(scores, "trained", site.name), float(scores.floor[index])
    text = Markup("{} is decoded best at {}{}: {} {}{}. The best answer without activations, {}, scores {}; ").format(
        TASK_NOUNS[measure.task].capitalize(), code(site.name), tied_with(scores), measure.label, interval(value),
        f" at the last of {scores.steps[-1]} denoising steps" if first else "",
        scores.floor_word(site.name), number(floor),
    )  # fmt: skip
    text += Markup("the best possible map on the site’s {}&nbsp;×&nbsp;{} grid scores {}.").format(
        *site.grid, number(scores.oracle_means[index])
    )
    if (precision := _precision(context, scores, site.name)) is not None:
        text += Markup(" Average precision, which needs no threshold, is {}.").format(interval(precision))
    if measure.sign * (value.estimate - floor) <= 0:
        text += " The probe is no better than the floor."
    return text


def tied_with(scores: Scores) -> Markup:
    """The sites that are not clearly worse than the best one, as an insertion; empty if there are none."""
    names = [code(scores.sites[i].name) for i in summary.best_group(scores)[1:]]
    if not names:
        return Markup()
    return Markup(" (with {}, not clearly worse)").format(Markup(listed(names)))


def _precision(context: Context, scores: Scores, part: str) -> Interval | None:
    """Average precision of the trained network's saliency probes at the last step; None if it was not stored."""
    found = context.precision
    if scores.measure.task != "saliency" or found is None or not found.site_indices(part):
        return None
    return summary.final(found, "trained", part)


def gap_sentence(context: Context) -> Markup:
    """How the trained network compares with its best baselines; empty if the run has no baseline."""
    found = {t: h for t, h in context.headlines.items() if np.isfinite(h.gain.estimate)}
    if not found:
        return Markup()
    parts = Markup("; ").join(_gap_part(context, task, one) for task, one in found.items())
    first = next(iter(context.scores.values()))
    sites = "the decoder’s sites" if first.lead_part == "decoder" else "all sites"
    text = Markup("Averaged over {}, the trained network is {}. ").format(sites, parts)
    text += f"Networks and probes are chosen as a baseline {summary.chosen_on(first)}, the floor by its test score."
    missing = dict.fromkeys(name for one in found.values() for name in one.missing)
    if missing:
        text += Markup(" This run lacks the following baselines: {}. {} fits all of them.").format(
            "; ".join(map(baseline_noun, missing)), code(baselines.FIT_ALL)
        )
    return text


def _gap_part(context: Context, task: str, one: Headline) -> Markup:
    """What the interval of one task's gain shows."""
    gains = {context.scores[task].measure.label: one.gain}
    if task == "saliency" and context.precision_gain is not None:
        gains["average precision"] = context.precision_gain
    form = "{} than its best baseline for {}, {}, by {}"
    standing = "better" if one.gain.low > 0 else "worse" if one.gain.high < 0 else ""
    if not standing:
        form, standing = "{} than its best baseline for {}, {}: the difference is {}", "not shown to be better"
    elif standing == "worse":  # a loss is written as a positive number
        gains = {name: Interval(-gain.estimate, -gain.high, -gain.low) for name, gain in gains.items()}
    sizes = Markup(" and ").join(Markup("{} in {}").format(interval(gain), name) for name, gain in gains.items())
    return Markup(form).format(standing, TASK_NOUNS[task], one.baseline.noun(context.scores[task].lead_part), sizes)


def _rise_sentence(scores: Sequence[Scores]) -> Markup:
    """When each task's mean score has most of its rise, or that it does not rise."""
    parts = []
    for one in scores:
        rise, noun = summary.emergence(one, "trained", one.lead_part), TASK_NOUNS[one.measure.task]
        if rise.found:
            parts.append(Markup("for {} by {}").format(noun, step_of(rise, one)))
        else:
            parts.append(Markup("for {} there is no such step ({})").format(noun, rise.reason))
    part = part_noun(scores[0])
    start = Markup("{}’s mean score has completed 95 % of its rise from the floor to its last value ").format(part)
    return start + Markup(", ").join(parts) + "."


def step_of(rise: Rise, scores: Scores) -> Markup:
    """``step 3 (1–5)`` or ``at or before step 5 (5–10)``; the reason if there is no rise."""
    if not rise.found:
        return Markup(rise.reason)
    name, _, _ = step_words(rise.step.estimate, scores.steps).rpartition(" ")
    return Markup("{} {}").format(name, interval(rise.step, 0))


def part_noun(scores: Scores) -> str:
    """The part that headlines average over, at the start of a sentence."""
    return "The decoder" if scores.lead_part == "decoder" else "The network"


def _reading_note(scores: Sequence[Scores]) -> Paragraph:
    """How to read the numbers: intervals, floors, oracle, choice of sites."""
    text = Markup(
        "Brackets are 95 % bootstrap intervals over test images, resampled jointly for all sites. The <em>grid "
        "oracle</em> is the best score that any map on the site’s grid of patches can reach; the <em>floor</em> is the "
        "best answer that ignores the activations. Bars run from floor to oracle. "
    )
    if summary.best_site(scores[0]) is None:
        text += "No best site is named, because neither validation scores nor training losses are stored. "
    elif scores[0].validated:
        text += "Sites are chosen on validation images and scored on test images. "
    else:
        text += (
            "This run has no validation images, so sites are chosen by the loss of their probes on the training "
            "images, which favours overfitted sites. Test images only score the chosen sites. "
        )
    lacking = [TASK_NOUNS[s.measure.task] for s in scores if s.position is None]
    if lacking:
        text += Markup(
            "No probe of the position alone was fitted for {}: a floor that includes it could be higher. "
            "<code>sweep.controls</code> adds it."
        ).format(" and ".join(lacking))
    else:
        text += "The floor is the best of position alone and either mean mask and all foreground or mean depth map."
    return Paragraph(text, "note")


def curves(context: Context) -> Section:
    """Scores by denoising step, by block and by site."""
    scores = context.scores.values()
    if not scores:
        return Section("steps")
    text = (
        "One probe per site and step, scored on test images. Lines are means over the sites of a block; bands are 95 % "
        "bootstrap intervals over images. Dashed grey lines: the same probes on the other networks, mean over all "
        "sites. Dotted line: the mean grid oracle of the decoder."
    )
    by_block = [block_curves(s) for s in scores]
    by_site = {s.measure.task: site_curves(s) for s in scores}
    every: list[Block] = []
    for task, panels in by_site.items():
        every += [Heading(f"{TASK_TITLES[task]}, site by site"), Figures(panels, small=True)]
    every += downloads("sites-by-step", [p for panels in by_site.values() for p in panels])
    blocks = [Paragraph(text), Figures(by_block), *downloads("blocks-by-step", by_block), Folded("Site by site", every)]
    return Section("steps", "Score by denoising step", "By step", blocks)


def heatmaps(context: Context) -> Section:
    """Every site and step at once."""
    shown = [(s, v) for s in context.scores.values() for v in ("trained", *summary.other_variants(s))]
    if not shown:
        return Section("heatmaps")
    text = (
        "Rows are sites in the order in which the network runs them: encoder, bottleneck, decoder. Bright is good in "
        "both tasks, and all networks share one colour scale per task. Outlined are the sites and steps that beat "
        "the floor and, for the trained network, every other network as well (one-sided t-tests over test images; by "
        "the Benjamini–Hochberg procedure, at most 5 % of the outlined entries are expected to be wrong)."
        + _other_image_note(context)
    )
    numbers = []
    for scores, variant in shown:
        values = scores.means[scores.variant_index(variant)]
        rows = [[site_link(s.name), *map(float, values[i])] for i, s in enumerate(scores.sites)]
        caption = f"{TASK_TITLES[scores.measure.task]}: {scores.measure.label} by site and step, "
        numbers.append(
            Table(caption + variant_title(variant), ["Site", *map(str, scores.steps)], rows, images=scores.images)
        )
    trained, others = ([heatmap(*pair) for pair in shown if (pair[1] == "trained") == own] for own in (True, False))
    drawings = Figures([network_drawing(s) for s in context.scores.values()])
    words = (
        "Squares are sites in the order in which the network runs them; the coarser a site’s grid, the lower it "
        "stands. Outlined are the best site at the last step and those that are not clearly worse."
    )
    if context.exploration:
        words += " A click on a square here or on a cell below shows that site and step in the explorer."
    blocks: list[Block] = [Paragraph(words), drawings, Paragraph(text), Figures(trained)]
    blocks += [Folded("The other networks", [Figures(others)])] if others else []
    blocks += [Folded("The heatmaps as tables", numbers), *downloads("heatmaps", [*trained, *others])]
    return Section("heatmaps", "Every site and every step", "Heatmaps", blocks)


def _other_image_note(context: Context) -> str:
    """An explanation of the other-seed variant if the run has it."""
    if not any(OTHER_SEED in summary.other_variants(s) for s in context.scores.values()):
        return ""
    return (
        f" “{variant_title(OTHER_SEED).capitalize()}” counts as another network here: its probes predict this image’s "
        "labels from the activations of another image, which the trained network generated from the same prompt with "
        "another seed. They therefore show what the text alone provides."
    )


def sites(context: Context) -> Section:
    """Every site at the last step, with floors and oracle, and when each reaches its final score."""
    if not context.scores:
        return Section("sites")
    chosen = summary.chosen_on(next(iter(context.scores.values())))
    text = (
        "Scores of the last step on test images. A coarse grid cannot draw a thin outline, so each score stands beside "
        f"its grid oracle. Marked rows are the best site, chosen {chosen}, and those that are not clearly worse."
        + _other_image_note(context)
    )
    panels = [dumbbells(s) for s in context.scores.values()]
    blocks = [Paragraph(text), Figures(panels), *(_score_table(context, s) for s in context.scores.values())]
    blocks += [*ten_contrasts(context), *nested_test(context)]
    others = [table for s in context.scores.values() for table in other_measures(context.run, s)]
    blocks += [Folded("Other measures at the last step", others)] if others else []
    blocks += [_rise_table(context), *downloads("sites-last-step", panels)]
    return Section("sites", "Where the information is, and when it arrives", "Sites", blocks)


def _score_table(context: Context, scores: Scores) -> Table:
    """Scores of every site, and means of encoder and decoder, at the last step."""
    measure, others = scores.measure, summary.other_variants(scores)
    columns = ["Site", "Trained"]
    if _precision(context, scores, "all") is not None:
        columns.append("Trained, average precision")
    columns += [variant_title(v).capitalize() for v in others]
    lead = context.headlines.get(measure.task)
    baseline = lead.baseline if lead else None
    caption = f"{TASK_TITLES[measure.task]}, {measure.label} at step {scores.steps[-1]} "
    caption += f"({'higher' if measure.higher else 'lower'} is better)."
    p = np.full(len(scores.sites), np.nan)
    if baseline is not None:
        name = baseline_noun(baseline.name)
        columns += [] if _has_column(baseline, others) else [name.capitalize()]
        columns += [f"Gain over {name}", "p"]
        caption += " A gain above 0 favours the trained network. p: Wilcoxon signed-rank test over test images, "
        caption += f"corrected by Holm over the sites{least_note(scores.images, len(scores.sites))}."
        p = baselines.site_tests(scores, baseline)
    columns += ["Grid oracle", *(name.capitalize() for name in context.floors[measure.task])]
    rows = [
        [site_link(site.name), *_score_row(context, scores, site.name, baseline, float(p[i]))]
        for i, site in enumerate(scores.sites)
    ]
    for side in ("encoder", "decoder"):
        if scores.site_indices(side):
            rows.append([f"{side} mean", *_score_row(context, scores, side, baseline, np.nan)])
    return Table(caption, columns, rows, marked=summary.best_group(scores), images=scores.images)


def _has_column(baseline: Baseline, others: Sequence[str]) -> bool:
    """Whether a table of scores has the baseline among its networks or floors."""
    return baseline.name in (*others, baselines.FLOOR)


def _score_row(context: Context, scores: Scores, part: str, baseline: Baseline | None, p: float) -> list[Cell]:
    """Cells of `_score_table` after the first, for a site or the mean of a side."""
    at, others = scores.site_indices(part), summary.other_variants(scores)
    row: list[Cell] = [summary.final(scores, "trained", part)]
    if (precision := _precision(context, scores, part)) is not None:
        row.append(precision)
    row += [summary.final(scores, v, part) for v in others]
    if baseline is not None:
        row += [] if _has_column(baseline, others) else [summary.mean_of(baseline.scores, baseline.final(part))]
        row += [baselines.gap(scores, baseline, part), p_value(p)]
    floors = context.floors[scores.measure.task].values()
    return [*row, float(np.mean(scores.oracle_means[at])), *(float(np.mean(values[at])) for values in floors)]


def _rise_table(context: Context) -> Table:
    """First step with 95 % of the rise, by part of the network, with the noise level of that step."""
    scores = context.scores
    best: list[Cell] = ["Best site"]
    for s in scores.values():
        index = summary.best_site(s)
        if index is None:
            best += [MISSING, np.nan]
            continue
        name = s.sites[index].name
        found = summary.emergence(s, "trained", name)
        best += [Markup("{} {}").format(step_of(found, s), code(name)), _sigma(context, found)]
    rows = [best]
    first = next(iter(scores.values()))
    named = {"decoder": "Decoder mean", "encoder": "Encoder mean"} | {b: f"Block {b}" for b in first.blocks}
    for part, label in named.items():
        if first.site_indices(part):
            rises = [(s, summary.emergence(s, "trained", part)) for s in scores.values()]
            rows.append([label, *(v for s, rise in rises for v in (step_of(rise, s), _sigma(context, rise)))])
    floors = "; ".join(f"for {TASK_NOUNS[t]} {s.floor_word('all')}" for t, s in scores.items())
    caption = (
        "First step with 95 % of the rise from the floor to the last step, trained network; no step if the last step "
        f"does not clearly beat the floor and the first step. The floor is {floors}. "
        "Sigma: the noise level that the network sees at that step, in units of the latent’s standard deviation"
    )
    columns = ["Part", *(name for t in scores for name in (f"{TASK_TITLES[t]}, step", "Sigma"))]
    return Table(caption, columns, rows, images=first.images)


def _sigma(context: Context, rise: Rise) -> Interval:
    return context.sigma(rise.step) if rise.found else Interval(np.nan, np.nan, np.nan)
