"""The report's main results: headline, pictures, curves, heatmaps, examples, sites."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probing.statistics import Interval
from sweeps import findings
from sweeps.analysis import Scores
from sweeps.figures import BLOCKS
from sweeps.figures_probes import TASK_TITLES, variant_title
from sweeps.report_context import Context
from sweeps.report_data import Site
from sweeps.report_html import Section, downloads, folded, panels, paragraph
from sweeps.report_links import site_link
from sweeps.report_pictures import NOUNS
from sweeps.tables_view import MISSING, Raw, interval, markup, number, p_value, steps, table


def headline(context: Context) -> Section:
    """What was found, in words and in six numbers."""
    scores = list(context.scores.values())
    if not scores:
        body = paragraph("No probe has finished yet: run the sweep, then build this page again.")
        return Section("findings", "No result yet", "Findings", body)
    lead = " ".join(filter(None, (_best_sentence(s, s is scores[0]) for s in scores)))
    more = " ".join(filter(None, (_gap_sentence(scores), _when_sentence(scores))))
    tiles = "".join(_tiles(s) for s in scores)
    body = paragraph(lead, "lead") + paragraph(more) + f'<ul class="facts">{tiles}</ul>'
    return Section("findings", "What was found", "Findings", body + paragraph(_READING + _choice(scores[0]), "note"))


_READING = (
    "Brackets are 95 % bootstrap intervals over test images, resampled jointly for all sites. The "
    "<em>grid oracle</em> is the best score that any map on the site’s "
    "cells can reach; the <em>floor</em> is the best answer that ignores the activations. Bars run "
    "from floor to oracle. "
)


def _choice(scores: Scores) -> str:
    """How the sites that the text names were chosen."""
    if findings.best_site(scores) is None:
        return "No best site is named: neither validation scores nor training losses are stored."
    if scores.validated:
        return "Sites are chosen on validation images and scored on test images."
    return (
        "This run has no validation images, so sites are chosen by the loss of their probes on the training images, "
        "which favours sites that fit those too closely; they are scored on test images, which choose nothing."
    )


def _best_sentence(scores: Scores, first: bool) -> str:
    index = findings.best_site(scores)
    if index is None:
        return ""
    measure, site = scores.measure, scores.sites[index]
    value = findings.final(scores, "trained", site.name)
    floor = float(scores.floor[index])
    when = f" at the last of {scores.steps[-1]} denoising steps" if first else ""
    text = (
        f"{NOUNS[measure.task].capitalize()} is read best at <code>{site.name}</code>: "
        f"{measure.label} {interval(value)}{when}, where {number(floor)} needs no activations and "
        f"{number(scores.oracle_means[index])} is the best that its {_grid(site)} grid allows."
    )
    if measure.sign * (value.estimate - floor) <= 0:
        text += " That is no better than the floor."
    return text


def _grid(site: Site) -> str:
    rows, columns = site.grid
    return f"{rows}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}{columns}"


def _rival(scores: Scores) -> str | None:
    """The network that the headline compares with, where there is one and a decoder side."""
    others = findings.contrasts(scores) if scores.which("decoder") else ()
    return others[0] if others else None


def _gap_sentence(scores: Sequence[Scores]) -> str:
    found = [(s, findings.gap(s, "decoder", other)) for s in scores if (other := _rival(s))]
    found = [(s, gap) for s, gap in found if np.isfinite(gap.estimate)]
    if not found:
        return ""
    name = variant_title(_rival(found[0][0]) or "")
    parts = [f"{interval(gap)} in {s.measure.label}" for s, gap in found]
    unsure = [s.measure.label for s, gap in found if gap.low <= 0]
    start = "Averaged over the decoder, the trained network is"
    if len(unsure) == len(found):
        return f"{start} not shown to be better than the {name} one: {' and '.join(parts)}."
    text = f"{start} better than the {name} one by {' and by '.join(parts)}."
    if unsure:
        text += f" In {' and '.join(unsure)} the interval does not exclude zero."
    return text


def _when_sentence(scores: Sequence[Scores]) -> str:
    found = [(s, findings.emergence(s, "trained", "decoder")) for s in scores if s.which("decoder")]
    parts = [
        f"by step {steps(e)} for {NOUNS[s.measure.task]}"
        for s, e in found
        if np.isfinite(e.estimate)
    ]
    if not parts:
        return ""
    rise = "of the decoder’s rise from the floor to its last score is there"
    return f"95 % {rise} {' and '.join(parts)}."


def _tiles(scores: Scores) -> str:
    found = [_best_tile(scores), _gap_tile(scores), _when_tile(scores)]
    return "".join(f"<li>{tile}</li>" for tile in found if tile)


def _tile(what: str, value: str, aside: str, gauge: str = "") -> str:
    return (
        f'<span class="what">{what}</span><span class="value">{value}</span>{gauge}'
        f'<span class="aside">{aside}</span>'
    )


def _best_tile(scores: Scores) -> str:
    index = findings.best_site(scores)
    if index is None:
        return ""
    site, measure = scores.sites[index], scores.measure
    value = findings.final(scores, "trained", site.name)
    floor, oracle = float(scores.floor[index]), float(scores.oracle_means[index])
    share = (value.estimate - floor) / (oracle - floor)
    aside = f"floor {number(floor)}, grid oracle {number(oracle)}"
    if np.isfinite(share):
        aside += f": {100 * share:.0f} % of the way" if share > 0 else ": not above the floor"
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


def _gap_tile(scores: Scores) -> str:
    other = _rival(scores)
    if other is None:
        return ""
    found = findings.gap(scores, "decoder", other)
    means = [findings.final(scores, v, "decoder").estimate for v in ("trained", other)]
    what = f"{TASK_TITLES[scores.measure.task]}, decoder gain over {variant_title(other)}"
    aside = f"{scores.measure.label} {number(means[0])} trained, {number(means[1])} "
    return _tile(what, interval(found), aside + f"{variant_title(other)}, step {scores.steps[-1]}")


def _when_tile(scores: Scores) -> str:
    if not scores.which("decoder"):
        return ""
    found = findings.emergence(scores, "trained", "decoder")
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
        "Bright is good in both tasks; variants of a task share one colour scale."
    )
    numbers = "".join(
        _grid_table(s, v)
        for s in context.scores.values()
        for v in ("trained", *findings.contrasts(s))
    )
    body = text + panels(context.heatmaps) + folded("The heatmaps as tables", numbers)
    return Section(
        "heatmaps",
        "Every site and every step",
        "Heatmaps",
        body + downloads(context.heatmaps, "heatmaps"),
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
        f"{findings.chosen_on(next(iter(context.scores.values())))}."
    )
    body = text + panels(context.last_step)
    body += "".join(_score_table(s, context.floors[t]) for t, s in context.scores.items())
    body += _emergence_table(context.scores) + downloads(context.last_step, "sites-last-step")
    return Section("sites", "Where it is, and when it arrives", "Sites", body)


def _score_table(scores: Scores, floors: dict[str, np.ndarray]) -> str:
    others, best = findings.contrasts(scores), findings.best_site(scores)
    columns = ["Site", "Trained", *(variant_title(v).capitalize() for v in others)]
    for v in others[:1]:
        columns += [f"Gain over {variant_title(v)}", "p"]
    columns += ["Grid oracle", *(name.capitalize() for name in floors)]
    p = findings.gap_tests(scores, others[0]) if others else np.full(len(scores.sites), np.nan)
    rows = [
        _score_row(scores, s.name, s.name, floors, float(p[i])) for i, s in enumerate(scores.sites)
    ]
    for side in ("encoder", "decoder"):
        if scores.which(side):
            rows.append(_score_row(scores, side, f"{side} mean", floors, np.nan))
    return table(_score_caption(scores), columns, rows, marked=[] if best is None else [best])


def _score_caption(scores: Scores) -> str:
    measure = scores.measure
    text = f"{TASK_TITLES[measure.task]}, {measure.label} at step {scores.steps[-1]} "
    text += f"({'higher' if measure.higher else 'lower'} is better)."
    if findings.contrasts(scores):
        text += " A gain above 0 favours the trained network; p: Wilcoxon signed ranks over test"
        text += " images, by Holm over the sites."
    return text


def _score_row(
    scores: Scores, part: str, label: str, floors: dict[str, np.ndarray], p: float
) -> list:
    where, others = scores.which(part), findings.contrasts(scores)
    named = site_link(part) if part == label else label
    row: list = [named, findings.final(scores, "trained", part)]
    row += [findings.final(scores, v, part) for v in others]
    for v in others[:1]:
        row += [findings.gap(scores, part, v), p_value(p)]
    row += [float(np.mean(scores.oracle_means[where]))]
    return row + [float(np.mean(values[where])) for values in floors.values()]


def _emergence_table(scores: dict[str, Scores]) -> str:
    any_scores = next(iter(scores.values()))
    parts = [("decoder", "Decoder mean"), ("encoder", "Encoder mean")]
    parts += [(b, f"Block {b}") for b in BLOCKS]
    rows = []
    for part, label in parts:
        if any_scores.which(part):
            found = [findings.emergence(s, "trained", part) for s in scores.values()]
            rows.append([label, *(Raw(steps(e)) for e in found)])
    best = [_best_emergence(s) for s in scores.values()]
    rows.insert(0, ["Best site", *(Raw(b) for b in best)])
    columns = ["Part", *(TASK_TITLES[t] for t in scores)]
    caption = (
        "First step with 95 % of the rise from the floor to the last step, trained network; "
        "no entry where the last step does not clearly beat the floor"
    )
    return table(caption, columns, rows)


def _best_emergence(scores: Scores) -> str:
    index = findings.best_site(scores)
    if index is None:
        return markup(None)
    name = scores.sites[index].name
    found: Interval = findings.emergence(scores, "trained", name)
    return f"{steps(found)} <code>{name}</code>"
