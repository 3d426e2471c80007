"""One unit of work and of retry: all moves of one test image, one task, one edit and its controls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from interventions import patching
from interventions.config import GUIDANCE, STEPS, TRANSPLANT, InterventionConfig, choose_sites
from interventions.controls import EDIT
from interventions.counterfactual import Goal, Labels, Move, SecondObject, target
from interventions.edit import Edited, edit_batch, untouched
from interventions.labelling import Labelling, Original, fresh_original
from interventions.pictures import Pictures
from interventions.plan import EditTask, Row, batches, goals_of
from interventions.readout import Goals
from interventions.recipe import Recipe
from interventions.score import Case, Seen, score_row
from interventions.sources.base import Sources
from interventions.sources.cache import ProbeCache
from probing.diffusion.model import LatentDiffusion
from probing.diffusion.variants import OTHER_SEED, noise_seed


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one task gave."""

    rows: list[dict[str, Any]]
    """columns of `results/interventions`"""
    pictures: Pictures


class NothingToMoveError(ValueError):
    """An image made anew, for another guidance or as a donor, shows no object: no fault, and nothing to move."""


@dataclass(eq=False)
class Intervener:
    """Runs tasks: builds targets, samples with edits, labels, scores."""

    model: LatentDiffusion
    config: InterventionConfig
    sources: Sources
    original: Callable[[int], Original]
    """sample number -> the unedited sample"""
    labelling: Labelling
    guidance: float
    """guidance of sampling, for where the configuration gives none"""
    common: dict[str, Any] = field(default_factory=dict)
    """columns that all rows share, such as stage_hash and attempt"""
    about: dict[str, str] = field(default_factory=dict)
    """names for recipes: `model` (name and revision) and `probes` (where they came from)"""
    total: int = STEPS
    """denoising steps of a sample"""

    def __post_init__(self) -> None:
        self.cabinet = ProbeCache(self.sources, self.model.device)
        self.resampled = self.config.guidance not in (None, self.guidance)
        if self.config.guidance is not None:
            self.guidance = self.config.guidance

    def __call__(self, task: EditTask) -> Outcome:
        """All rows of a task. Raises ValueError where it cannot be done.

        Under another guidance than sampling's the original is made anew, so that edits alone are compared.
        """
        if task.guidance not in (None, self.guidance):
            return self.under(task.guidance)(task)
        original = self.original(task.sample)
        if self.resampled:
            original = self.fresh(original.prompt, original.seed)
        if task.experiment == TRANSPLANT:
            return self.transplanted(task, original)
        before = self.labelling.seen(original)
        if task.experiment == GUIDANCE and not before.mask.any():
            raise NothingToMoveError(f"no salient object in the unedited image at guidance {self.guidance:g}")
        return self.run(task, original, goals_of(task, self.config, before.mask), stored=not self.resampled)

    def under(self, guidance: float) -> Intervener:
        """The same at another guidance; probes, and what is normal at a site, stay those of the recorded run."""
        other = replace(self, config=replace(self.config, guidance=guidance))
        other.cabinet = self.cabinet
        return other

    def fresh(self, prompt: str, seed: int) -> Original:
        """An unedited sample made now."""
        return fresh_original(self.model, self.labelling, prompt, seed, guidance=self.guidance, steps=self.total)

    def run(self, task: EditTask, original: Original, goals: Sequence[Goal], stored: bool = True) -> Outcome:
        """The rows of a task for given goals; `stored` tells whether `original` can be had again by number."""
        before = self.labelling.seen(original)
        case = make_case(task.task, before, goals)
        wanted = Goals(task.task, case.targets, task.spec.depth_span, self._like())
        parts = [
            self._edit(task, original, wanted, rows) for rows in batches(len(goals), task.controls, self.config.rows)
        ]
        seen = [label for part in parts for label in self.labelling(part.images)]
        recipe = Recipe(
            original.prompt, original.seed, self.guidance, task.spec, tuple(goals), task.controls,
            self.config.rows, self.config.seed, task.sample, task.sample if stored else None, **self.about,
        )  # fmt: skip
        return self._outcome(task, case, recipe, parts, seen)

    def transplanted(self, task: EditTask, original: Original) -> Outcome:
        """One row: the image with the activations of another image of its prompt, scored against that one's label.

        The pictures hold the donor as a second row.
        """
        started = time.perf_counter()
        sites = choose_sites(self.model.sites(), task.spec.sites)
        how: dict[str, Any] = {"guidance": self.guidance, "total": self.total}
        seed = noise_seed(OTHER_SEED, original.seed)
        donor = patching.record_source(self.model, original.prompt, seed, sites, task.spec.steps, **how)
        image = patching.patch(self.model, original.prompt, original.seed, donor.given, sites, **how)
        before, (after, wanted) = self.labelling.seen(original), self.labelling(np.stack([image, donor.image]))
        if not wanted.mask.any():
            raise NothingToMoveError(f"no salient object in the donor, the image of seed {seed}")
        case = Case(task.task, before, wanted.label(task.task)[None], [None], wanted.mask[None])
        seconds = time.perf_counter() - started
        row = {**score_row(case, 0, after), "trial": 0, "control": EDIT, "seconds": seconds}
        pictures = Pictures(
            task.task, (Row(0, EDIT), Row(0, "donor")), np.stack([image, donor.image]),
            np.stack([after.label(task.task), wanted.label(task.task)]), before.image, before.label(task.task),
            case.targets, (), "", task.experiment, task.sample, self.common.get("stage_hash", ""), task.spec.steps,
        )  # fmt: skip
        return Outcome([{**self.common, **self.columns(task), **row}], pictures)

    def _like(self) -> torch.Tensor:
        return torch.zeros((), dtype=torch.float32, device=self.model.device)

    def _edit(self, task: EditTask, original: Original, wanted: Goals, rows: Sequence[Row]) -> Edited:
        if task.spec.iterations == 0:
            return untouched(original.image, rows)
        return edit_batch(
            self.model, original.prompt, original.seed, wanted, rows, task.spec, self.cabinet,
            guidance=self.guidance, seed=(self.config.seed, task.sample), total=self.total,
        )  # fmt: skip

    def _outcome(
        self, task: EditTask, case: Case, recipe: Recipe, parts: Sequence[Edited], seen: Sequence[Seen]
    ) -> Outcome:
        inside = [_measures(part, i) for part in parts for i in range(len(part.rows))]
        rows = [row for part in parts for row in part.rows]
        full = [
            {**score_row(case, row.trial, label), **measured, "trial": row.trial, "control": row.control}
            for row, label, measured in zip(rows, seen, inside, strict=True)
        ]
        full += _unedited(full, case) if "none" in task.controls else []
        shared = {**self.common, **self.columns(task)}
        table = [{**shared, **_move(recipe.goals[row["trial"]]), **row} for row in full]
        pictures = Pictures(
            task.task, tuple(rows), np.stack([s.image for s in seen]),
            np.stack([s.label(task.task) for s in seen]), case.before.image,
            case.before.label(task.task), case.targets, recipe.goals, recipe.to_yaml(),
            task.experiment, task.sample, self.common.get("stage_hash", ""), task.spec.steps,
        )  # fmt: skip
        return Outcome(table, pictures)

    def columns(self, task: EditTask) -> dict[str, Any]:
        """Columns that all rows of a task share."""
        spec = task.spec
        sites = choose_sites(self.model.sites(), spec.sites)
        return {
            "experiment": task.experiment,
            "sample": task.sample,
            "task": task.task,
            "sites": ",".join(site.name for site in sites),
            "steps": ",".join(map(str, spec.steps)),
            "iterations": spec.iterations,
            "lr": spec.lr,
            "guidance": self.guidance if task.guidance is None else task.guidance,
            "status": "done",
        }


def make_case(task: str, before: Seen, goals: Sequence[Goal]) -> Case:
    """Targets, opposite moves and wanted regions of an image."""
    labels = Labels(before.mask, before.depth)
    mirrors = [target(goal.mirrored, task, labels) if isinstance(goal, Move) else None for goal in goals]
    regions = [
        target(goal, "saliency", labels) if isinstance(goal, Move | SecondObject) else before.mask for goal in goals
    ]
    targets = np.stack([target(goal, task, labels) for goal in goals])
    return Case(task, before, targets, mirrors, targets if task == "saliency" else np.stack(regions))


def _measures(part: Edited, index: int) -> dict[str, Any]:
    """What was measured inside the network for one row; NaN becomes None."""
    found = {
        "edit_norm": part.norm, "readout_before": part.readout_before,
        "readout_after": part.readout_after, "readout_spearman": part.readout_spearman,
        "departure_before": part.departure_before, "departure_after": part.departure_after,
        "readout_least": part.readout_least,
    }  # fmt: skip
    values = {name: float(array[index]) for name, array in found.items()}
    clean = {name: None if np.isnan(value) else value for name, value in values.items()}
    return {**clean, "seconds": part.seconds / len(part.rows)}


def _unedited(rows: Sequence[dict[str, Any]], case: Case) -> list[dict[str, Any]]:
    """Rows of the control `none`: the original image, scored; nothing is read inside the network."""
    real = [row for row in rows if row["control"] == EDIT]
    return [
        {
            **score_row(case, row["trial"], case.before),
            "trial": row["trial"],
            "control": "none",
            "edit_norm": 0.0,
            "seconds": 0.0,
        }
        for row in real
    ]


def _move(goal: Goal) -> dict[str, float]:
    if isinstance(goal, Move | SecondObject):
        return {"dx": float(goal.dx), "dy": float(goal.dy)}
    return {}


def replay(recipe: Recipe, intervener: Intervener) -> Outcome:
    """Makes the recipe's pictures again, in the same batches, hence to the same pixels on the same device.

    Raises ValueError where the recipe was made with another model than `intervener` has.
    """
    model = intervener.about.get("model", "")
    if recipe.model and model and recipe.model != model:
        raise ValueError(f"intervention file: made with model {recipe.model}, this is {model}; load that one")
    config = replace(intervener.config, guidance=recipe.guidance, rows=recipe.rows, seed=recipe.draw_seed)
    worker = replace(intervener, config=config)
    if recipe.sample is None:
        original = worker.fresh(recipe.prompt, recipe.seed)
    else:
        original = worker.original(recipe.sample)
    task = EditTask(recipe.draw_sample, 0, recipe.spec.task, recipe.spec, recipe.controls, "play")
    return worker.run(task, original, recipe.goals, stored=recipe.sample is not None)
