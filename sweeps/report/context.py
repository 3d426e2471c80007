"""Everything that the report's sections use, computed once per report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow.compute as pc

from interventions.pictures import Pictures
from probing.statistics import Interval
from storage import Store
from sweeps.analysis import baselines, experiments, measures, summary
from sweeps.analysis.baselines import Headline
from sweeps.analysis.claims import Claim, ClaimInputs, judge
from sweeps.analysis.experiments import CONTENT_FREE_CONTROLS, Emergence, SelectivityMap, Transfer
from sweeps.analysis.floors import named_floors, on_images
from sweeps.analysis.scores import Scores, collect
from sweeps.analysis.summary import Edits
from sweeps.analysis.tables import RunData
from sweeps.report.gallery.experiments import Emerging, Smoothed, emerging, smoothed
from sweeps.report.gallery.explorer import Exploration, exploration
from sweeps.report.gallery.interventions import kept
from sweeps.report.gallery.probes import Contact, Example, PredictionMemory, contacts, examples


@dataclass(frozen=True)
class Context:
    """A run with its scores and pictures."""

    run: RunData
    scores: dict[str, Scores]
    """by task, if the trained network has probes"""
    edits: list[Edits] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    contacts: list[Contact] = field(default_factory=list)
    edited: list[Pictures] = field(default_factory=list)
    """stored pictures of edits"""
    families: dict[str, dict[str, Scores]] = field(default_factory=dict)
    """scores by experiment and task, for the experiments beside the grid that consist of probes"""
    emergence: list[Emergence] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    """by task, the best site first"""
    selectives: list[SelectivityMap] = field(default_factory=list)
    emerging: list[Emerging] = field(default_factory=list)
    exploration: Exploration | None = None
    smoothed: list[Smoothed] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """The last denoising step."""
        return max((s.steps[-1] for s in self.scores.values()), default=0)

    @property
    def model(self) -> str:
        """Name of the network under study, from the manifest or the configuration."""
        model = self.run.manifest.get("model") or self.run.setting("model") or self.run.name
        if isinstance(model, dict):
            model = model.get("name") or model.get("id") or model.get("path") or self.run.name
        return str(model)

    def count(self, column: str) -> int | None:
        """A sample count of results/probes, such as ``n_test``."""
        probes = self.run.table("probes")
        if probes is None or column not in probes.column_names:
            return None
        return pc.max(probes[column]).as_py()

    @cached_property
    def claims(self) -> list[Claim]:
        """Verdicts on the paper's five claims."""
        return judge(ClaimInputs(self.scores, self.families, self.emergence, self.edits, self.controls))

    @cached_property
    def controls(self) -> dict[str, dict[str, Scores]]:
        """Scores by fitted control and task, for controls that do not know the image's content."""
        return {c: collect(self.run, control=c) for c in summary.controls(self.run) if c in CONTENT_FREE_CONTROLS}

    @cached_property
    def headlines(self) -> dict[str, Headline]:
        """Trained network minus its best baseline by task, if the run has a baseline."""
        found = {}
        for task, scores in self.scores.items():
            controls = {c: by_task[task] for c, by_task in self.controls.items() if task in by_task}
            if (headline := baselines.headline(scores, controls)) is not None:
                found[task] = headline
        return found

    @cached_property
    def precision(self) -> Scores | None:
        """Average precision of the saliency probes, beside their Dice."""
        return measures.precision(self.run) if "saliency" in self.scores else None

    @cached_property
    def precision_gain(self) -> Interval | None:
        """The saliency headline in average precision, over the same baseline."""
        lead, trained = self.headlines.get("saliency"), self.precision
        if lead is None or trained is None or lead.baseline.name == baselines.FLOOR:
            return None
        is_control = lead.baseline.name in baselines.CONTROLS
        scores = measures.precision(self.run, lead.baseline.name) if is_control else trained
        return (
            None if scores is None else baselines.gap(trained, replace(lead.baseline, scores=scores), trained.lead_part)
        )

    @cached_property
    def floors(self) -> dict[str, dict[str, np.ndarray]]:
        """Mean test scores (S,) by task and floor."""
        return {t: named_floors(self.run, s) for t, s in self.scores.items()}

    @cached_property
    def sigmas(self) -> dict[int, float]:
        """Noise level that the network sees at each denoising step; empty if neither store nor model tells it."""
        if self.run.sigmas:
            return dict(enumerate(self.run.sigmas, 1))
        from probing.diffusion.config import PAPER_STEPS, ModelConfig
        from probing.diffusion.metadata import noise_levels
        from probing.diffusion.schedules import LMS

        name, revision = (str(self.run.setting(f"model.{key}") or "") for key in ("name", "revision"))
        if not name or (self.run.setting("sampling.scheduler") or LMS) != LMS:
            return {}
        steps = int(self.run.setting("sampling.steps") or PAPER_STEPS)
        return dict(enumerate(noise_levels(ModelConfig(name=name, revision=revision), steps), 1))

    def sigma(self, step: Interval) -> Interval:
        """The noise level of a step and of its interval's ends; NaN if there is no such step."""
        # The noise falls from step to step, so the interval's upper end is the lower noise level.
        ends = (step.estimate, np.ceil(step.high), np.floor(step.low))
        return Interval(*(self.sigmas.get(int(end), np.nan) if np.isfinite(end) else np.nan for end in ends))


def build_context(run: RunData, store: Store) -> Context:
    """Scores and pictures of a run; `store` also caches the predictions that are shown."""
    scores = {t: on_images(run, s) for t, s in collect(run).items() if "trained" in s.variants}
    context = Context(
        run,
        scores,
        summary.interventions(run),
        families=experiments.families(run),
        emergence=experiments.emergence(run, scores),
        transfers=experiments.transfers(run, scores),
        selectives=[experiments.selectivity_map(run, s) for s in scores.values()],
    )
    if run.reader is None:
        return context
    memory = PredictionMemory(run.reader, store, run.probe_stage_hash)
    table = run.table("interventions")
    hashes = set(table["stage_hash"].to_pylist()) if table is not None and context.edits else set()
    context = replace(
        context,
        examples=examples(run, scores, memory),
        contacts=contacts(run),
        edited=kept(store, hashes) if hashes else [],
        emerging=emerging(run, store, scores, memory),
        smoothed=smoothed(run, context.families, memory),
        exploration=exploration(run, store, scores, memory),
    )
    memory.save()
    return context
