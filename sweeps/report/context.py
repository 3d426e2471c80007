"""Everything that the report's sections draw on, worked out once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.compute as pc

from interventions.pictures import Pictures
from probing.statistics import Interval
from sweeps.analysis import baselines, measures, summary
from sweeps.analysis import experiments as findings_more
from sweeps.analysis import scores as analysis
from sweeps.analysis.baselines import Headline, headline
from sweeps.analysis.claims import Claim, ClaimInputs, judge
from sweeps.analysis.experiments import Emergence, SelectivityMap, Transfer
from sweeps.analysis.floors import named_floors
from sweeps.analysis.scores import Scores
from sweeps.analysis.summary import Edits
from sweeps.analysis.tables import RunData
from sweeps.report.figures import ablations
from sweeps.report.figures import experiments as figures_extra
from sweeps.report.figures import interventions as figures_more
from sweeps.report.figures import probes as figures_probes
from sweeps.report.figures.base import Panel
from sweeps.report.gallery import experiments as gallery_more
from sweeps.report.gallery import interventions as edit_gallery
from sweeps.report.gallery import probes as gallery
from sweeps.report.gallery.experiments import Emerging, Smoothed
from sweeps.report.gallery.probes import Contact, Example


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
    families: dict[str, dict[str, Scores]] = field(default_factory=dict)
    """scores by experiment and task, of the experiments beside the grid that consist of probes"""
    emergence: list[Emergence] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    """by task, the best site first"""
    selectives: list[SelectivityMap] = field(default_factory=list)
    emerging: list[Emerging] = field(default_factory=list)
    smoothed: list[Smoothed] = field(default_factory=list)

    @cached_property
    def claims(self) -> list[Claim]:
        """Verdicts on the paper's five claims."""
        return judge(ClaimInputs(self.scores, self.families, self.emergence, self.edits, self.controls))

    @cached_property
    def controls(self) -> dict[str, dict[str, Scores]]:
        """Scores by fitted control and task, of controls that do not know the image's content."""
        names = [c for c in summary.controls(self.run) if c in findings_more.CONTENT_FREE_CONTROLS]
        return {c: analysis.collect(self.run, control=c) for c in names}

    @cached_property
    def headlines(self) -> dict[str, Headline]:
        """Trained minus its best rival by task, where the run holds a rival."""
        found = {t: headline(s, self.of_controls(t)) for t, s in self.scores.items()}
        return {task: one for task, one in found.items() if one is not None}

    def of_controls(self, task: str) -> dict[str, Scores]:
        """Scores of one task by fitted control."""
        return {c: by_task[task] for c, by_task in self.controls.items() if task in by_task}

    @cached_property
    def precision_gain(self) -> Interval | None:
        """The saliency headline in average precision, over the same rival."""
        lead, ours = self.headlines.get("saliency"), self.precision
        if lead is None or ours is None:
            return None
        is_control = lead.baseline.name in baselines.CONTROLS
        theirs = measures.precision(self.run, lead.baseline.name) if is_control else ours
        return None if theirs is None else baselines.gap(ours, replace(lead.baseline, scores=theirs), "decoder")

    @cached_property
    def sigmas(self) -> dict[int, float]:
        """Noise level that the network sees at each denoising step; empty where the model is not at hand."""
        from probing.diffusion.config import ModelConfig
        from probing.diffusion.metadata import noise_levels
        from sweeps.config.schema import STEPS

        name, revision = (str(self.run.setting(f"model.{key}") or "") for key in ("name", "revision"))
        return dict(enumerate(noise_levels(ModelConfig(name=name, revision=revision), STEPS), 1)) if name else {}

    def sigma(self, step: Interval) -> Interval:
        """The noise levels of a step and of its interval's ends; NaN where there is no such step."""
        nan = float("nan")
        ends = (step.estimate, np.ceil(step.high), np.floor(step.low))
        return Interval(*(self.sigmas.get(int(end), nan) if np.isfinite(end) else nan for end in ends))

    @cached_property
    def precision(self) -> Scores | None:
        """Average precision of the saliency probes, beside their Dice."""
        return measures.precision(self.run) if "saliency" in self.scores else None

    @cached_property
    def floors(self) -> dict[str, dict[str, np.ndarray]]:
        """Mean test scores (S,) by task and floor."""
        return {t: named_floors(self.run, s) for t, s in self.scores.items()}

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
        return [figures_probes.heatmap(s, v) for s in self.scores.values() for v in ("trained", *summary.contrasts(s))]

    @cached_property
    def last_step(self) -> list[Panel]:
        """Every site at the last step, one panel per task."""
        return [figures_probes.dumbbells(s) for s in self.scores.values()]

    @cached_property
    def edit_panels(self) -> list[Panel]:
        """Interventions: two panels per task, then ablations and second objects."""
        more = ablations.panels(self.run.table("interventions"))
        return [*figures_more.edit_panels(self.edits), *more]

    @cached_property
    def emergence_panels(self) -> list[Panel]:
        """Probe and labellers by step, one panel per task."""
        return [figures_extra.emergence_curves(e) for e in self.emergence]

    @cached_property
    def vae_panels(self) -> list[Panel]:
        """VAE and UNet decoder by step, one panel per task."""
        return [figures_extra.vae_curves(main, other) for main, other in self._beside("vae") if main.which("decoder")]

    @cached_property
    def conv_panels(self) -> list[Panel]:
        """Convolution and attention by step, one small panel per task and block."""
        return [p for main, other in self._beside("conv") for p in figures_extra.conv_curves(main, other)]

    def _beside(self, experiment: str) -> list[tuple[Scores, Scores]]:
        """(main grid, experiment) of the tasks that both have."""
        found = self.families.get(experiment, {})
        return [(self.scores[t], s) for t, s in found.items() if t in self.scores]

    @cached_property
    def transfer_panels(self) -> list[Panel]:
        """Matrix and cosines at the best site of each task."""
        first = {t.measure.task: t for t in reversed(self.transfers)}
        chosen = [first[task] for task in self.scores if task in first]
        return [p for t in chosen for p in _transfer_panels(t)]

    @cached_property
    def more_transfer_panels(self) -> list[Panel]:
        """Those of the other sites."""
        shown = {p.name for p in self.transfer_panels}
        return [p for t in self.transfers for p in _transfer_panels(t) if p.name not in shown]

    @property
    def all_transfer_panels(self) -> list[Panel]:
        """Matrices and cosines of every site."""
        return [*self.transfer_panels, *self.more_transfer_panels]

    @cached_property
    def selectivity_panels(self) -> list[Panel]:
        """Gain over the best rival by site and step, one panel per task."""
        return [figures_extra.selectivity_heatmap(s) for s in self.selectives if np.isfinite(s.gain).any()]

    @property
    def extra_panels(self) -> list[Panel]:
        """Figures of the experiments beside the grid, without the folded ones."""
        return [
            *self.emergence_panels, *self.vae_panels, *self.conv_panels, *self.transfer_panels,
            *self.selectivity_panels,
        ]  # fmt: skip

    @property
    def panels(self) -> list[Panel]:
        """Every figure, in the page's order."""
        small = [p for found in self.site_curves.values() for p in found]
        main = [*self.curves, *small, *self.heatmaps, *self.last_step]
        return [*main, *self.extra_panels, *self.more_transfer_panels, *self.edit_panels]

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
    edits = summary.interventions(run)
    families = findings_more.families(run)
    more: dict[str, Any] = {
        "families": families,
        "emergence": findings_more.emergence(run, scores),
        "transfers": findings_more.transfers(run, scores),
        "selectives": [findings_more.selectivity_map(run, s) for s in scores.values()],
    }
    if run.reader is None:
        return Context(run, scores, edits, **more)
    memory = gallery.PredictionMemory(run.reader, store, run.probe_stage_hash)
    examples = gallery.examples(run, scores, memory)
    more["emerging"] = gallery_more.emerging(run, store, scores, memory)
    more["smoothed"] = gallery_more.smoothed(run, families, memory)
    memory.save()
    table = run.table("interventions")
    edited = edit_gallery.kept(store, set(table["stage_hash"].to_pylist())) if edits and table is not None else []
    return Context(run, scores, edits, examples, gallery.contacts(run), edited, **more)


def _transfer_panels(found: Transfer) -> list[Panel]:
    panels = [figures_extra.transfer_heatmap(found)]
    return panels + ([figures_extra.cosine_heatmap(found)] if found.cosine is not None else [])
