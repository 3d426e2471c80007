"""The report's interventions: distributions, controls, edited pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from sweeps import thumbnails
from sweeps.figures_more import CONTROL_TITLES
from sweeps.figures_probes import TASK_TITLES
from sweeps.findings import Edits
from sweeps.gallery import Edited
from sweeps.report_context import Context
from sweeps.report_html import Section, downloads, panels, paragraph, picture
from sweeps.tables_view import p_value, table

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
    "readout_before": "Readout before",
    "readout_after": "Readout after",
    "outside_change": "Change outside",
}


def interventions(context: Context) -> Section:
    """Edited activations: does the picture follow?"""
    edits = context.edits
    if not edits:
        return Section("interventions", "", "", "")
    text = paragraph(
        "A site’s activations are moved until its probe reads a displaced label; the finished "
        "image is labelled again and scored against that label. Medians are over trials; brackets "
        "are 95 % intervals from resampling images with all their trials."
    )
    found = context.edit_panels
    body = text + panels(found) + _edited_strips(context.edited)
    body += "".join(_edit_table(edits, task) for task in TASK_TITLES)
    body += "".join(_against_table(e) for e in edits if e.main and e.effect.against)
    body += downloads([p for p in found if p.name.endswith("controls")], "edits-and-controls")
    body += downloads([p for p in found if p.name.endswith("after")], "edits-before-after")
    return Section("interventions", "Does the model use it?", "Interventions", body)


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


def edit_name(edit: Edits) -> str:
    """``edit``, ``random direction``, or of an ablation what it varies."""
    series, control = edit.effect.series, edit.effect.control
    title = CONTROL_TITLES.get(control, control)
    if edit.main:
        return title
    varied = {
        "dose": f"{series.iterations} iterations",
        "steps": f"steps {series.steps}",
        "sides": f"sites {series.sites}",
    }
    return f"{series.experiment}: {varied.get(series.experiment, title)}"


def _against_table(edit: Edits) -> str:
    rows = [
        [COMPARED.get(a.other, CONTROL_TITLES.get(a.other, a.other)), a.gain, p_value(a.test.p)]
        for a in edit.effect.against
    ]
    caption = (
        f"{TASK_TITLES[edit.measure.task]}: median advantage of the edit, trial by trial "
        "(above 0: the edit is better; p: Wilcoxon signed ranks over images)"
    )
    return table(caption, ["Compared with", edit.measure.label, "p"], rows)


def _edited_strips(found: Sequence[Edited]) -> str:
    strips = "".join(_edited_strip(p) for p in found)
    if not strips:
        return ""
    return (
        "<h3>Edited pictures</h3>"
        + paragraph(
            "The first edited test images and their first move: what was painted, what was asked, "
            "what came."
        )
        + strips
    )


def _edited_strip(found: Edited) -> str:
    task, label = found.task, found.label_before
    low, high = (0.0, 1.0) if task == "saliency" else tuple(np.percentile(label, (1, 99)))

    def cell(values: np.ndarray, words: str) -> str:
        address = thumbnails.map_picture(values, task, low, high)
        return picture(address, f"{TASK_TITLES[task]}: {words}", escape(words), map_like=True)

    cells = [
        picture(thumbnails.photo(found.before, 192), "Image before the edit", "before"),
        cell(label, "its label"),
        cell(found.target, "asked for"),
        picture(thumbnails.photo(found.after, 192), "Image after the edit", "after"),
        cell(found.label_after, "its label"),
    ]
    name = f'<p class="strip-name">{TASK_TITLES[task]}</p>'
    return f'{name}<div class="strip">{"".join(cells)}</div>'
