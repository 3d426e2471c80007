"""The report's interventions: verdicts, distributions, controls, ablations, edited pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from interventions.config import ANIMATION, SECOND_OBJECT, TRANSPLANT
from interventions.controls import EDIT
from interventions.summary import EDITS, REACHED
from probing.statistics import holm
from sweeps.analysis.interventions import ABLATIONS, second_objects, setting
from sweeps.analysis.summary import Edits
from sweeps.report.context import Context
from sweeps.report.figures.interventions import CONTROL_TITLES
from sweeps.report.figures.probes import TASK_TITLES
from sweeps.report.html import Section, downloads, panels, paragraph
from sweeps.report.sections.edited_images import pictures
from sweeps.report.tables import interval, number, p_value, table

COMPARED = {
    "mirror": "the opposite move’s label",
    "original": "the unedited label",
    "constant": "a constant map",
    "others": "the other moves’ labels",
}
EXTRAS = {
    "area_before": "Area before",
    "area_target": "Area asked",
    "area_after": "Area after",
    "floor": "Constant map",
    "slope": "Slope",
    "shift_share": "Shift reached",
    "pearson_after": "Pearson after",
    "own_scale_before": "Own scale, before",
    "own_scale_after": "Own scale, after",
    "aligned_before": "Aligned, before",
    "aligned_after": "Aligned, after",
}
INSIDE = {
    "readout_before": "Readout before",
    "readout_after": "Readout after",
    "readout_spearman": "Readout rank corr.",
    "readout_least": "Worst readout",
    "edit_norm": "Edit size",
    "departure_after": "Departure",
    "outside_change": "Pixels outside",
    "outside_label": "Label outside",
    "content_kept": "Content kept",
}

BARS = {"saliency": "0.20", "depth": "30 %"}
LEGEND = (
    "Areas are shares of the image. Slope: of the change that came on the change asked for, over pixels; 1 is all of "
    "it, and no flat or full map can feign it. Shift reached: of the object’s centre. Readout: what the true probe "
    "reads at the edited sites against the wanted label (Dice over cells, or RMSE to the map scaled for the "
    "optimiser); worst: at the worst site and step (Dice, or rank correlation). Edit size and departure are in units "
    "of what is normal at the site; 1 is a normal departure. Outside: mean change where neither the old nor the "
    "wanted object is. Own scale: RMSE with each map standardised over its own pixels; aligned: after the best scale "
    "and shift."
)


def interventions(context: Context) -> Section:
    """Edited activations: does the picture follow?"""
    others = (SECOND_OBJECT, ANIMATION, TRANSPLANT)
    edits = [e for e in context.edits if e.effect.series.experiment not in others]
    if not edits:
        return Section("interventions", "", "", "")
    text = paragraph(
        "A site’s activations are moved until its probe reads a displaced label; the finished "
        "image is labelled again and scored against that label. Medians are over trials; brackets "
        "are 95 % intervals from resampling images with all their trials."
    )
    if theirs := context.run.setting("interventions.probes"):
        text += paragraph(f"The edits follow probes that the paper’s authors published, read from {escape(theirs)}.")
    found = context.edit_panels
    body = text + _verdicts(edits) + _ceilings(context.edits) + panels(found) + _slopes(context)
    body += pictures(context.edited)
    body += "".join(_edit_table(edits, task) + _inside_table(edits, task) for task in TASK_TITLES)
    body += "".join(_against_table(e) for e in edits if e.main and e.effect.against)
    body += paragraph(LEGEND, "note")
    body += downloads([p for p in found if p.name.endswith("controls")], "edits-and-controls")
    body += downloads([p for p in found if p.name.endswith("after")], "edits-before-after")
    for name in ABLATIONS:
        body += downloads([p for p in found if p.name.endswith(f"-{name}")], f"edits-{name}")
    return Section("interventions", "Does the model use it?", "Interventions", body)


def _verdicts(edits: Sequence[Edits]) -> str:
    """One paragraph per task and way of editing: what it did, against the bar and every comparison."""
    real = [e for e in edits if e.main and e.effect.control in EDITS]
    return "".join(paragraph(_verdict(e)) for e in real)


def _verdict(edit: Edits) -> str:
    effect, task = edit.effect, edit.measure.task
    beaten = [a for a in effect.against if a.gain.low > 0]
    gain, way = interval(effect.gain), "" if effect.control == EDIT else f", {CONTROL_TITLES[effect.control]}"
    if task == "depth":
        gain += f", {number(100 * effect.relative, 0)} %"
    column, bar = REACHED[task]
    read = "Dice" if task == "saliency" else "rank correlation"
    return (
        f"<strong>{TASK_TITLES[task]}{way}.</strong> The median {edit.measure.label} improves by {gain} "
        f"(bar: {BARS[task]}); the edit beats {len(beaten)} of {len(effect.against)} comparisons with an interval "
        f"above 0. At the edited sites the probe reads the target with a median {read} of "
        f"{number(effect.medians.get(column, np.nan))}; {number(100 * effect.reached, 0)} % of the edits reach {bar:g}."
    )


def _ceilings(edits: Sequence[Edits]) -> str:
    """What everything that another image holds does at the edited sites: no edit there can do more."""
    found = [e for e in edits if e.effect.series.experiment == TRANSPLANT and e.effect.control == EDIT]
    lines = []
    for task, title in TASK_TITLES.items():
        mine = sorted((e for e in found if e.measure.task == task), key=lambda e: len(_steps(e)))
        if mine:
            told = "; ".join(
                f"in {_named_steps(_steps(e))} it goes from {interval(e.effect.before)} to {interval(e.effect.after)}"
                for e in mine
            )
            lines.append(
                f"<strong>{title}, the most that can be had.</strong> Over {mine[0].effect.images} images, the whole "
                f"activations of another image of the same prompt take the place of the image’s own at the edited "
                f"sites. {mine[0].measure.label} against that other image’s label: {told}. What this does not move, "
                "no edit at these places can be expected to move."
            )
    return "".join(paragraph(line) for line in lines)


def _steps(edit: Edits) -> list[str]:
    return edit.effect.series.steps.split(",")


def _named_steps(steps: Sequence[str]) -> str:
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"


def _slopes(context: Context) -> str:
    """Appendix E in one line per way of editing."""
    table_ = context.run.table("interventions")
    found = second_objects(table_.to_pylist() if table_ is not None else [])
    return "".join(
        paragraph(
            f"Second objects, {CONTROL_TITLES.get(way, way)}: slope of the depth that came on the depth asked for "
            f"{interval(slope.slope)}, correlation {number(slope.correlation)}, {slope.edits} edits."
        )
        for way, (slope, _) in found.items()
    )


def _edit_table(edits: Sequence[Edits], task: str) -> str:
    mine = [e for e in edits if e.measure.task == task]
    if not mine:
        return ""
    extras = [n for n in EXTRAS if any(n in e.effect.medians for e in mine)]
    columns = ["Edit or control", "Trials", "Median before", "Median after", "Improvement"]
    rows = [
        [
            edit_name(e),
            e.effect.trials,
            e.effect.before,
            e.effect.after,
            e.effect.gain,
            *(e.effect.medians.get(n, np.nan) for n in extras),
        ]
        for e in mine
    ]
    caption = f"{TASK_TITLES[task]}, {mine[0].measure.label}; an improvement above 0 is better"
    marked = [i for i, e in enumerate(mine) if e.main and e.effect.control == "edit"]
    return table(caption, [*columns, *(EXTRAS[n] for n in extras)], rows, marked=marked)


def _inside_table(edits: Sequence[Edits], task: str) -> str:
    """What was read inside, how big the edits were, and what they changed elsewhere."""
    mine = [e for e in edits if e.measure.task == task]
    shown = [n for n in INSIDE if any(n in e.effect.medians for e in mine)]
    if not shown:
        return ""
    rows = [[edit_name(e), *(e.effect.medians.get(n, np.nan) for n in shown)] for e in mine]
    caption = f"{TASK_TITLES[task]}: inside the network, and elsewhere in the image (medians)"
    return table(caption, ["Edit or control", *(INSIDE[n] for n in shown)], rows)


def edit_name(edit: Edits) -> str:
    """``edit``, ``random direction``, or of an ablation what it varies."""
    series, control = edit.effect.series, edit.effect.control
    title = CONTROL_TITLES.get(control, control)
    if edit.main:
        return title
    if series.experiment not in ABLATIONS:
        return f"{series.experiment}: {title}"
    return f"{series.experiment}: {setting(series.experiment, series)[0]}"


def _against_table(edit: Edits) -> str:
    against = edit.effect.against
    rows = [
        [COMPARED.get(a.other, CONTROL_TITLES.get(a.other, a.other)), a.gain, p_value(p)]
        for a, p in zip(against, holm([a.test.p for a in against]).tolist(), strict=True)
    ]
    caption = (
        f"{TASK_TITLES[edit.measure.task]}: median advantage of the edit, trial by trial "
        "(above 0: the edit is better; p: Wilcoxon signed ranks over images, by Holm)"
    )
    return table(caption, ["Compared with", edit.measure.label, "p"], rows)
