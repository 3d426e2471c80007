"""Runs interventions: samples with edits, labels, scores, and replays recipes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

import numpy as np
import torch

from interventions.config import GUIDANCE, PATCHING, InterventionConfig, choose_sites
from interventions.controls import EDIT, MIRROR_TARGET
from interventions.counterfactual import Move, SecondObject, TargetSpec
from interventions.editing import patching
from interventions.editing.edit import Edited, edit_batch, untouched
from interventions.editing.readout import TargetLabels
from interventions.labelling import Labelling, Original
from interventions.pictures import Pictures
from interventions.plan import EditTask, Row, batches, targets_of
from interventions.recipe import Recipe
from interventions.score import Case, LabelledImage, make_case, score_row
from interventions.sources.base import Sources
from interventions.sources.cache import ProbeCache
from probing.diffusion.config import PAPER_STEPS
from probing.diffusion.families.base import LatentDiffusion
from probing.diffusion.sampling import sample
from probing.diffusion.sites import ATTENTION
from probing.diffusion.variants import OTHER_SEED, noise_seed

ResultRow = dict[str, object]
"""columns of `results/interventions`"""


class _Sampling(TypedDict):
    """How images are sampled."""

    guidance: float
    steps: int


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of one task."""

    rows: list[ResultRow]
    pictures: Pictures


class NothingToMoveError(ValueError):
    """An image sampled for another guidance or as a patch source shows no object: not a fault, the task is skipped."""


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
    """guidance of sampling, used unless the configuration sets one"""
    common: ResultRow = field(default_factory=dict)
    """columns that all rows share, such as stage_hash and attempt"""
    about: dict[str, str] = field(default_factory=dict)
    """names for recipes: `model` (name and content) and `probes` (where they came from)"""
    earlier_name: str = ""
    """the model's name in recipes of earlier versions, with a revision that does not cover the whole content"""
    steps: int = PAPER_STEPS
    """`sampling.steps`"""
    kinds: tuple[str, ...] = (ATTENTION,)
    """kinds of the sites that groups such as `decoder` consist of"""

    def __post_init__(self) -> None:
        self.probe_cache = ProbeCache(self.sources, self.model.device)
        self.resampled = self.config.guidance not in (None, self.guidance)
        if self.config.guidance is not None:
            self.guidance = self.config.guidance

    def __call__(self, task: EditTask) -> Outcome:
        """All rows of a task. Raises ValueError if it cannot be done, NothingToMoveError if it should be skipped.

        Under another guidance than that of sampling the original is regenerated, so that only the edit differs.
        """
        if task.guidance not in (None, self.guidance):
            return self.with_guidance(task.guidance)(task)
        original = self.original(task.sample)
        if self.resampled:
            original = self.fresh(original.prompt, original.seed)
        if task.experiment == PATCHING:
            return self.patched(task, original)
        mask = self.labelling.of_original(original).mask
        if task.experiment == GUIDANCE and not mask.any():
            raise NothingToMoveError(f"no salient object in the unedited image at guidance {self.guidance:g}")
        return self.run(task, original, targets_of(task, self.config, mask), stored=not self.resampled)

    def with_guidance(self, guidance: float | None) -> Intervener:
        """A copy with another guidance; probes and activation statistics stay those of the recorded run."""
        other = replace(self, config=replace(self.config, guidance=guidance))
        other.probe_cache = self.probe_cache
        return other

    def fresh(self, prompt: str, seed: int) -> Original:
        """Sample one prompt and seed without any edit and label it."""
        images = sample(self.model, [prompt], [seed], steps=self.steps, guidance=self.guidance).images.numpy()
        saliency, depth = self.labelling.saliency(images), self.labelling.depth(images)
        return Original(prompt, seed, images[0], saliency[0], depth[0])

    def run(self, task: EditTask, original: Original, targets: Sequence[TargetSpec], stored: bool = True) -> Outcome:
        """The rows of a task for given targets; `stored`: the recipe may refer to `original` by its sample number."""
        case = make_case(task.task, self.labelling.of_original(original), targets)
        like = torch.zeros((), dtype=torch.float32, device=self.model.device)
        wanted = case.targets
        if MIRROR_TARGET in task.controls:
            opposite = [label for label in case.mirrors if label is not None]
            if len(opposite) < len(targets):
                raise ValueError(f"control {MIRROR_TARGET} needs moves: other targets have no opposite")
            wanted = np.concatenate([wanted, np.stack(opposite)])
        labels = TargetLabels(task.task, wanted, task.spec.depth_span, like, case.before.label(task.task))
        parts = []
        for rows in batches(len(targets), task.controls, self.config.rows):
            if task.spec.iterations == 0:
                parts.append(untouched(original.image, rows))
                continue
            parts.append(edit_batch(
                self.model, original.prompt, original.seed, labels, rows, task.spec, self.probe_cache,
                guidance=self.guidance, seed=(self.config.seed, task.sample), steps=self.steps, kinds=self.kinds,
            ))  # fmt: skip
        edited = [image for part in parts for image in self.labelling(part.images)]
        recipe = Recipe(
            original.prompt, original.seed, self.guidance, task.spec, tuple(targets), task.controls,
            self.config.rows, self.config.seed, task.sample, task.sample if stored else None, **self.about,
        )  # fmt: skip
        all_rows = tuple(row for part in parts for row in part.rows)
        pictures = self._pictures(task, case, all_rows, edited, recipe.goals, recipe.to_yaml())
        return Outcome(self._table(task, case, targets, parts, edited), pictures)

    def patched(self, task: EditTask, original: Original) -> Outcome:
        """Activation patching: one row, the patched image scored against the label of the source image.

        The source is another image of the same prompt; the pictures show it as a second row, `donor`.
        """
        started = time.perf_counter()
        sites = choose_sites(self.model.recordable, task.spec.sites, kinds=self.kinds)
        prompt, seed = original.prompt, noise_seed(OTHER_SEED, original.seed)
        model, how = self.model, _Sampling(guidance=self.guidance, steps=self.steps)
        source = patching.record_source(model, prompt, seed, sites, task.spec.steps, **how)
        image = patching.patch(model, prompt, original.seed, source.activations, sites, **how)
        before, (after, target) = self.labelling.of_original(original), self.labelling(np.stack([image, source.image]))
        if not target.mask.any():
            raise NothingToMoveError(f"no salient object in the patch source, the image of seed {seed}")
        case = Case(task.task, before, target.label(task.task)[None], [None], target.mask[None])
        seconds = time.perf_counter() - started
        row = {**self.columns(task), **score_row(case, 0, after), "trial": 0, "control": EDIT, "seconds": seconds}
        rows = (Row(0, EDIT), Row(0, "donor"))
        return Outcome([row], self._pictures(task, case, rows, [after, target], (), ""))

    def columns(self, task: EditTask) -> ResultRow:
        """Columns that all rows of a task share."""
        spec = task.spec
        sites = choose_sites(self.model.recordable, spec.sites, kinds=self.kinds)
        return {
            **self.common,
            "experiment": task.experiment,
            "sample": task.sample,
            "task": task.task,
            "sites": ",".join(site.name for site in sites),
            "steps": ",".join(map(str, spec.steps)),
            "iterations": spec.iterations,
            "lr": spec.lr,
            "guidance": self.guidance if task.guidance is None else task.guidance,
            "direction": spec.direction,
            "scale": spec.scale,
            "gain": spec.gain,
            "status": "done",
        }

    def _table(
        self, task: EditTask, case: Case, targets: Sequence[TargetSpec], parts: Sequence[Edited],
        edited: Sequence[LabelledImage],
    ) -> list[ResultRow]:  # fmt: skip
        """A row for each edited image, then those of the control `none`: the original, scored against each target."""
        entries: list[tuple[Row, dict[str, float | None]]] = []
        for part in parts:
            for i, row in enumerate(part.rows):
                values = {name: float(array[i]) for name, array in part.measures.items()}
                measured = {name: None if np.isnan(value) else value for name, value in values.items()}
                entries.append((row, {**measured, "seconds": part.seconds / len(part.rows)}))
        images = list(edited)
        if "none" in task.controls:
            entries += [(Row(trial, "none"), {"edit_norm": 0.0, "seconds": 0.0}) for trial in range(len(targets))]
            images += [case.before] * len(targets)
        shared, table = self.columns(task), []
        for (row, measures), image in zip(entries, images, strict=True):
            target = targets[row.trial]
            moved = {"dx": float(target.dx), "dy": float(target.dy)} if isinstance(target, Move | SecondObject) else {}
            scores = score_row(case, row.trial, image)
            table.append({**shared, **moved, **scores, **measures, "trial": row.trial, "control": row.control})
        return table

    def _pictures(
        self, task: EditTask, case: Case, rows: tuple[Row, ...], images: Sequence[LabelledImage],
        targets: tuple[TargetSpec, ...], recipe: str,
    ) -> Pictures:  # fmt: skip
        return Pictures(
            task.task, rows, np.stack([image.image for image in images]),
            np.stack([image.label(task.task) for image in images]), case.before.image, case.before.label(task.task),
            case.targets, targets, recipe, task.experiment, task.sample, str(self.common.get("stage_hash", "")),
            task.spec.steps, task.spec.direction,
        )  # fmt: skip


def replay(recipe: Recipe, intervener: Intervener) -> Outcome:
    """Make a recipe's pictures again in the same batches, hence to the same pixels on the same device.

    Raises ValueError if the recipe was made with another model than that of `intervener`.
    """
    model = intervener.about.get("model", "")
    if recipe.model and model and recipe.model not in (model, intervener.earlier_name):
        raise ValueError(f"intervention file: made with model {recipe.model}, this is {model}; load that one")
    config = replace(intervener.config, guidance=recipe.guidance, rows=recipe.rows, seed=recipe.draw_seed)
    worker = replace(intervener, config=config)
    number, stored = recipe.sample, recipe.sample is not None
    original = worker.fresh(recipe.prompt, recipe.seed) if number is None else worker.original(number)
    task = EditTask(recipe.draw_sample, 0, recipe.spec.task, recipe.spec, recipe.controls, "play")
    return worker.run(task, original, recipe.goals, stored=stored)
