"""Tables of the further measures: all that is stored about the trained network's probes at the last step."""

from __future__ import annotations

import numpy as np

from probing.statistics import least_p
from sweeps.analysis import baselines, measures, position
from sweeps.analysis.scores import Scores
from sweeps.analysis.tables import RunData
from sweeps.analysis.vocabulary import MEASURE_NOTES, MEASURE_TITLES, TASK_TITLES, baseline_noun
from sweeps.analysis.words import number
from sweeps.report.context import Context
from sweeps.report.links import site_link
from sweeps.report.tables import Cell, Num, Table, interval, p_value


def other_measures(run: RunData, scores: Scores) -> list[Table]:
    """Every stored measure of the trained network, site by site; empty if none is stored."""
    found = measures.last_step(run, scores)
    if not found:
        return []
    rows: list[list[Cell]] = [
        [site_link(s.name), *(float(v[i]) for v in found.values())] for i, s in enumerate(scores.sites)
    ]
    for side in ("encoder", "decoder"):
        if members := scores.site_indices(side):
            rows.append([f"{side} mean", *(float(np.mean(v[members])) for v in found.values())])
    caption = f"{TASK_TITLES[scores.measure.task]}, other measures at step {scores.steps[-1]}, trained network. "
    caption += " ".join(MEASURE_NOTES[c] for c in found if c in MEASURE_NOTES)
    if left_out := measures.dropped(run, scores):
        caption += f" The mean of a measure leaves out images on which it is undefined: at most {left_out} at a site."
    return [Table(caption, ["Site", *(MEASURE_TITLES[c] for c in found)], rows, images=scores.images)]


def ten_contrasts(context: Context) -> list[Table]:
    """The pre-registered contrasts, including those whose baseline the run lacks; empty if it lacks all of them."""
    found = baselines.preregistered(context.scores, context.controls, context.families.get("vae", {}))
    tested = sum(np.isfinite(c.p) for c in found)
    if not tested:
        return []
    part = next(iter(context.scores.values())).lead_noun
    rows: list[list[Cell]] = []
    for c in found:
        title = f"{TASK_TITLES[c.task]}: trained minus {baseline_noun(c.baseline)}"
        is_tested = np.isfinite(c.p)
        rows.append([title, *((c.gain, p_value(c.p), p_value(c.holm)) if is_tested else ("not in this run", "", ""))])
    caption = (
        f"Ten pre-registered contrasts, {part} at the last step, in Dice and RMSE; above 0 favours the trained "
        "network. p: Wilcoxon signed-rank test over test images, also corrected by Holm over the "
        f"{tested} contrasts in this run{least_note(tested_images(context), tested)}"
    )
    return [Table(caption, ["Contrast", "Gain", "p", "p (Holm)"], rows, images=tested_images(context))]


def nested_test(context: Context) -> list[Table]:
    """What the activations add to position; empty unless both probes were fitted."""
    found = position.nested(context.run)
    if not found:
        return []
    rows = [
        [
            f"{TASK_TITLES[one.task]}: position and activations minus position",
            f"{one.sites} of {one.all_sites}",
            float(one.smaller),
            float(one.larger),
            Num(interval(one.gain, 3)),
            p_value(one.p),
            p_value(one.holm),
        ]
        for one in found
    ]
    caption = (
        "What the activations add to position. One probe has a learned value for each patch; the other has the same "
        "and the activations. Means over the sites at which both were fitted, last step, in Dice and RMSE. A gain "
        "above 0 shows that the activations contain more than the position. This test is separate from the ten "
        "contrasts and does not change them. p: Wilcoxon signed-rank test over test images, also corrected by Holm "
        f"over the tasks here{least_note(tested_images(context), len(found))}"
    )
    columns = ["Contrast", "Sites", "Position", "Position and activations", "Gain", "p", "p (Holm)"]
    return [Table(caption, columns, rows, images=tested_images(context))]


def tested_images(context: Context) -> int | None:
    """Number of test images of the main grid."""
    return next((s.images for s in context.scores.values()), None)


def least_note(images: int | None, comparisons: int) -> str:
    """A sentence if no p of the signed-rank test can become significant with these images and comparisons."""
    if images is None or least_p(images, comparisons) <= baselines.SIGNIFICANCE:
        return ""
    words = f"{images} images and {comparisons} comparisons" if comparisons > 1 else f"{images} images"
    return f". With {words}, no p can fall below {number(least_p(images, comparisons))}"
