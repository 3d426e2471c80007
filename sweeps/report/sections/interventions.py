"""The report's interventions: verdicts, distributions, controls, ablations, edited pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from interventions.config import ANIMATION, PATCHING, SECOND_OBJECT
from interventions.controls import EDIT
from interventions.summary import EDITS, REACHED
from probing.statistics import holm
from sweeps.analysis.interventions import ABLATIONS, second_objects, setting
from sweeps.analysis.summary import Edits
from sweeps.analysis.vocabulary import (
    EDIT_CONTROL_TITLES,
    EDIT_INSIDE_TITLES,
    EDIT_MEASURE_TITLES,
    EXPERIMENT_TITLES,
    OTHER_LABEL_TITLES,
    TASK_TITLES,
)
from sweeps.report.context import Context
from sweeps.report.figures import ablations
from sweeps.report.figures.interventions import edit_panels
from sweeps.report.page import Block, Figures, Paragraph, Section, downloads
from sweeps.report.sections.edited_images import pictures
from sweeps.report.tables import Cell, Table, interval, number, p_value

BARS = {"saliency": "0.20", "depth": "30 %"}
"""improvement of the median score that the protocol calls a success"""
LEGEND = (
    "Areas are shares of the image. Slope: regression of the achieved on the requested change, over pixels; 1 is all "
    "of it, and constant maps cannot score well. Shift reached: of the object’s centre. Probe output: what the trained "
    "probe predicts at the edited sites, scored against the target label (Dice over patches, or RMSE to the map that "
    "the optimiser used as its target); worst: at the worst site and step (Dice, or rank correlation). Edit size is in "
    "units of the normal activation RMS at the site; an activation RMS z-score of 1 is normal. Outside: mean change "
    "where neither the old nor the requested object is. Own scale: RMSE with each map standardised over its own "
    "pixels; aligned: after the best scale and shift."
)


def interventions(context: Context) -> Section:
    """Edited activations: whether the image follows."""
    edits = [e for e in context.edits if e.effect.series.experiment not in (SECOND_OBJECT, ANIMATION, PATCHING)]
    if not edits:
        return Section("interventions")
    blocks: list[Block] = [
        Paragraph(
            "A site’s activations are changed until its probe predicts a displaced label; the finished image is "
            "labelled again and scored against that label. Medians are over trials; brackets are 95 % intervals from "
            "resampling images with all their trials."
        )
    ]
    if folder := context.run.setting("interventions.probes"):
        blocks.append(Paragraph(f"The edits use the probes published by the paper’s authors, loaded from {folder}."))
    table = context.run.table("interventions")
    panels = [*edit_panels(context.edits), *ablations.panels(table)]
    blocks += [_verdict(e) for e in edits if e.main and e.effect.control in EDITS]
    blocks += [*patching_limits(context.edits), Figures(panels)]
    # Appendix E in one line per way of editing.
    for way, (slope, _) in second_objects(table.to_pylist() if table is not None else []).items():
        text = Markup("Second objects, {}: slope of the achieved on the requested depth {}, correlation {}, {} edits.")
        title = EDIT_CONTROL_TITLES.get(way, way)
        blocks.append(Paragraph(text.format(title, interval(slope.slope), number(slope.correlation), slope.edits)))
    blocks += pictures(context.edited)
    for task in TASK_TITLES:
        if own := [e for e in edits if e.measure.task == task]:
            blocks += [_edit_table(own), *_inside_table(own)]
    blocks += [_comparison_table(e) for e in edits if e.main and e.effect.comparisons]
    blocks.append(Paragraph(LEGEND, "note"))
    blocks += downloads("edits-and-controls", [p for p in panels if p.name.endswith("controls")])
    blocks += downloads("edits-before-after", [p for p in panels if p.name.endswith("after")])
    for name in ABLATIONS:
        blocks += downloads(f"edits-{name}", [p for p in panels if p.name.endswith(f"-{name}")])
    return Section("interventions", "Does the model use it?", "Interventions", blocks)


def _verdict(edit: Edits) -> Paragraph:
    """What one way of editing did for a task, compared with its bar and every control."""
    effect, task = edit.effect, edit.measure.task
    beaten = sum(a.gain.low > 0 for a in effect.comparisons)
    way = "" if effect.control == EDIT else f", {EDIT_CONTROL_TITLES[effect.control]}"
    relative = f", {number(100 * effect.relative, 0)} %" if task == "depth" else ""
    column, bar = REACHED[task]
    text = Markup(
        "<strong>{}{}.</strong> The median {} improves by {}{} (bar: {}); the edit beats {} of {} comparisons with an "
        "interval above 0. At the edited sites, the probe’s output matches the target with a median {} of {}; "
        "{} % of the edits reach {:g}."
    )
    return Paragraph(
        text.format(
            TASK_TITLES[task], way, edit.measure.label, interval(effect.gain), relative, BARS[task],
            beaten, len(effect.comparisons), "Dice" if task == "saliency" else "rank correlation",
            number(effect.medians.get(column, np.nan)), number(100 * effect.reached, 0), bar,
        )
    )  # fmt: skip


def patching_limits(edits: Sequence[Edits]) -> list[Paragraph]:
    """Effect of patching in another image's whole activations at the edited sites: an upper limit for edits there."""
    found = [e for e in edits if e.effect.series.experiment == PATCHING and e.effect.control == EDIT]
    paragraphs = []
    for task, title in TASK_TITLES.items():
        own = [(e.effect.series.steps.split(","), e) for e in found if e.measure.task == task]
        changes = []
        for steps, edit in sorted(own, key=lambda pair: len(pair[0])):
            when = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
            change = Markup("from {} to {} with {}")
            changes.append(change.format(interval(edit.effect.before), interval(edit.effect.after), when))
        if changes:
            first = own[0][1]
            text = Markup(
                "<strong>{}, upper limit.</strong> For {} images, the activations at the edited sites are replaced by "
                "those of another image of the same prompt. {} against that other image’s label goes {}. What this "
                "does not change, no edit at these sites can be expected to change."
            )
            joined = Markup("; ").join(changes)
            paragraphs.append(Paragraph(text.format(title, first.effect.images, first.measure.label, joined)))
    return paragraphs


def _edit_table(edits: Sequence[Edits]) -> Table:
    """Medians before and after, for the edit, its controls and its ablations."""
    extras = [name for name in EDIT_MEASURE_TITLES if any(name in e.effect.medians for e in edits)]
    columns = ["Edit or control", "Trials", "Median before", "Median after", "Improvement"]
    rows: list[list[Cell]] = [
        [
            edit_name(e),
            e.effect.trials,
            e.effect.before,
            e.effect.after,
            e.effect.gain,
            *(e.effect.medians.get(name, np.nan) for name in extras),
        ]
        for e in edits
    ]
    measure = edits[0].measure
    caption = f"{TASK_TITLES[measure.task]}, {measure.label}; an improvement above 0 is better"
    marked = [i for i, e in enumerate(edits) if e.main and e.effect.control == "edit"]
    return Table(caption, [*columns, *(EDIT_MEASURE_TITLES[name] for name in extras)], rows, marked=marked)


def _inside_table(edits: Sequence[Edits]) -> list[Table]:
    """Probe outputs at the edited sites, size of the edits, changes elsewhere; empty if none were stored."""
    shown = [name for name in EDIT_INSIDE_TITLES if any(name in e.effect.medians for e in edits)]
    if not shown:
        return []
    rows = [[edit_name(e), *(e.effect.medians.get(name, np.nan) for name in shown)] for e in edits]
    caption = f"{TASK_TITLES[edits[0].measure.task]}: inside the network, and elsewhere in the image (medians)"
    return [Table(caption, ["Edit or control", *(EDIT_INSIDE_TITLES[name] for name in shown)], rows)]


def edit_name(edit: Edits) -> str:
    """``edit``, ``random direction``, or the setting that an ablation varies."""
    series, control = edit.effect.series, edit.effect.control
    title = EDIT_CONTROL_TITLES.get(control, control)
    if edit.main:
        return title
    experiment = EXPERIMENT_TITLES.get(series.experiment, series.experiment)
    return f"{experiment}: {setting(series.experiment, series)[0] if series.experiment in ABLATIONS else title}"


def _comparison_table(edit: Edits) -> Table:
    """The edit's advantage over each control and over each other label."""
    against, titles = edit.effect.comparisons, EDIT_CONTROL_TITLES | OTHER_LABEL_TITLES
    rows = [
        [titles.get(a.other, a.other), a.gain, p_value(p)]
        for a, p in zip(against, holm([a.test.p for a in against]).tolist(), strict=True)
    ]
    caption = (
        f"{TASK_TITLES[edit.measure.task]}: median advantage of the edit, trial by trial (above 0: the edit is better; "
        "p: Wilcoxon signed-rank test over images, corrected by Holm)"
    )
    return Table(caption, ["Compared with", edit.measure.label, "p"], rows)
