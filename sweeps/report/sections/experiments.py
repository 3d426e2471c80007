"""The report's experiments beside the grid: VAE, convolutions, emergence, transfer, selectivity, smoothness."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from probing import statistics
from probing.statistics import Interval
from sweeps.analysis import summary
from sweeps.analysis.experiments import Emergence
from sweeps.analysis.scores import Scores
from sweeps.report import thumbnails
from sweeps.report.context import Context
from sweeps.report.figures.base import BLOCKS
from sweeps.report.figures.probes import TASK_TITLES, variant_title
from sweeps.report.gallery.experiments import Emerging, Smoothed, Strip
from sweeps.report.html import Section, downloads, folded, panels, paragraph, picture
from sweeps.report.links import cells_link, site_link
from sweeps.report.tables import MISSING, Num, interval, number, p_value, steps, table

NAN = Interval(np.nan, np.nan, np.nan)
KIND_WORDS = {"x0": "clean estimate, decoded", "xt": "noisy latent, decoded"}


def at_step(scores: Scores | None, part: str, step: int) -> Interval:
    """Mean over a part's sites at a step; NaN where it was not probed."""
    if scores is None or step not in scores.steps or not scores.which(part):
        return NAN
    bands = np.stack(summary.curve(scores, "trained", part))
    return Interval(*map(float, bands[:, scores.steps.index(step)]))


def emergence(context: Context) -> Section:
    """Figures 4 and 10: what the decoded image, the probe and the labeller show at each step."""
    found = context.emergence
    if not found:
        return Section("emergence", "", "", "")
    text = paragraph(
        "Each step’s latent is decoded and labelled as if it were a finished image: the noisy latent <em>x</em><sub>t"
        "</sub>, as in the paper, and the clean estimate <em>x</em><sub>0</sub> that the same network call implies, "
        "which is the fairer rival. The probe reads the activations of the same call. All are scored against the label "
        "of the finished image; dots mark 90 % of the way from the floor to the own final score."
    )
    body = text + panels(context.emergence_panels) + _arrivals(context, found) + cells_link("emergence")
    body += "".join(_emerging(e) for e in context.emerging)
    body += downloads(context.emergence_panels, "emergence")
    return Section("emergence", "Who sees it first", "Emergence", body)


def _arrivals(context: Context, found: Sequence[Emergence]) -> str:
    rows: list[list] = []
    for e in found:
        for a in e.curves:
            ends = [float(a.mean[0]), float(a.mean[-1])]
            rows.append([f"{TASK_TITLES[e.measure.task]}: {a.name}", Num(steps(a.step)), context.sigma(a.step), *ends])
    for e in found:
        what = f"{TASK_TITLES[e.measure.task]}: lead of the probe over the clean estimate"
        rows.append([what, _steps(e.lead), np.nan, np.nan, np.nan])
    caption = f"First step with 90 % of the way from floor to final score, {found[0].images} test images. "
    floors = (f"{TASK_TITLES[e.measure.task].lower()} {number(e.floor)} ({e.floor_word})" for e in found)
    caption += f"Floors: {', '.join(floors)}"
    caption += ". Sigma: the noise level, in units of the latent’s deviation, that the network sees at that step"
    return table(caption, ["What", "Step", "Sigma", "Score at step 1", "Score at the end"], rows)


def _steps(found: Interval) -> Num:
    return Num(f"{interval(found, 0)} steps" if np.isfinite(found.estimate) else MISSING)


def _emerging(found: Emerging) -> str:
    head = f'<h3>“{escape(found.caption)}” <span class="note">sample {found.sample}</span></h3>'
    rows = ""
    for kind in ("x0", "xt"):
        cells = [
            picture(thumbnails.photo(pixels, 128), f"{KIND_WORDS[kind]}, step {step}", f"step {step}")
            for step, pixels in found.images[kind].items()
        ]
        cells.append(picture(thumbnails.photo(found.finished, 128), "Finished image", "finished"))
        rows += _row(f"Image: {KIND_WORDS[kind]}", cells)
    for strip in found.strips:
        rows += _row(f"{TASK_TITLES[strip.task]}: {strip.name}", _strip(strip))
    return f'<article class="example">{head}{rows}</article>'


def _row(name: str, cells: Sequence[str]) -> str:
    return f'<p class="strip-name">{escape(name)}</p><div class="strip seven">{"".join(cells)}</div>'


def _strip(strip: Strip) -> list[str]:
    def cell(values: np.ndarray, words: str) -> str:
        address = thumbnails.map_picture(values, strip.task, strip.low, strip.high, 64)
        alt = f"{TASK_TITLES[strip.task]}, {strip.name}: {words}"
        return picture(address, alt, words, map_like=True)

    cells = [cell(values, f"step {step}") for step, values in strip.maps.items()]
    return [*cells, cell(strip.label, "label")]


def vae(context: Context) -> Section:
    """Section 4.2 and table 1."""
    found = context.families.get("vae")
    if not found:
        return Section("vae", "", "", "")
    text = paragraph(
        "The same linear probes on the self-attention of the VAE’s decoder, fed with the noisy latent after each step "
        "as it is (section 4.2 and table 1 of the paper), beside the decoder side of the UNet."
    )
    body = text + panels(context.vae_panels) + _vae_table(context, found) + cells_link("vae")
    return Section("vae", "Is it in the VAE?", "VAE", body + downloads(context.vae_panels, "vae-by-step"))


def _vae_table(context: Context, found: dict[str, Scores]) -> str:
    tasks = list(found)
    shown = sorted({step for scores in found.values() for step in scores.steps})
    rows = []
    for step in shown:
        row: list = [str(step)]
        for task in tasks:
            row += [at_step(found[task], "all", step), at_step(context.scores.get(task), "decoder", step)]
        rows.append(row)
    names = [f"{found[t].measure.label}, {where}" for t in tasks for where in ("VAE", "UNet decoder")]
    caption = "VAE self-attention and UNet decoder-side mean, trained network, test images"
    return table(caption, ["Step", *names], rows, groups=[("", 1), *((TASK_TITLES[t], 2) for t in tasks)])


def conv(context: Context) -> Section:
    """Appendix A."""
    found = context.families.get("conv")
    if not found:
        return Section("conv", "", "", "")
    text = paragraph(
        "Outputs of the second convolution of each ResNet block, before the residual (appendix A of the paper), beside "
        "the self-attention outputs of the same blocks."
    )
    body = text
    for task, scores in found.items():
        if task in context.scores:
            mine = [p for p in context.conv_panels if p.name.startswith(f"conv-{task}-")]
            body += f"<h3>{TASK_TITLES[task]}</h3>" + panels(mine, small=True)
            body += _conv_table(context.scores[task], scores)
    body += folded("Every convolutional site", "".join(_all_sites(s) for s in found.values()))
    body += cells_link("conv") + downloads(context.conv_panels, "conv-by-step")
    return Section("conv", "Convolution against self-attention", "Convolution", body)


def _conv_table(main: Scores, found: Scores) -> str:
    shown = [s for s in found.steps if s in main.steps]
    shown = shown if len(shown) <= 4 else [s for s in shown if s in (1, 5, 10, 15)]
    rows = []
    for block in BLOCKS:
        if main.which(block) and found.which(f"conv.{block}"):
            row: list = [block]
            for step in shown:
                row += [at_step(found, f"conv.{block}", step), at_step(main, block, step)]
            rows.append(row)
    names = [name for _ in shown for name in ("Convolution", "Attention")]
    what = f"{TASK_TITLES[main.measure.task]}, {main.measure.label}"
    caption = f"{what}: means over the sites of a block, trained network"
    return table(caption, ["Block", *names], rows, groups=[("", 1), *((f"step {s}", 2) for s in shown)])


def _all_sites(scores: Scores) -> str:
    rows = [[s.name, *(at_step(scores, s.name, step) for step in scores.steps)] for s in scores.sites]
    caption = f"{TASK_TITLES[scores.measure.task]}, {scores.measure.label} by step, trained network"
    return table(caption, ["Site", *(f"step {s}" for s in scores.steps)], rows)


def smoothness(context: Context) -> Section:
    """Appendix F, table 3 and figure 13."""
    found = context.families.get("smoothness", {}).get("depth")
    plain = context.scores.get("depth")
    if found is None or plain is None:
        return Section("smoothness", "", "", "")
    text = paragraph(
        "Depth probes fitted with an edge-aware smoothness term (appendix F of the paper), against the same probes "
        "without it. A difference above 0 means that smoothness makes the error larger, as the paper found at its "
        "coarse sites. p: paired t-test over test images; the last column corrects it by Holm over the sites."
    )
    body = text + _paired_table(plain, found) + cells_link("smoothness")
    body += "".join(_smoothed(s) for s in context.smoothed)
    return Section("smoothness", "Does a smoothness loss help?", "Smoothness", body)


def _paired_table(plain: Scores, smooth: Scores) -> str:
    step = smooth.steps[-1]
    rows, tests = [], []
    for i, site in enumerate(smooth.sites):
        match = plain.which(site.name)
        if not match or step not in plain.steps:
            continue
        a = plain.values[plain.at("trained"), match[0], plain.steps.index(step)]
        b = smooth.values[smooth.at("trained"), i, -1]
        if a.shape != b.shape:
            continue
        tests.append(statistics.paired_test(b, a, "t").p)
        means = [Num(f"{float(statistics.mean_defined(x)):.3f}") for x in (a, b)]
        gap = statistics.difference_interval(b, a, plain.counts)
        rows.append([site_link(site.name), f"{site.grid[0]} × {site.grid[1]}", *means, Num(interval(gap, 3))])
    holm = statistics.holm(tests) if tests else np.empty(0)
    rows = [[*row, p_value(p), p_value(h)] for row, p, h in zip(rows, tests, holm, strict=True)]
    columns = ["Site", "Grid", "Without", "With", "Difference", "p", "p (Holm)"]
    return table(f"Depth RMSE at step {step}, without and with the smoothness loss", columns, rows)


def _smoothed(found: Smoothed) -> str:
    low, high = np.percentile(found.label, (1, 99))

    def cell(values: np.ndarray, words: str) -> str:
        address = thumbnails.map_picture(values, "depth", float(low), float(high))
        return picture(address, f"Depth of sample {found.sample}: {words}", words, map_like=True)

    cells = [
        picture(thumbnails.photo(found.image, 192), f"Generated image, sample {found.sample}", "image"),
        cell(found.label, "label"),
        cell(found.without, "without smoothness"),
        cell(found.smooth, "with smoothness"),
    ]
    return _row(f"{found.site.name}, step {found.step}, sample {found.sample}", cells)


def transfer(context: Context) -> Section:
    """Beyond the paper: is one representation shared by the steps, and where is it selective?"""
    found = context.transfers
    if not found:
        return Section("transfer", "", "", "")
    text = paragraph(
        "Beyond the paper: a probe that was fitted at one step, applied unchanged to the raw activations of the others "
        "at the same site. A square that is as good off the diagonal as on it says that the steps share one code. The "
        "cosines compare the probes’ directions; two unrelated directions of that many channels have a cosine near 0."
    )
    body = text + panels(context.transfer_panels)
    if context.more_transfer_panels:
        body += folded("The other sites", panels(context.more_transfer_panels))
    body += cells_link("transfer")
    for name in ("transfer", "cosine"):
        body += downloads([p for p in context.all_transfer_panels if p.name.startswith(name)], name)
    return Section("transfer", "One representation, or fifteen?", "Transfer", body)


def selectivity(context: Context) -> Section:
    """Beyond the paper: layer-wise selectivity."""
    if not context.selectivity_panels:
        return Section("selectivity", "", "", "")
    baselines = {name for s in context.selectives for name in s.baselines}
    named = ", ".join(sorted(variant_title(r).replace("_", " ") for r in baselines))
    text = paragraph(
        "By how much the trained network’s probe beats the best answer that does not know the image’s content, at "
        f"every site and step. Rivals in this run: {escape(named)}. Blue is selective, red is worse than a rival."
    )
    body = text + panels(context.selectivity_panels) + downloads(context.selectivity_panels, "selectivity")
    return Section("selectivity", "Selectivity, layer by layer", "Selectivity", body)
