"""The report's controls with their selectivity, and the paper's values beside this run's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from probing import statistics
from probing.statistics import Selectivity
from sweeps.analysis import measures, summary
from sweeps.analysis.baselines import FLOOR
from sweeps.analysis.experiments import CONTENT_FREE_CONTROLS
from sweeps.analysis.scores import Scores, collect
from sweeps.analysis.summary import Edits
from sweeps.analysis.tables import RunData
from sweeps.analysis.vocabulary import PROBE_CONTROL_TITLES, TASK_TITLES, baseline_noun
from sweeps.analysis.words import number
from sweeps.report.context import Context
from sweeps.report.page import Paragraph, Section
from sweeps.report.sections.experiments import at_step
from sweeps.report.tables import Cell, Num, Table


def controls(context: Context) -> Section:
    """Probes trained on something else, and the task's advantage over them."""
    by_control = {c: collect(context.run, control=c) for c in summary.controls(context.run)}
    tables = []
    for task, scores in context.scores.items():
        found = {c: by_task[task] for c, by_task in by_control.items() if task in by_task}
        if found:
            tables.append(_control_table(context.run, scores, found))
    if not tables:
        return Section("controls")
    text = Markup(
        "The same probe and budget, trained on something other than the image’s labels or activations. "
        "<em>Selectivity</em> is the trained network’s gain over the best of floor, position, other image and surface. "
        "Permuted labels cannot be learned and only check the pipeline; of labels shuffled inside each image, its "
        "share of object can. The Dice of such a probe depends on its threshold and may be 0 or high; its "
        "cross-entropy shows whether it learned anything."
    )
    return Section("controls", "Controls and selectivity", "Controls", [Paragraph(text), *tables])


def _control_table(run: RunData, scores: Scores, found: Mapping[str, Scores]) -> Table:
    """Decoder means of task, controls and floor at the last step; cross-entropy only if it was stored."""
    shown, part = {"none": scores, **found}, scores.lead_part
    losses = {}
    for control, own in shown.items():
        stored = measures.last_step(run, own, control).get("crossentropy")
        losses[control] = np.nan if stored is None else float(np.mean(stored[own.site_indices(part)]))
    rows: list[list[Cell]] = [
        [PROBE_CONTROL_TITLES.get(c, c), summary.final(s, "trained", part), losses[c]] for c, s in shown.items()
    ]
    rows.append(["Floor", float(np.mean(scores.floor[scores.site_indices(part)])), np.nan])
    best = selectivity(scores, found)
    rows.append([f"Selectivity, over {baseline_noun(best.control)}", best.gain, np.nan])
    columns = ["Probe trained on", scores.measure.label, "Cross-entropy"]
    kept = 3 if np.isfinite(list(losses.values())).any() else 2
    measure, cut = scores.measure, [row[:kept] for row in rows]
    caption = f"{TASK_TITLES[measure.task]}, {measure.label} at step {scores.steps[-1]}, {scores.lead_noun}"
    return Table(caption, columns[:kept], cut, marked=[len(rows) - 1], images=scores.images)


def selectivity(scores: Scores, found: Mapping[str, Scores]) -> Selectivity:
    """Mean gain of the task at the last step over the best baseline control or floor."""
    part = scores.lead_part
    ours = scores.part("trained", part)[-1]
    baselines = {FLOOR: scores.floor_values[scores.site_indices(part)].mean(0)}
    for name in CONTENT_FREE_CONTROLS:
        control = found.get(name)
        if control is not None and np.array_equal(control.samples, scores.samples):
            baselines[name] = control.part("trained", part)[-1]
    return statistics.selectivity(ours, baselines, scores.measure.higher, scores.counts)


TABLE_1 = {("saliency", 5): (0.84, 0.15), ("saliency", 15): (0.85, 0.71),
           ("depth", 5): (0.53, 0.96), ("depth", 15): (0.47, 0.84)}  # fmt: skip
"""by task and step: score of the UNet decoder (Dice or RMSE) and of the VAE's self-attention"""
SECTION_5 = {"saliency": (0.46, 0.69), "depth": (1.02, 0.63)}
"""by task: median score before and after the intervention"""
TABLE_3 = {
    "down.2.0": (0.559, 0.583), "down.2.1": (0.519, 0.545), "mid.0": (0.594, 0.639),
    "up.1.0": (0.474, 0.501), "up.1.1": (0.485, 0.511), "up.1.2": (0.522, 0.543),
}  # fmt: skip
"""by site: depth RMSE at step 15 without and with the smoothness loss"""


def paper(context: Context) -> Section:
    """The paper's numbers beside this run's, each with the model it belongs to."""
    if not context.scores:
        return Section("paper")
    text = Markup(
        'On the left, the values that <a href="https://arxiv.org/abs/2306.05720">the paper</a> (Chen, Viégas and '
        "Wattenberg, 2023) measured on <strong>Stable Diffusion v1.4</strong> with its images and labellers. On the "
        "right, this run of <strong>{}</strong>. These are different experiments: the left column is a reference for "
        "the reader and not a target, unless this run is of Stable Diffusion v1.4 itself."
    ).format(context.model)
    columns = ["Quantity", "In the paper", "Stable Diffusion v1.4 (paper)", f"{context.model} (this run)"]
    tested = next(iter(context.scores.values())).images
    table = Table("The paper’s values and this run’s", columns, _paper_rows(context), images=tested)
    return Section("paper", "Beside the paper", "The paper", [Paragraph(text), table])


def _paper_rows(context: Context) -> list[list[Cell]]:
    names = {"saliency": "Dice", "depth": "RMSE"}
    vae = context.families.get("vae", {})
    unet_rows: list[list[Cell]] = []
    vae_rows: list[list[Cell]] = []
    for (task, step), (in_unet, in_vae) in TABLE_1.items():
        main = context.scores.get(task)
        ours, ours_vae = at_step(main, main.lead_part if main else "", step), at_step(vae.get(task), "all", step)
        unet_rows.append([f"{names[task]}, decoder mean, step {step}", "Table 1", in_unet, ours])
        vae_rows.append([f"{names[task]}, VAE self-attention, step {step}", "Table 1", in_vae, ours_vae])
    rows = [*unet_rows, *vae_rows]
    for task, values in SECTION_5.items():
        edit = main_edit(context.edits, task)
        medians = (np.nan, np.nan) if edit is None else (edit.effect.before, edit.effect.after)
        for when, value, median in zip(("before", "after"), values, medians, strict=True):
            rows.append([f"{names[task]}, median {when} the intervention", "Section 5", value, median])
    plain, smooth = context.scores.get("depth"), context.families.get("smoothness", {}).get("depth")
    for site, (without, with_loss) in TABLE_3.items():
        rows.append([f"RMSE, {site}, step 15", "Table 3", Num(number(without, 3)), at_step(plain, site, 15)])
        rows.append([f"RMSE, {site}, step 15, smooth", "Table 3", Num(number(with_loss, 3)), at_step(smooth, site, 15)])
    return rows


def main_edit(edits: Sequence[Edits], task: str) -> Edits | None:
    """The edit of the main experiment for a task, without its controls."""
    return next((e for e in edits if e.main and e.measure.task == task and e.effect.control == "edit"), None)
