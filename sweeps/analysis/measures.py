"""Measures beside the two headline ones, for the trained network at the last step, site by site."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from sweeps.analysis.scores import PROBE_KEYS, Measure, Scores, collect, cube, equal, finished_rows
from sweeps.analysis.tables import RunData
from sweeps.config.schema import GRID

PRECISION = Measure("saliency", "ap", "average precision", True)
"""the primary measure of saliency: it covers all thresholds, so that none has to be chosen"""
COLUMNS = {
    "saliency": ("ap", "dice", "dice_threshold", "dice_background", "crossentropy"),
    "depth": (
        "rmse", "rmse_object", "rmse_background", "skill", "rmse_aligned", "spearman", "spearman_residual", "pearson",
    ),
}  # fmt: skip
"""columns of results/probes that are reported for each task"""


def precision(run: RunData, control: str = "none") -> Scores | None:
    """Average precision by variant, site, step and image; None if the run has none."""
    return collect(run, control=control, measures=(PRECISION,)).get("saliency")


def dropped(run: RunData, scores: Scores) -> int:
    """Largest number of test images left out of a last-step mean because a measure is undefined on them."""
    probes = finished_rows(run.table("probes"), GRID, "none")
    if probes is None or "dropped" not in probes.column_names:
        return 0
    last = equal(probes, task=scores.measure.task, step=scores.steps[-1], variant="trained")
    return pc.max(probes.filter(last)["dropped"]).as_py() or 0


def last_step(run: RunData, scores: Scores, control: str = "none") -> dict[str, np.ndarray]:
    """Mean test scores (S,) of the trained network by column; columns without a value are left out."""
    probes = finished_rows(run.table("probes"), GRID, control)
    if probes is None:
        return {}
    of_task = probes.filter(pc.equal(probes["task"], scores.measure.task))
    axes = (("trained",), [s.name for s in scores.sites], scores.steps[-1:])
    means = {c: cube(of_task, PROBE_KEYS, axes, c)[0, :, 0] for c in COLUMNS[scores.measure.task]}
    return {column: values for column, values in means.items() if np.isfinite(values).any()}
