"""The report's controls with their selectivity, and the paper's values beside this run's."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from probing import statistics
from probing.statistics import Selectivity
from sweeps.analysis import measures, summary
from sweeps.analysis import scores as analysis
from sweeps.analysis.experiments import CONTENT_FREE_CONTROLS
from sweeps.analysis.scores import Scores
from sweeps.analysis.summary import Edits
from sweeps.analysis.tables import RunData
from sweeps.report.context import Context
from sweeps.report.figures.probes import TASK_TITLES
from sweeps.report.html import Section, paragraph
from sweeps.report.sections.experiments import at_step
from sweeps.report.tables import Num, number, table

PROBE_CONTROLS = {
    "none": "Task",
    "shuffled": "shuffled: each image’s labels permuted over its cells",
    "other_image": "other image: labels of another image",
    "position": "position: a learned map, no activations",
    "position_activation": "position and activation: a learned map beside the channels",
    "surface_point": "surface, one cell: the noisy and the clean latent and the place, no activations",
    "surface": "surface, 5 x 5 cells: the same of a neighbourhood",
    "surface_rgb": "surface, decoded picture: colours of the clean estimate around a cell and the place",
}


def controls(context: Context) -> Section:
    """Probes trained on something else, and what is left of the task beyond them."""
    body = "".join(_control_table(context.run, s) for s in context.scores.values())
    if body:
        body = (
            paragraph(
                "The same probe and budget, trained on something other than the image’s labels or "
                "activations. <em>Selectivity</em> is what the trained network gains over the best "
                "of floor, position, other image and surface; shuffled labels cannot be learned "
                "and only check the pipeline. A shuffled probe’s Dice may be 0 or high by its threshold alone; its "
                "cross-entropy says whether it learned anything."
            )
            + body
        )
    return Section("controls", "Controls and selectivity", "Controls", body)


def _control_table(run: RunData, scores: Scores) -> str:
    task, measure = scores.measure.task, scores.measure
    if not scores.which("decoder"):
        return ""
    collected = {c: analysis.collect(run, control=c) for c in summary.controls(run)}
    found = {c: scores_[task] for c, scores_ in collected.items() if task in scores_}
    if not found:
        return ""
    shown = {"none": scores, **found}
    losses = {c: _crossentropy(run, s, c) for c, s in shown.items()}
    more = any(np.isfinite(loss) for loss in losses.values())
    rows: list[list] = [
        [PROBE_CONTROLS.get(c, c), summary.final(s, "trained", "decoder"), losses[c]] for c, s in shown.items()
    ]
    rows.append(["Floor", float(np.mean(scores.floor[scores.which("decoder")])), np.nan])
    chosen = selectivity(scores, found)
    rows.append([f"Selectivity, over {chosen.control.replace('_', ' ')}", chosen.gain, np.nan])
    columns = ["Probe trained on", measure.label, "Cross-entropy"]
    caption = f"{TASK_TITLES[task]}, {measure.label} at step {scores.steps[-1]}, decoder mean"
    kept = len(columns) if more else len(columns) - 1
    return table(caption, columns[:kept], [row[:kept] for row in rows], marked=[len(rows) - 1])


def _crossentropy(run: RunData, scores: Scores, control: str) -> float:
    """Mean over the decoder at the last step; NaN where it was not stored."""
    values = measures.last_step(run, scores, control).get("crossentropy")
    return float(np.mean(values[scores.which("decoder")])) if values is not None else float("nan")


def selectivity(scores: Scores, found: dict[str, Scores]) -> Selectivity:
    """Decoder gain of the task at the last step over the best rival control or floor."""
    ours = scores.part("trained", "decoder")[-1]
    floor = float(np.mean(scores.floor[scores.which("decoder")]))
    baselines = {"floor": np.full(ours.shape, floor)}
    for name in CONTENT_FREE_CONTROLS:
        theirs = found.get(name)
        if theirs is not None and np.array_equal(theirs.samples, scores.samples):
            baselines[name] = theirs.part("trained", "decoder")[-1]
    return statistics.selectivity(ours, baselines, scores.measure.higher, scores.counts)


TABLE_3 = {
    "down.2.0": (0.559, 0.583), "down.2.1": (0.519, 0.545), "mid.0": (0.594, 0.639),
    "up.1.0": (0.474, 0.501), "up.1.1": (0.485, 0.511), "up.1.2": (0.522, 0.543),
}  # fmt: skip
"""depth RMSE at step 15 without and with the smoothness loss"""


def paper(context: Context) -> Section:
    """The paper's numbers beside this run's, each with the model it belongs to."""
    if not context.scores:
        return Section("paper", "", "", "")
    model = escape(context.model)
    text = paragraph(
        'Left, what <a href="https://arxiv.org/abs/2306.05720">the paper</a> (Chen, Viégas and '
        "Wattenberg, 2023) measured on <strong>Stable Diffusion v1.4</strong> with its images and "
        f"labellers. Right, this run of <strong>{model}</strong>. They are different experiments: "
        "the left column is a reference for the reader and not a mark to reach, unless this run is "
        "of Stable Diffusion v1.4 itself."
    )
    columns = ["Quantity", "In the paper", "Stable Diffusion v1.4 (paper)", f"{context.model} (this run)"]
    caption = "The paper’s values and this run’s"
    return Section("paper", "Beside the paper", "The paper", text + table(caption, columns, _paper_rows(context)))


def _paper_rows(context: Context) -> list[list]:
    rows: list[list] = []
    quoted = {("saliency", 5): 0.84, ("saliency", 15): 0.85, ("depth", 5): 0.53, ("depth", 15): 0.47}
    for (task, step), value in quoted.items():
        ours = at_step(context.scores.get(task), "decoder", step)
        rows.append([_quantity(task, f"decoder mean, step {step}"), "Table 1", value, ours])
    rows += _vae_rows(context)
    rows += _edit_rows(context.edits)
    smooth = context.families.get("smoothness", {}).get("depth")
    for site, (value, with_loss) in TABLE_3.items():
        for words, theirs, scores in (("", value, context.scores.get("depth")), (", smooth", with_loss, smooth)):
            what = _quantity("depth", f"{site}, step 15{words}")
            rows.append([what, "Table 3", Num(number(theirs, 3)), at_step(scores, site, 15)])
    return rows


def _quantity(task: str, rest: str) -> str:
    return f"{'Dice' if task == 'saliency' else 'RMSE'}, {rest}"


def _vae_rows(context: Context) -> list[list]:
    quoted = {("saliency", 5): 0.15, ("saliency", 15): 0.71, ("depth", 5): 0.96, ("depth", 15): 0.84}
    found = context.families.get("vae", {})
    return [
        [_quantity(task, f"VAE self-attention, step {step}"), "Table 1", value,
         at_step(found.get(task), "all", step)]
        for (task, step), value in quoted.items()
    ]  # fmt: skip


def _edit_rows(edits: Sequence[Edits]) -> list[list]:
    quoted = {"saliency": (0.46, 0.69), "depth": (1.02, 0.63)}
    rows = []
    for task, values in quoted.items():
        match = next((e.effect for e in edits if _is_main(e, task)), None)
        for when, value in zip(("before", "after"), values, strict=True):
            ours = getattr(match, when) if match else np.nan
            rows.append([_quantity(task, f"median {when} the intervention"), "Section 5", value, ours])
    return rows


def _is_main(edit: Edits, task: str) -> bool:
    return edit.main and edit.measure.task == task and edit.effect.control == "edit"
