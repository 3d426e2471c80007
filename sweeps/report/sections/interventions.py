"""The report's interventions: verdicts, distributions, controls, ablations, edited pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from interventions.config import ANIMATION, LABEL, MEAN_DIFFERENCE, PATCHING, PATTERN, READING, SECOND_OBJECT, WEIGHTS
from interventions.controls import EDIT
from sweeps.analysis.interventions import (
    ABLATIONS,
    Verdict,
    images_needed,
    patching_share,
    second_objects,
    setting,
    verdicts,
)
from sweeps.analysis.summary import Edits
from sweeps.analysis.vocabulary import (
    DIRECTION_NOUNS,
    DIRECTION_TITLES,
    EDIT_CONTROL_TITLES,
    EDIT_INSIDE_TITLES,
    EDIT_MEASURE_TITLES,
    EXPERIMENT_TITLES,
    OTHER_LABEL_TITLES,
    SCALE_TITLES,
    TASK_TITLES,
    plain,
)
from sweeps.analysis.words import number
from sweeps.report.context import Context
from sweeps.report.figures import ablations
from sweeps.report.figures.interventions import dose_panels, edit_panels
from sweeps.report.page import Block, Figures, Folded, Paragraph, Section, downloads
from sweeps.report.sections.edited_images import pictures, sliders
from sweeps.report.sections.measures import least_note
from sweeps.report.tables import Cell, Table, interval, p_value

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
            "A site’s activations are changed towards a displaced label: by the paper’s edit until the probe predicts "
            "it, by the others along a direction in which activations vary with the label. The finished image is "
            "labelled again. The score is target minus original: agreement with the requested label minus agreement "
            "with the label of the unedited image. An edit that only adds clutter where the object should be raises "
            "the first and leaves the second."
        )
    ]
    if folder := context.run.setting("interventions.probes"):
        blocks.append(Paragraph(f"The edits use the probes published by the paper’s authors, loaded from {folder}."))
    table = context.run.table("interventions")
    panels = [*edit_panels(context.edits), *dose_panels(context.edits), *ablations.panels(table)]
    lead = [p for p in panels if p.name.endswith("controls")]
    more: list[Block] = []
    judged: list[Verdict] = []
    for task in TASK_TITLES:
        own = verdicts(context.edits, task)
        main = [v for v in own if v.edit.main]
        judged += main
        more += [_verdict(v, patching_share(context.edits, v.edit)) for v in main]
        more += [*why_they_differ(main), *_smallest_doses(own)]
    blocks += [*sliders(context.edited), *_verdict_table(judged), Figures(lead), *patching_effects(context.edits)]
    more.append(Figures([p for p in panels if p not in lead]))
    # Appendix E in one line per way of editing.
    for (direction, control), (slope, _) in second_objects(table.to_pylist() if table is not None else []).items():
        text = Markup("Second objects, {}: slope of the achieved on the requested depth {}, correlation {}, {} edits.")
        way = f"{DIRECTION_TITLES[direction]}, {EDIT_CONTROL_TITLES.get(control, plain(control))}"
        more.append(Paragraph(text.format(way, interval(slope.slope), number(slope.correlation), slope.edits)))
    tables: list[Block] = []
    for task in TASK_TITLES:
        if own_edits := [e for e in edits if e.measure.task == task]:
            tables += [_edit_table(own_edits), *_inside_table(own_edits)]
        tables += [_comparison_table(v) for v in judged if v.edit.measure.task == task and v.edit.effect.comparisons]
    tables.append(Paragraph(LEGEND, "note"))
    more += downloads("edits-and-controls", lead)
    more += downloads("edits-before-after", [p for p in panels if p.name.endswith("after")])
    for name in ("dose-response", *ABLATIONS):
        more += downloads(f"edits-{name}", [p for p in panels if p.name.endswith(f"-{name}")])
    blocks += [Folded("Each edit in words, before and after, doses and ablations", more)]
    if shown := pictures(context.edited):
        blocks.append(Folded("Every kept picture", shown))
    blocks.append(Folded("Every edit and control in numbers", tables))
    return Section("interventions", "Does the model use it?", "Edits", blocks)


def _verdict_table(found: Sequence[Verdict]) -> list[Table]:
    """One row for each task and direction: whether the scene follows, and how clearly; empty without edits."""
    rows: list[list[Cell]] = []
    for verdict in found:
        effect, lead = verdict.edit.effect, verdict.lead
        follows = "yes" if verdict.acts else "not clearly" if verdict.testable else "cannot be told"
        null = "" if lead is None else EDIT_CONTROL_TITLES.get(lead.other, plain(lead.other))
        way = f"{TASK_TITLES[verdict.edit.measure.task]}, {DIRECTION_TITLES[effect.series.direction]}"
        gain = None if lead is None else lead.gain
        rows.append([way, follows, gain, null, p_value(verdict.p), effect.shift, effect.kept.estimate])
    if not rows:
        return []
    columns = ["Edits of, along", "Scene follows", "Lead", "Over the null", "p", "Shift reached", "Captions kept"]
    caption = (
        "Lead: target minus original, over the null of the same size that is hardest to beat, in Dice and RMSE. p: "
        "Wilcoxon signed-rank test over images, corrected by Holm over directions and doses. Shift reached: share of "
        "the requested shift of the object’s centre"
    )
    return [Table(caption, columns, rows, images=found[0].edit.effect.images)]


def _verdict(verdict: Verdict, of_patching: float) -> Paragraph:
    """What one way of editing did for a task, and at what price."""
    edit, effect, lead = verdict.edit, verdict.edit.effect, verdict.lead
    task = edit.measure.task
    text = Markup(
        "<strong>{}, edits {}: {}.</strong> Against the requested label, the mean improvement in {} is {}"
    ).format(
        TASK_TITLES[task],
        DIRECTION_NOUNS[effect.series.direction],
        "the scene follows" if verdict.acts else "the scene does not clearly follow",
        edit.measure.label,
        interval(effect.improved),
    )
    if task == "depth":
        text += f" ({number(100 * effect.improved.estimate / effect.before.estimate, 0)} % of the median before)"
    if np.isfinite(effect.shift.estimate):
        text += Markup("; the object’s centre makes {} of the requested shift").format(interval(effect.shift))
    text += "."
    if lead is not None:
        text += Markup(
            " In target minus original, the lead over the strongest null ({}) is {}; corrected p: {}."
        ).format(EDIT_CONTROL_TITLES.get(lead.other, plain(lead.other)), interval(lead.gain), p_value(verdict.p))
        if not verdict.testable:
            text += (
                f" With {effect.images} images and {verdict.compared} directions and doses no p can fall below "
                f"{number(verdict.least_p)}, so this run cannot tell; {images_needed(verdict.compared)} images can."
            )
    if verdict.not_beaten:
        titles = EDIT_CONTROL_TITLES | OTHER_LABEL_TITLES
        text += f" It is not clearly better than: {', '.join(titles.get(n, plain(n)) for n in verdict.not_beaten)}."
    if np.isfinite(of_patching):
        text += f" It has {number(100 * of_patching, 0)} % of the effect of activation patching in the same steps."
    price = [
        ("edit size {} of the activation RMS", effect.medians.get("edit_norm")),
        ("activation RMS z-score {}", effect.medians.get("departure_after")),
        ("pixels outside change by {}", effect.medians.get("outside_change")),
        ("{} of the images still match their caption", effect.kept.estimate),
    ]
    shown = [words.format(number(value)) for words, value in price if value is not None and np.isfinite(value)]
    return Paragraph(text + (f" The price: {', '.join(shown)}." if shown else ""))


def why_they_differ(main: Sequence[Verdict]) -> list[Paragraph]:
    """Edits along the weights and along another direction side by side, if a run has both at comparable doses."""
    by_direction = {v.edit.effect.series.direction: v for v in main}
    paper, other = by_direction.get(WEIGHTS), by_direction.get(PATTERN) or by_direction.get(MEAN_DIFFERENCE)
    if paper is None or other is None or other.edit.effect.series.scale not in (READING, LABEL):
        return []
    series = other.edit.effect.series
    noun = DIRECTION_NOUNS[series.direction]
    outcomes = {
        (False, True): f"the paper’s edit does not move the scene, the edit {noun} does",
        (True, False): f"the paper’s edit moves the scene, the edit {noun} does not",
        (True, True): "both edits move the scene",
        (False, False): "neither edit clearly moves the scene",
    }
    size, wider = (v.edit.effect.medians.get("edit_norm", np.nan) for v in (paper, other))
    if series.scale == READING:
        far = "as far" if series.gain == 1 else f"{series.gain:g} times as far"
        dose = f"moves the probe’s reading {far} as the paper’s"
    else:
        dose = f"gives each patch {series.gain:g} times the natural change for the change of its label"
    return [
        Paragraph(
            f"In one sentence: {outcomes[paper.acts, other.acts]}. The latter {dose}, which changes the activations by "
            f"{number(wider)} of their RMS, where the paper’s edit changes them by {number(size)}: fitted weights lean "
            "on directions in which activations vary little, where a small change gives a large reading, while the "
            "pattern and the difference of class means are directions in which the activations themselves vary with "
            "the label (Haufe et al., 2014)."
        )
    ]


def _smallest_doses(found: Sequence[Verdict]) -> list[Paragraph]:
    """For each direction with several doses, the smallest that beats every null."""
    paragraphs = []
    for direction, noun in DIRECTION_NOUNS.items():
        series = [v for v in found if v.edit.effect.series.direction == direction]
        if len(series) < 2:
            continue
        acting = sorted((v for v in series if v.acts), key=lambda v: v.edit.effect.series.gain)
        doses = ", ".join(f"{g:g}" for g in sorted({v.edit.effect.series.gain for v in series}))
        title = TASK_TITLES[series[0].edit.measure.task]
        if acting:
            series_ = acting[0].edit.effect.series
            text = f"the smallest dose that beats every null is {series_.gain:g} {SCALE_TITLES[series_.scale]}"
        else:
            text = "no dose beats every null"
        paragraphs.append(Paragraph(f"{title}, edits {noun}: {text} (doses: {doses})."))
    return paragraphs


def patching_effects(edits: Sequence[Edits]) -> list[Paragraph]:
    """Effect of patching in another image's whole activations at the edited sites."""
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
                "<strong>{}, activation patching.</strong> For {} images, the activations at the edited sites are "
                "replaced by those of another image of the same prompt. {} against that other image’s label goes {}. "
                "This is one change that the network itself could have made, at one guidance scale: a measure to "
                "compare edits with, and no upper limit for them."
            )
            joined = Markup("; ").join(changes)
            paragraphs.append(Paragraph(text.format(title, first.effect.images, first.measure.label, joined)))
    return paragraphs


def _edit_table(edits: Sequence[Edits]) -> Table:
    """Medians before and after, for the edit, its controls and its ablations."""
    extras = [name for name in EDIT_MEASURE_TITLES if any(name in e.effect.medians for e in edits)]
    columns = ["Edit or control", "Trials", "Median before", "Median after", "Improvement"]
    columns += ["Target − original", "Shift reached"]
    rows: list[list[Cell]] = [
        [
            edit_name(e),
            e.effect.trials,
            e.effect.before,
            e.effect.after,
            e.effect.gain,
            e.effect.moved,
            e.effect.shift,
            *(e.effect.medians.get(name, np.nan) for name in extras),
        ]
        for e in edits
    ]
    measure = edits[0].measure
    caption = (
        f"{TASK_TITLES[measure.task]}, {measure.label}; an improvement above 0 is better; target − original is its "
    )
    caption += "change by the edit, a mean over images"
    marked = [i for i, e in enumerate(edits) if e.main and e.effect.control == "edit"]
    return Table(
        caption,
        [*columns, *(EDIT_MEASURE_TITLES[name] for name in extras)],
        rows,
        marked=marked,
        images=edits[0].effect.images,
    )


def _inside_table(edits: Sequence[Edits]) -> list[Table]:
    """Probe outputs at the edited sites, size of the edits, changes elsewhere; empty if none were stored."""
    shown = [name for name in EDIT_INSIDE_TITLES if any(name in e.effect.medians for e in edits)]
    if not shown:
        return []
    rows = [[edit_name(e), *(e.effect.medians.get(name, np.nan) for name in shown)] for e in edits]
    caption = f"{TASK_TITLES[edits[0].measure.task]}: inside the network, and elsewhere in the image (medians)"
    columns = ["Edit or control", *(EDIT_INSIDE_TITLES[name] for name in shown)]
    return [Table(caption, columns, rows, images=edits[0].effect.images)]


def edit_name(edit: Edits) -> str:
    """``probe weights: edit``, ``pattern: random direction``, or the setting that an ablation varies."""
    series, control = edit.effect.series, edit.effect.control
    way = f"{DIRECTION_TITLES[series.direction]}: {EDIT_CONTROL_TITLES.get(control, plain(control))}"
    if edit.main:
        return way
    experiment = EXPERIMENT_TITLES.get(series.experiment, plain(series.experiment))
    if series.experiment not in ABLATIONS:
        return f"{experiment}: {way}"
    return f"{way}, {experiment} {setting(series.experiment, series)[0]}"


def _comparison_table(verdict: Verdict) -> Table:
    """The edit's advantage over each control and over each other label."""
    edit, titles = verdict.edit, EDIT_CONTROL_TITLES | OTHER_LABEL_TITLES
    # Only nulls are tested: they alone decide, and their largest p is that of the verdict.
    rows: list[list[Cell]] = [
        [titles.get(c.other, plain(c.other)), c.gain, p_value(c.test.p) if c.null else ""]
        for c in edit.effect.comparisons
    ]
    rows.append([f"all nulls, corrected over {verdict.compared} directions and doses", "", p_value(verdict.p)])
    caption = (
        f"{TASK_TITLES[edit.measure.task]}, edits {DIRECTION_NOUNS[edit.effect.series.direction]}: mean advantage over "
        "images, in target minus original for controls and in agreement with the label for other labels (above 0: the "
        "edit is better; p: Wilcoxon signed-rank test over images of each null; the verdict takes the largest and "
        f"corrects it by Holm{least_note(edit.effect.images, verdict.compared)})"
    )
    return Table(caption, ["Compared with", edit.measure.label, "p"], rows, images=edit.effect.images)
