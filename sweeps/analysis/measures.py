"""The measures beside the two that lead: of the trained network at the last step, site by site."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from sweeps.analysis import scores as analysis
from sweeps.analysis.scores import Measure, Scores
from sweeps.analysis.tables import RunData

PRECISION = Measure("saliency", "ap", "average precision", True)
"""the primary measure of saliency: every threshold at once, so that none has to be chosen"""
COLUMNS = {
    "saliency": ("ap", "dice", "dice_threshold", "dice_background", "crossentropy"),
    "depth": (
        "rmse", "rmse_object", "rmse_background", "skill", "rmse_aligned", "spearman", "spearman_residual", "pearson",
    ),
}  # fmt: skip
"""columns of results/probes that are reported for each task"""


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
    found = {c: analysis.cube(mine, keys, axes, c)[0, :, 0] for c in COLUMNS[scores.measure.task]}
    return {column: values for column, values in found.items() if np.isfinite(values).any()}
