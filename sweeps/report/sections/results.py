"""The report's main results: headline, pictures, curves, heatmaps, examples, sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from probing.diffusion.variants import OTHER_SEED
from probing.statistics import Interval
from sweeps.analysis import baselines, summary
from sweeps.analysis.baselines import Baseline, Headline
from sweeps.analysis.scores import Scores
from sweeps.analysis.tables import Site
from sweeps.analysis.vocabulary import baseline_noun
from sweeps.report.context import Context
from sweeps.report.figures.base import BLOCKS
from sweeps.report.figures.probes import TASK_TITLES, variant_title
from sweeps.report.html import Section, downloads, folded, panels, paragraph
from sweeps.report.links import site_link
from sweeps.report.sections.examples import NOUNS
from sweeps.report.sections.measures import nested_test, other_measures, ten_contrasts
from sweeps.report.tables import MISSING, Raw, interval, markup, number, p_value, steps, table


def headline(context: Context) -> Section:
    """What was found, in words and in six numbers."""
    scores = list(context.scores.values())
    if not scores:
        body = paragraph("No probe has finished yet: run the sweep, then build this page again.")
        return Section("findings", "No result yet", "Findings", body)
    lead = " ".join(filter(None, (_best_sentence(context, s, s is scores[0]) for s in scores)))
    more = " ".join(filter(None, (gap_sentence(context), _when_sentence(scores))))
    tiles = "".join(_tiles(context, s) for s in scores)
    body = paragraph(lead, "lead") + paragraph(more) + f'<ul class="facts">{tiles}</ul>'
    note = _READING + _choice(scores[0]) + _floors_read(scores)
    return Section("findings", "What was found", "Findings", body + paragraph(note, "note"))


def _floors_read(scores: Sequence[Scores]) -> str:
    """What the floors were chosen from."""
    lacking = [NOUNS[s.measure.task] for s in scores if s.position is None]
    if not lacking:
        return " The floor is the best of mean mask and all foreground, or mean depth map, and of the position alone."
    return (
        f" No probe of the position alone was fitted for {' and '.join(lacking)}: "
        "a floor that includes it could be higher. <code>sweep.controls</code> adds it."
    )


_READING = (
    "Brackets are 95 % bootstrap intervals over test images, resampled jointly for all sites. The "
    "<em>grid oracle</em> is the best score that any map on the site’s "
    "cells can reach; the <em>floor</em> is the best answer that ignores the activations. Bars run "
    "from floor to oracle. "
)


def _precision(context: Context, scores: Scores, part: str) -> Interval | None:
    """Average precision of the trained network's saliency probes at the last step, where it was stored."""
    found = context.precision
    if scores.measure.task != "saliency" or found is None or not found.which(part):
        return None
    return summary.final(found, "trained", part)


def _choice(scores: Scores) -> str:
    """How the sites that the text names were chosen."""
    if summary.best_site(scores) is None:
        return "No best site is named: neither validation scores nor training losses are stored."
    if scores.validated:
        return "Sites are chosen on validation images and scored on test images."
    return (
        "This run has no validation images, so sites are chosen by the loss of their probes on the training images, "
        "which favours sites that fit those too closely; they are scored on test images, which choose nothing."
    )


def _best_sentence(context: Context, scores: Scores, first: bool) -> str:
    index = summary.best_site(scores)
    if index is None:
        return ""
    measure, site = scores.measure, scores.sites[index]
    value = summary.final(scores, "trained", site.name)
    floor = float(scores.floor[index])
    when = f" at the last of {scores.steps[-1]} denoising steps" if first else ""
    text = (
        f"{NOUNS[measure.task].capitalize()} is read best at <code>{site.name}</code>: "
        f"{measure.label} {interval(value)}{when}, where {number(floor)} needs no activations "
        f"({scores.floor_word(site.name)}) and "
        f"{number(scores.oracle_means[index])} is the best that its {_grid(site)} grid allows."
    )
    if (precision := _precision(context, scores, site.name)) is not None:
        text += f" Its average precision, which needs no threshold, is {interval(precision)}."
    if measure.sign * (value.estimate - floor) <= 0:
        text += " That is no better than the floor."
    return text


def _grid(site: Site) -> str:
    rows, columns = site.grid
    return f"{rows}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}{columns}"


def gap_sentence(context: Context) -> str:
    found = {t: h for t, h in context.headlines.items() if np.isfinite(h.gain.estimate)}
    if not found:
        return ""
    told: dict[str, list[str]] = {}
    for task, one in found.items():
        told.setdefault(_standing(one.gain), []).append(_gap_part(context, task, one))
    parts = [f"{word} than its best rival {', and '.join(gains)}" for word, gains in told.items()]
    text = f"Averaged over the decoder, the trained network is {', and '.join(parts)}. "
    text += f"The rival is chosen {summary.chosen_on(next(iter(context.scores.values())))}."
    low = [context.scores[t].measure.label for t, one in found.items() if _below_floor(context.scores[t], one)]
    if low:
        text += f" In {' and '.join(low)} the decoder’s mean is no better than its floor, which needs no network."
    missing = dict.fromkeys(m for one in found.values() for m in one.missing)
    if missing:
        text += f" Not among the baselines, as this run does not hold them: {'; '.join(map(baseline_noun, missing))}. "
        text += f"<code>{baselines.FIT_ALL}</code> fits all of them."
    return text


def _below_floor(scores: Scores, one: Headline) -> bool:
    floor = float(np.mean(scores.floor[scores.which("decoder")]))
    return scores.measure.sign * (one.trained_score - floor) <= 0


def _standing(gain: Interval) -> str:
    """What the interval of a gain shows."""
    return "better" if gain.low > 0 else "worse" if gain.high < 0 else "not shown to be better"


def _gap_part(context: Context, task: str, one: Headline) -> str:
    gain = one.gain
    shown = replace(gain, estimate=-gain.estimate, low=-gain.high, high=-gain.low) if gain.high < 0 else gain
    text = f"by {interval(shown)} in {context.scores[task].measure.label}"
    if task == "saliency" and context.precision_gain is not None:
        text += f" and {interval(context.precision_gain)} in average precision"
    return f"{text} over {baseline_noun(one.baseline.name)}"


def _when_sentence(scores: Sequence[Scores]) -> str:
    found = [(s, summary.emergence(s, "trained", "decoder")) for s in scores if s.which("decoder")]
    parts = [f"by step {steps(e)} for {NOUNS[s.measure.task]}" for s, e in found if np.isfinite(e.estimate)]
    if not parts:
        return ""
    rise = "of the decoder’s rise from the floor to its last score is there"
    return f"95 % {rise} {' and '.join(parts)}."


def _tiles(context: Context, scores: Scores) -> str:
    found = [_best_tile(context, scores), _gap_tile(context, scores), _when_tile(scores)]
    return "".join(f"<li>{tile}</li>" for tile in found if tile)


def _tile(what: str, value: str, aside: str, gauge: str = "") -> str:
    return (
        f'<span class="what">{what}</span><span class="value">{value}</span>{gauge}<span class="aside">{aside}</span>'
    )


def _best_tile(context: Context, scores: Scores) -> str:
    index = summary.best_site(scores)
    if index is None:
        return ""
    site, measure = scores.sites[index], scores.measure
    value = summary.final(scores, "trained", site.name)
    floor, oracle = float(scores.floor[index]), float(scores.oracle_means[index])
    share = (value.estimate - floor) / (oracle - floor)
    aside = f"floor {number(floor)} ({scores.floor_word(site.name)}), grid oracle {number(oracle)}"
    if np.isfinite(share):
        aside += f": {100 * share:.0f} % of the way" if share > 0 else ": not above the floor"
    if (precision := _precision(context, scores, site.name)) is not None:
        aside += f"; average precision {interval(precision)}"
    what = f"{TASK_TITLES[measure.task]}, best site {site.name}: {measure.label}"
    return _tile(what, interval(value), aside, gauge(share))


def gauge(share: float) -> str:
    """A bar from floor to oracle with a mark at the score; decoration, the text says it too."""
    if not np.isfinite(share):
        return ""
    at = 100 * min(max(share, 0.0), 1.0)
    return (
        '<span class="gauge" aria-hidden="true"><i></i>'
        f'<b style="left:0;width:{at:.1f}%"></b><s style="left:0"></s><s style="right:0"></s>'
        f'<u style="left:{at:.1f}%"></u></span>'
    )


def _gap_tile(context: Context, scores: Scores) -> str:
    found = context.headlines.get(scores.measure.task)
    if found is None:
        return ""
    rival = baseline_noun(found.baseline.name)
    what = f"{TASK_TITLES[scores.measure.task]}, decoder gain over the best rival: {rival}"
    aside = f"{scores.measure.label} {number(found.trained_score)} trained, {number(found.baseline_score)} rival, "
    aside += f"step {scores.steps[-1]}"
    return _tile(what, interval(found.gain), aside)


def _when_tile(scores: Scores) -> str:
    if not scores.which("decoder"):
        return ""
    found = summary.emergence(scores, "trained", "decoder")
    what = f"{TASK_TITLES[scores.measure.task]}, decoder at 95 % of its rise"
    if not np.isfinite(found.estimate):
        return _tile(what, MISSING, "the last step does not clearly beat the floor")
    return _tile(what, f"step {steps(found)}", f"of {scores.steps[-1]} denoising steps")


def curves(context: Context) -> Section:
    """Scores by denoising step, by block and by site."""
    if not context.curves:
        return Section("steps", "", "", "")
    text = paragraph(
        "One probe per site and step, scored on test images; lines are means over the sites of a "
        "block, bands 95 % bootstrap intervals over images. Dashed grey: the same probes on the "
        "other networks, mean over all sites. Dotted: the mean grid oracle of the decoder side."
    )
    body = text + panels(context.curves) + downloads(context.curves, "blocks-by-step")
    for task, found in context.site_curves.items():
        body += f"<h3>{TASK_TITLES[task]}, site by site</h3>" + panels(found, small=True)
    body += downloads([p for found in context.site_curves.values() for p in found], "sites-by-step")
    return Section("steps", "Score by denoising step", "By step", body)


def heatmaps(context: Context) -> Section:
    """Every site and step at once."""
    if not context.heatmaps:
        return Section("heatmaps", "", "", "")
    text = paragraph(
        "Rows are sites in the order in which the network runs them: encoder, bottleneck, decoder. "
        "Bright is good in both tasks; variants of a task share one colour scale. A dot marks a cell that is not shown "
        "to beat the floor and, for the trained network, every other network too (one-sided t-tests over test images; "
        "by Benjamini and Hochberg, at most 5 % of the cells without a dot are expected to be wrong)."
        + _other_image(context)
    )
    numbers = "".join(_grid_table(s, v) for s in context.scores.values() for v in ("trained", *summary.contrasts(s)))
    body = text + panels(context.heatmaps) + folded("The heatmaps as tables", numbers)
    return Section("heatmaps", "Every site and every step", "Heatmaps", body + downloads(context.heatmaps, "heatmaps"))


def _other_image(context: Context) -> str:
    """What the rival is whose activations are those of another image, where it was sampled."""
    if not any(OTHER_SEED in summary.contrasts(s) for s in context.scores.values()):
        return ""
    return (
        " “Other image, same prompt” counts as another network here: its probes read the activations of another image, "
        "which the trained network made from the same prompt with another seed, for this image’s labels, and so they "
        "say what the text alone gives."
    )


def _grid_table(scores: Scores, variant: str) -> str:
    values = scores.means[scores.at(variant)]
    rows = [[site_link(s.name), *map(float, values[i])] for i, s in enumerate(scores.sites)]
    caption = f"{scores.measure.label} by site and step, {variant_title(variant)}"
    return table(caption, ["Site", *map(str, scores.steps)], rows)


def sites(context: Context) -> Section:
    """Where: every site at the last step, with floors and oracle, and when each gets there."""
    if not context.scores:
        return Section("sites", "", "", "")
    text = paragraph(
        "Scores of the last step on test images. A coarse grid cannot draw a thin outline, so each "
        "score stands beside its grid oracle; marked rows are the best sites, chosen "
        f"{summary.chosen_on(next(iter(context.scores.values())))}." + _other_image(context)
    )
    body = text + panels(context.last_step)
    body += "".join(_score_table(context, s) for s in context.scores.values())
    others = "".join(other_measures(context.run, s) for s in context.scores.values())
    body += ten_contrasts(context) + nested_test(context)
    body += folded("Other measures at the last step", others)
    body += _emergence_table(context) + downloads(context.last_step, "sites-last-step")
    return Section("sites", "Where it is, and when it arrives", "Sites", body)


def _score_table(context: Context, scores: Scores) -> str:
    others, best, floors = summary.contrasts(scores), summary.best_site(scores), context.floors[scores.measure.task]
    precise = _precision(context, scores, "all") is not None
    columns = ["Site", "Trained", *(["Trained, average precision"] if precise else [])]
    columns += [variant_title(v).capitalize() for v in others]
    rival = _site_rival(context, scores)
    if rival is not None:
        named = variant_title(rival.name)
        columns += [] if rival.name in others else [named.capitalize()]
        columns += [f"Gain over {named}", "p"]
    columns += ["Grid oracle", *(name.capitalize() for name in floors)]
    p = np.full(len(scores.sites), np.nan) if rival is None else baselines.site_tests(scores, rival)
    rows = [_score_row(context, scores, s.name, s.name, float(p[i])) for i, s in enumerate(scores.sites)]
    for side in ("encoder", "decoder"):
        if scores.which(side):
            rows.append(_score_row(context, scores, side, f"{side} mean", np.nan))
    return table(_score_caption(scores, rival is not None), columns, rows, marked=[] if best is None else [best])


def _site_rival(context: Context, scores: Scores) -> Baseline | None:
    """The headline's rival, site by site; without a decoder side the first other network."""
    found = context.headlines.get(scores.measure.task)
    if found is not None:
        return found.baseline
    return next(iter(baselines.baselines(scores, {}, "all")), None)


def _score_caption(scores: Scores, rival: bool) -> str:
    measure = scores.measure
    text = f"{TASK_TITLES[measure.task]}, {measure.label} at step {scores.steps[-1]} "
    text += f"({'higher' if measure.higher else 'lower'} is better)."
    if rival:
        text += " A gain above 0 favours the trained network; p: Wilcoxon signed ranks over test"
        text += " images, by Holm over the sites."
    return text


def _score_row(context: Context, scores: Scores, part: str, label: str, p: float) -> list:
    floors = context.floors[scores.measure.task]
    where, others = scores.which(part), summary.contrasts(scores)
    named = site_link(part) if part == label else label
    row: list = [named, summary.final(scores, "trained", part)]
    if (precision := _precision(context, scores, part)) is not None:
        row.append(precision)
    row += [summary.final(scores, v, part) for v in others]
    rival = _site_rival(context, scores)
    if rival is not None:
        row += [] if rival.name in others else [summary.mean_of(rival.scores, rival.final(part))]
        row += [baselines.gap(scores, rival, part), p_value(p)]
    row += [float(np.mean(scores.oracle_means[where]))]
    return row + [float(np.mean(values[where])) for values in floors.values()]


def _emergence_table(context: Context) -> str:
    scores = context.scores
    any_scores = next(iter(scores.values()))
    parts = [("decoder", "Decoder mean"), ("encoder", "Encoder mean")]
    parts += [(b, f"Block {b}") for b in BLOCKS]
    rows = []
    for part, label in parts:
        if any_scores.which(part):
            found = [summary.emergence(s, "trained", part) for s in scores.values()]
            rows.append([label, *(cell for e in found for cell in (Raw(steps(e)), context.sigma(e)))])
    best = [_best_emergence(s) for s in scores.values()]
    rows.insert(0, ["Best site", *(cell for e, where in best for cell in (Raw(where), context.sigma(e)))])
    columns = ["Part", *(name for t in scores for name in (f"{TASK_TITLES[t]}, step", "Sigma"))]
    caption = (
        "First step with 95 % of the rise from the floor to the last step, trained network; "
        "no entry where the last step does not clearly beat the floor. The floor is "
    )
    caption += "; ".join(f"for {NOUNS[t]} {s.floor_word('all')}" for t, s in scores.items())
    caption += ". Sigma: the noise level, in units of the latent’s deviation, that the network sees at that step"
    return table(caption, columns, rows)


def _best_emergence(scores: Scores) -> tuple[Interval, str]:
    """The step of the best site, and its markup with the site's name."""
    index = summary.best_site(scores)
    if index is None:
        return Interval(np.nan, np.nan, np.nan), markup(None)
    name = scores.sites[index].name
    found: Interval = summary.emergence(scores, "trained", name)
    return found, f"{steps(found)} <code>{name}</code>"
