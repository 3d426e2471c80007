"""The report's further measures: all that is stored of the trained network's probes at the last step."""

from __future__ import annotations

import numpy as np

from sweeps.analysis import baselines, measures, position
from sweeps.analysis.scores import Scores
from sweeps.analysis.tables import RunData
from sweeps.analysis.vocabulary import MEASURE_NOTES, MEASURE_TITLES, TASK_TITLES, baseline_noun
from sweeps.report.context import Context
from sweeps.report.links import site_link
from sweeps.report.tables import Num, interval, p_value, table


def other_measures(run: RunData, scores: Scores) -> str:
    """Every stored measure of the trained network, site by site."""
    task, found = scores.measure.task, measures.last_step(run, scores)
    if not found:
        return ""
    rows = [[site_link(s.name), *(float(v[i]) for v in found.values())] for i, s in enumerate(scores.sites)]
    for side in ("encoder", "decoder"):
        if where := scores.which(side):
            rows.append([f"{side} mean", *(float(np.mean(v[where])) for v in found.values())])
    meanings = " ".join(MEASURE_NOTES[c] for c in found if c in MEASURE_NOTES)
    caption = f"{TASK_TITLES[task]}, other measures at step {scores.steps[-1]}, trained network. {meanings}"
    if left_out := measures.dropped(run, scores):
        caption += f" Images on which a measure is undefined are left out of its mean: at most {left_out} at a site."
    return table(caption, ["Site", *(MEASURE_TITLES[c] for c in found)], rows)


def ten_contrasts(context: Context) -> str:
    """The contrasts that were named beforehand, with those that this run does not hold."""
    found = baselines.preregistered(context.scores, context.controls, context.families.get("vae", {}))
    held = sum(np.isfinite(one.p) for one in found)
    if not held:
        return ""
    rows = [
        [f"{TASK_TITLES[c.task]}: trained minus {baseline_noun(c.baseline)}", c.gain, p_value(c.p), p_value(c.holm)]
        if np.isfinite(c.p)
        else [f"{TASK_TITLES[c.task]}: trained minus {baseline_noun(c.baseline)}", "not in this run", "", ""]
        for c in found
    ]
    caption = (
        f"Ten contrasts named beforehand, decoder mean at the last step, in Dice and RMSE; above 0 favours the trained "
        f"network. p: Wilcoxon signed ranks over test images, and corrected by Holm over the {held} that this run holds"
    )
    return table(caption, ["Contrast", "Gain", "p", "p (Holm)"], rows)


def nested_test(context: Context) -> str:
    """What the activations add to position, where both probes were fitted."""
    found = position.nested(context.run)
    if not found:
        return ""
    rows = [
        [f"{TASK_TITLES[one.task]}: position and activations minus position", f"{one.sites} of {one.decoder_sites}",
         float(one.smaller), float(one.larger), Num(interval(one.gain, 3)), p_value(one.p), p_value(one.holm)]
        for one in found
    ]  # fmt: skip
    caption = (
        "What the activations add to position: one probe has a value for each place, the other the same beside the "
        "activations; means over the decoder’s sites at which both were fitted, last step, in Dice and RMSE. A gain "
        "above 0 says that the activations know more than the place. This test stands beside the ten contrasts, which "
        "it leaves as they are. p: Wilcoxon signed ranks over test images, and corrected by Holm over the tasks here"
    )
    columns = ["Contrast", "Decoder sites", "Position", "Position and activations", "Gain", "p", "p (Holm)"]
    return table(caption, columns, rows)
