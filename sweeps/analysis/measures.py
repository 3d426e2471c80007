"""The measures beside the two that lead: of the trained network at the last step, site by site."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from sweeps.analysis import scores as analysis
from sweeps.analysis.scores import Measure, Scores
from sweeps.analysis.tables import RunData

PRECISION = Measure("saliency", "ap", "average precision", True)
"""the primary measure of saliency: every threshold at once, so that none has to be chosen"""
OTHERS = {
    "saliency": {
        "ap": "Average precision", "dice": "Dice", "dice_threshold": "Dice, threshold of train",
        "dice_background": "Dice of the background", "crossentropy": "Cross-entropy",
    },
    "depth": {
        "rmse": "RMSE", "rmse_object": "RMSE, object", "rmse_background": "RMSE, background", "skill": "Skill",
        "rmse_aligned": "RMSE, aligned", "spearman": "Spearman", "spearman_residual": "Spearman of residuals",
        "pearson": "Pearson",
    },
}  # fmt: skip
"""columns of results/probes by task, with their names"""
MEANINGS = {
    "ap": "Average precision: area under precision against recall over all thresholds, higher is better.",
    "dice_threshold": "Threshold of train: the cut with the best mean Dice on training images, in place of the argmax.",
    "dice_background": "Dice of the background: how well what is not the object is found.",
    "crossentropy": "Cross-entropy: the loss that is minimised, lower is better.",
    "rmse_object": "Object and background: over the pixels of the salient object alone, and over all others.",
    "spearman_residual": "Of residuals: after the training images’ mean depth map is taken from prediction and label.",
    "skill": "Skill: 1 − squared error / squared error of the training images’ mean depth map; 0 is no better than it.",
    "rmse_aligned": "Aligned: after the best scale and shift of each image.",
    "spearman": "Spearman and Pearson: correlations over the pixels of an image.",
}


def precision(run: RunData, control: str = "none") -> Scores | None:
    """Average precision by variant, site, step and image; None where the run has none."""
    return analysis.collect(run, control=control, measures=(PRECISION,)).get("saliency")


def dropped(run: RunData, scores: Scores) -> int:
    """The most test images that a mean of the last step leaves out because a measure is undefined on them."""
    probes = analysis.chosen(run.table("probes"), run.experiment, "none")
    if probes is None or "dropped" not in probes.column_names:
        return 0
    mine = pc.and_(pc.equal(probes["task"], scores.measure.task), pc.equal(probes["step"], scores.steps[-1]))
    mine = pc.and_(mine, pc.equal(probes["variant"], "trained"))
    return pc.max(probes.filter(mine)["dropped"]).as_py() or 0


def last_step(run: RunData, scores: Scores, control: str = "none") -> dict[str, np.ndarray]:
    """Mean test scores (S,) of the trained network by column, of those that are there."""
    probes = analysis.chosen(run.table("probes"), run.experiment, control)
    if probes is None:
        return {}
    mine = probes.filter(pc.equal(probes["task"], scores.measure.task))
    axes = (("trained",), tuple(s.name for s in scores.sites), scores.steps[-1:])
    keys = ("variant", "site", "step")
    found = {c: analysis.cube(mine, keys, axes, c)[0, :, 0] for c in OTHERS[scores.measure.task]}
    return {column: values for column, values in found.items() if np.isfinite(values).any()}
