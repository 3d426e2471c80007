"""The report's experiments beside the grid: emergence, VAE, convolutions, smoothness, transfer, selectivity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from probing import statistics
from probing.statistics import Interval
from sweeps.analysis import summary
from sweeps.analysis.experiments import Emergence
from sweeps.analysis.scores import Scores
from sweeps.analysis.vocabulary import LATENT_TITLES, TASK_TITLES, baseline_noun
from sweeps.analysis.words import MISSING, number, step_words
from sweeps.report import thumbnails
from sweeps.report.context import Context
from sweeps.report.figures.experiments import (
    conv_curves,
    cosine_heatmap,
    emergence_curves,
    selectivity_heatmap,
    transfer_heatmap,
    vae_curves,
)
from sweeps.report.gallery.experiments import Emerging, Smoothed
from sweeps.report.links import site_link, source_link
from sweeps.report.page import Block, Figures, Folded, Heading, Paragraph, Section, Strip, StripGroup, downloads
from sweeps.report.tables import Cell, Num, Table, grid_size, interval, p_value

STYLE = "strip seven"


def at_step(scores: Scores | None, part: str, step: int) -> Interval:
    """Mean over a part's sites at a step; NaN if it was not probed."""
    if scores is None or step not in scores.steps or not scores.site_indices(part):
        return Interval(np.nan, np.nan, np.nan)
    bands = np.stack(summary.curve(scores, "trained", part))
    return Interval(*map(float, bands[:, scores.steps.index(step)]))


def emergence(context: Context) -> Section:
    """Figures 4 and 10: what the decoded image, the probe and the labeller show at each step."""
    found = context.emergence
    if not found:
        return Section("emergence")
    text = Markup(
        "Each step’s latent is decoded and labelled as if it were a finished image: the noisy latent <em>x</em><sub>t"
        "</sub>, as in the paper, and the clean estimate <em>x</em><sub>0</sub> that the same network call implies, "
        "which is the fairer baseline. The probe uses the activations of the same call. All are scored against the "
        "label of the finished image; dots mark 95 % of the way from the floor to each curve’s own final score. A "
        "curve that ends lower is there with less, so the table also says from which step on the labeller on the clean "
        "estimate scores better than the probe."
    )
    panels = [emergence_curves(e) for e in found]
    blocks = [Paragraph(text), Figures(panels), _arrivals(context, found), source_link("emergence")]
    blocks += [*map(_emerging, context.emerging), *downloads("emergence", panels)]
    return Section("emergence", "Who sees it first", "Emergence", blocks)


def _arrivals(context: Context, found: Sequence[Emergence]) -> Table:
    """When each curve reaches 95 % of its rise, and by how much the probe leads."""
    rows: list[list[Cell]] = []
    for e in found:
        for a in e.curves:
            title = f"{TASK_TITLES[e.measure.task]}: {a.name}"
            step = Num(_arrival(a.step, e.steps)) if a.rise.found else a.rise.reason
            sigma = context.sigma(a.step) if a.rise.found else np.nan
            rows.append([title, step, sigma, float(a.mean[0]), float(a.mean[-1])])
    for e in found:
        task = TASK_TITLES[e.measure.task]
        lead = Num(f"{interval(e.lead, 0)} steps" if np.isfinite(e.lead.estimate) else MISSING)
        rows.append([f"{task}: steps by which the probe is first, each on its own way", lead, np.nan, np.nan, np.nan])
        passed = _arrival(e.passed, e.steps) if np.isfinite(e.passed.estimate) else "never"
        rows.append([f"{task}: the labeller on the clean estimate scores better from", passed, np.nan, np.nan, np.nan])
    floors = ", ".join(f"{TASK_TITLES[e.measure.task].lower()} {number(e.floor)} ({e.floor_word})" for e in found)
    caption = (
        f"First step with 95 % of the way from the floor on the same images ({floors}) to the curve’s own final score; "
        "“at or before”: the steps between were not measured. Sigma: the noise level that the network sees at that "
        "step, in units of the latent’s standard deviation"
    )
    first = f"Score at step {found[0].steps[0]}"
    return Table(caption, ["Source", "Step", "Sigma", first, "Score at the last step"], rows, images=found[0].images)


def _arrival(step: Interval, steps: Sequence[int]) -> Markup:
    """``4 (3–5)``, or ``at or before 8 (6–10)``; an end that not every resample reaches is ``never``."""
    words = step_words(step.estimate, steps).replace("step ", "")
    ends = ["never" if np.isinf(end) else number(end, 0) for end in (step.low, step.high)]
    return Markup('{} <span class="ci">({}–{})</span>').format(words, *ends)


def _emerging(found: Emerging) -> StripGroup:
    """Decoded images, probe outputs and labels of one image by step."""
    strips = []
    for kind in ("x0", "xt"):
        words = LATENT_TITLES[kind]
        pictures = [
            thumbnails.photo(pixels, f"{words}, step {step}", f"step {step}", 128)
            for step, pixels in found.images[kind].items()
        ]
        pictures.append(thumbnails.photo(found.finished, "Finished image", "finished", 128))
        strips.append(Strip(f"Image: {words}", pictures, STYLE))
    for row in found.strips:
        title = f"{TASK_TITLES[row.task]}: {row.name}"
        maps = [(values, f"step {step}") for step, values in row.maps.items()]
        pictures = [
            thumbnails.map_picture(values, row.task, row.limits, f"{title}: {words}", words, 64)
            for values, words in [*maps, (row.label, "label")]
        ]
        strips.append(Strip(title, pictures, STYLE))
    return StripGroup(f"“{found.caption}”", f"sample {found.sample}", strips)


def vae(context: Context) -> Section:
    """Section 4.2 and table 1: the VAE's self-attention."""
    found = context.families.get("vae")
    if not found:
        return Section("vae")
    text = (
        "The same linear probes on the self-attention of the VAE’s decoder, whose input is the unchanged noisy latent "
        "after each step (section 4.2 and table 1 of the paper), beside the decoder of the UNet."
    )
    mains = context.scores
    panels = [vae_curves(mains[t], s) for t, s in found.items() if t in mains]
    rows = []
    for step in sorted({step for scores in found.values() for step in scores.steps}):
        row: list[Cell] = [str(step)]
        for task, scores in found.items():
            main = mains.get(task)
            row += [at_step(scores, "all", step), at_step(main, main.lead_part if main else "", step)]
        rows.append(row)
    names = [f"{s.measure.label}, {network}" for s in found.values() for network in ("VAE", "UNet decoder")]
    caption = "VAE self-attention and UNet decoder mean, trained network, test images"
    groups = [("", 1), *((TASK_TITLES[t], 2) for t in found)]
    table = Table(caption, ["Step", *names], rows, groups, images=next(iter(found.values())).images)
    blocks = [Paragraph(text), Figures(panels), table, source_link("vae"), *downloads("vae-by-step", panels)]
    return Section("vae", "Is it in the VAE?", "VAE", blocks)


def conv(context: Context) -> Section:
    """Appendix A: convolutional sites."""
    found = context.families.get("conv")
    if not found:
        return Section("conv")
    text = (
        "Outputs of the second convolution of each ResNet block, before the residual connection (appendix A of the "
        "paper), beside the self-attention outputs of the same blocks."
    )
    blocks: list[Block] = [Paragraph(text)]
    panels = {task: conv_curves(context.scores[task], s) for task, s in found.items() if task in context.scores}
    for task, shown in panels.items():
        blocks += [
            Heading(TASK_TITLES[task]),
            Figures(shown, small=True),
            _conv_table(context.scores[task], found[task]),
        ]
    every = []
    for task, scores in found.items():
        rows = [[s.name, *(at_step(scores, s.name, step) for step in scores.steps)] for s in scores.sites]
        caption = f"{TASK_TITLES[task]}, {scores.measure.label} by step, trained network"
        every.append(Table(caption, ["Site", *(f"step {s}" for s in scores.steps)], rows, images=scores.images))
    blocks += [Folded("Every convolutional site", every), source_link("conv")]
    blocks += downloads("conv-by-step", [p for shown in panels.values() for p in shown])
    return Section("conv", "Convolution compared with self-attention", "Convolution", blocks)


def _conv_table(main: Scores, conv: Scores) -> Table:
    """Block means of convolution and attention at up to four shared steps."""
    shown = [s for s in conv.steps if s in main.steps]
    shown = shown if len(shown) <= 4 else [s for s in shown if s in (1, 5, 10, 15)]
    rows = []
    for block in main.blocks:
        if conv.site_indices(f"conv.{block}"):
            row: list[Cell] = [block]
            for step in shown:
                row += [at_step(conv, f"conv.{block}", step), at_step(main, block, step)]
            rows.append(row)
    columns = ["Block", *(name for _ in shown for name in ("Convolution", "Attention"))]
    caption = f"{TASK_TITLES[main.measure.task]}, {main.measure.label}: block means, trained network"
    groups = [("", 1), *((f"step {s}", 2) for s in shown)]
    return Table(caption, columns, rows, groups, images=main.images)


def smoothness(context: Context) -> Section:
    """Appendix F, table 3 and figure 13: probes with a smoothness loss."""
    found = context.families.get("smoothness", {}).get("depth")
    plain = context.scores.get("depth")
    if found is None or plain is None:
        return Section("smoothness")
    text = (
        "Depth probes fitted with an edge-aware smoothness term (appendix F of the paper), compared with the same "
        "probes without it. A difference above 0 means that smoothness increases the error, as the paper found at its "
        "coarse sites. p: paired t-test over test images; the last column corrects it by Holm over the sites."
    )
    strips = [_smoothed(s) for s in context.smoothed]
    blocks = [Paragraph(text), _paired_table(plain, found), source_link("smoothness"), *strips]
    return Section("smoothness", "Does a smoothness loss help?", "Smoothness", blocks)


def _paired_table(plain: Scores, smooth: Scores) -> Table:
    """Depth RMSE at the last step without and with the smoothness loss, image by image."""
    step = smooth.steps[-1]
    rows: list[list[Cell]] = []
    tests = []
    for i, site in enumerate(smooth.sites):
        match = plain.site_indices(site.name)
        if not match or step not in plain.steps:
            continue
        without = plain.values[plain.variant_index("trained"), match[0], plain.steps.index(step)]
        with_loss = smooth.values[smooth.variant_index("trained"), i, -1]
        if without.shape != with_loss.shape:
            continue
        tests.append(statistics.paired_test(with_loss, without, "t").p)
        means = [Num(f"{float(statistics.mean_defined(x)):.3f}") for x in (without, with_loss)]
        gap = statistics.difference_interval(with_loss, without, plain.counts)
        rows.append([site_link(site.name), grid_size(site.grid), *means, Num(interval(gap, 3))])
    holm = statistics.holm(tests) if tests else np.empty(0)
    rows = [[*row, p_value(p), p_value(h)] for row, p, h in zip(rows, tests, holm, strict=True)]
    columns = ["Site", "Grid", "Without", "With", "Difference", "p", "p (Holm)"]
    return Table(f"Depth RMSE at step {step}, without and with the smoothness loss", columns, rows, images=plain.images)


def _smoothed(found: Smoothed) -> Strip:
    image = thumbnails.photo(found.image, f"Generated image, sample {found.sample}", "image", 192)
    maps = {"label": found.label, "without smoothness": found.without, "with smoothness": found.smooth}
    pictures = [
        thumbnails.map_picture(values, "depth", found.limits, f"Depth of sample {found.sample}: {words}", words)
        for words, values in maps.items()
    ]
    return Strip(f"{found.site.name}, step {found.step}, sample {found.sample}", [image, *pictures], STYLE)


def transfer(context: Context) -> Section:
    """Beyond the paper: whether the steps share one representation."""
    found = context.transfers
    if not found:
        return Section("transfer")
    text = (
        "Beyond the paper: a probe fitted at one step, applied unchanged to the raw activations of the other steps at "
        "the same site. If the matrix is as good off the diagonal as on it, the steps share one code. The cosines "
        "compare the probes’ directions; two unrelated directions with that many channels have a cosine near 0."
    )
    panels = {
        (t.measure.task, t.site.name): [transfer_heatmap(t), *([] if t.cosine is None else [cosine_heatmap(t)])]
        for t in found
    }
    # Within a task, the best site comes first: it is shown, and the others are folded.
    best = {t.measure.task: (t.measure.task, t.site.name) for t in reversed(found)}
    shown = [best[task] for task in context.scores if task in best]
    main = [p for key in shown for p in panels[key]]
    others = [p for key, group in panels.items() if key not in shown for p in group]
    blocks: list[Block] = [Paragraph(text), Figures(main)]
    blocks += [Folded("The other sites", [Figures(others)])] if others else []
    blocks.append(source_link("transfer"))
    for name in ("transfer", "cosine"):
        blocks += downloads(name, [p for p in (*main, *others) if p.name.startswith(name)])
    return Section("transfer", "One representation, or one for each step?", "Transfer", blocks)


def selectivity(context: Context) -> Section:
    """Beyond the paper: selectivity by layer."""
    panels = [selectivity_heatmap(s) for s in context.selectives if np.isfinite(s.gain).any()]
    if not panels:
        return Section("selectivity")
    names = ", ".join(sorted(baseline_noun(name) for name in {n for s in context.selectives for n in s.baselines}))
    text = (
        "By how much the trained network’s probe beats the best answer that does not know the image’s content, at "
        f"every site and step. Baselines in this run: {names}. Blue is selective, red is worse than a baseline."
    )
    blocks = [Paragraph(text), Figures(panels), *downloads("selectivity", panels)]
    return Section("selectivity", "Selectivity, layer by layer", "Selectivity", blocks)
