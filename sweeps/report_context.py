"""Everything that the report's sections draw on, worked out once."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.compute as pc

from interventions.pictures import Pictures
from sweeps import analysis, edit_gallery, figures_edits, figures_more, figures_probes, findings, gallery
from sweeps.analysis import Scores
from sweeps.figures import Panel
from sweeps.findings import Edits
from sweeps.gallery import Contact, Example
from sweeps.report_data import RunData
from sweeps.report_floors import named_floors
from sweeps.tracking_plan import stage_stamp


@dataclass(frozen=True)
class Context:
    """A run with its scores and pictures; figures are drawn when asked for."""

    run: RunData
    scores: dict[str, Scores]
    """by task, where the trained network has probes"""
    edits: list[Edits] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    contacts: list[Contact] = field(default_factory=list)
    edited: list[Pictures] = field(default_factory=list)
    """kept pictures of edits"""

    @cached_property
    def floors(self) -> dict[str, dict[str, np.ndarray]]:
        """Mean test scores (S,) by task and floor."""
        return {t: named_floors(self.run, t, s.sites, s.floor) for t, s in self.scores.items()}

    @cached_property
    def curves(self) -> list[Panel]:
        """Block means by step, one panel per task."""
        return [figures_probes.block_curves(s) for s in self.scores.values()]

    @cached_property
    def site_curves(self) -> dict[str, list[Panel]]:
        """Sites by step, one panel per block, by task."""
        return {t: figures_probes.site_curves(s) for t, s in self.scores.items()}

    @cached_property
    def heatmaps(self) -> list[Panel]:
        """Site by step, one panel per task and variant."""
        return [
            figures_probes.heatmap(s, v)
            for s in self.scores.values()
            for v in ("trained", *findings.contrasts(s))
        ]

    @cached_property
    def last_step(self) -> list[Panel]:
        """Every site at the last step, one panel per task."""
        return [figures_probes.dumbbells(s) for s in self.scores.values()]

    @cached_property
    def edit_panels(self) -> list[Panel]:
        """Interventions: two panels per task, then ablations and second objects."""
        more = figures_edits.panels(self.run.table("interventions"))
        return [*figures_more.edit_panels(self.edits), *more]

    @property
    def panels(self) -> list[Panel]:
        """Every figure, in the page's order."""
        small = [p for found in self.site_curves.values() for p in found]
        return [*self.curves, *small, *self.heatmaps, *self.last_step, *self.edit_panels]

    @property
    def steps(self) -> int:
        """The last denoising step."""
        return max((s.steps[-1] for s in self.scores.values()), default=0)

    @property
    def model(self) -> str:
        """Name of the network under study."""
        return model_name(self.run)

    def count(self, column: str) -> int | None:
        """A sample count of results/probes, such as ``n_test``."""
        probes = self.run.table("probes")
        if probes is None or column not in probes.column_names:
            return None
        return pc.max(probes[column]).as_py()


def model_name(run: RunData) -> str:
    """The model's id from manifest or configuration."""
    found: Any = run.manifest.get("model") or run.setting("model") or run.name
    if isinstance(found, dict):
        found = found.get("name") or found.get("id") or found.get("path") or run.name
    return str(found)


def build(run: RunData, store: Any) -> Context:
    """Scores and pictures of a run; `store` keeps the predictions that are shown."""
    scores = {t: s for t, s in analysis.collect(run).items() if "trained" in s.variants}
    edits = findings.interventions(run)
    if run.reader is None:
        return Context(run, scores, edits)
    memory = gallery.PredictionMemory(run.reader, store, stage_stamp(run))
    examples = gallery.examples(run, scores, memory)
    memory.save()
    edited = edit_gallery.kept(store) if edits else []
    return Context(run, scores, edits, examples, gallery.contacts(run), edited)
