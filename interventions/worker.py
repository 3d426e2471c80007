"""One unit of work and of retry: all moves of one test image, one task, one edit and its controls."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from interventions.config import EditSpec, InterventionConfig, choose_sites
from interventions.controls import EDIT
from interventions.counterfactual import (
    Goal,
    Labels,
    Move,
    SecondObject,
    authors_moves,
    draw_moves,
    target,
)
from interventions.edit import STEPS, Edited, Row, batches, edit_batch
from interventions.readout import Goals
from interventions.score import EXTRA, Case, Seen, score_row
from interventions.sources import Cabinet, Sources
from probing.model import LatentDiffusion


@dataclass(frozen=True)
class EditTask:
    """All moves of one test image under one edit."""

    sample: int
    """sample number"""
    position: int
    """place among the test images, from 0; the authors' moves depend on it"""
    task: str
    """saliency or depth"""
    spec: EditSpec
    """where, when and how strongly"""
    controls: tuple[str, ...] = ()
    """what the real edit is compared with"""
    experiment: str = "interventions"
    """name under which the rows are kept"""

    @property
    def key(self) -> str:
        """Names the task; the same for equal tasks in every process."""
        digest = hashlib.sha256(repr((self.spec, self.controls)).encode()).hexdigest()[:8]
        return f"{self.experiment}.{self.sample:05d}.{self.task}.{digest}"


@dataclass(frozen=True, eq=False)
class Original:
    """An unedited sample with its raw labels."""

    prompt: str
    seed: int
    """of its initial noise"""
    image: NDArray[np.uint8]
    """(H, W, 3)"""
    saliency: NDArray[np.uint8]
    """(H, W) as the labeller gave it"""
    depth: NDArray[np.float32]
    """(H, W) relative inverse depth as the labeller gave it"""


Labeller = Callable[[NDArray[np.uint8]], NDArray]


@dataclass(frozen=True)
class Labelling:
    """Turns images into masks and standardised depth."""

    saliency: Labeller
    """(n, H, W, 3) to uint8 (n, H, W)"""
    depth: Labeller
    """(n, H, W, 3) to float32 (n, H, W)"""
    threshold: int = 0
    """a pixel is foreground where its saliency is above this"""
    mean: float = 0.0
    """of relative inverse depth, over training samples"""
    deviation: float = 1.0
    """likewise"""

    def seen(self, image: NDArray, saliency: NDArray, depth: NDArray) -> Seen:
        """An image with raw labels (H, W) made comparable."""
        standardised = (depth.astype(np.float32) - self.mean) / self.deviation
        return Seen(image, saliency > self.threshold, standardised.astype(np.float32))

    def __call__(self, images: NDArray[np.uint8]) -> list[Seen]:
        """Labels of images (n, H, W, 3)."""
        labels = zip(images, self.saliency(images), self.depth(images), strict=True)
        return [self.seen(*each) for each in labels]


@dataclass(frozen=True, eq=False)
class Pictures:
    """What the report shows of one task's edits."""

    rows: tuple[Row, ...]
    images: NDArray[np.uint8]
    """(R, H, W, 3) edited"""
    labels: NDArray
    """(R, H, W) of the edited images: bool, or standardised depth"""
    before: NDArray[np.uint8]
    """(H, W, 3)"""
    label_before: NDArray
    """(H, W)"""
    targets: NDArray
    """(trials, H, W)"""
    goals: tuple[Goal, ...]
    """what the targets came from"""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one task gave."""

    rows: list[dict[str, Any]]
    """columns of `results/interventions`"""
    extra: list[dict[str, Any]]
    """the columns of score.EXTRA, row by row"""
    pictures: Pictures


def goals_of(task: EditTask, config: InterventionConfig, mask: NDArray[np.bool_]) -> tuple[Move, ...]:
    """The moves of a task; every experiment on the same image and task uses the same ones."""
    if config.move_rule == "authors":
        return tuple(authors_moves(task.task, task.position + 1, config.moves, mask.shape)[task.position])
    return tuple(draw_moves(mask, config.moves, (config.seed, task.sample)))


def plan(config: InterventionConfig, samples: Sequence[int]) -> list[EditTask]:
    """The tasks over test samples, ascending; image by image, so that a run cut short has whole images."""
    chosen = sorted(samples)[: config.images or None]
    return [
        EditTask(sample, position, task, spec, controls, experiment)
        for position, sample in enumerate(chosen)
        for task in config.tasks
        for experiment, spec, controls in config.experiments(task)
    ]


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

    def __post_init__(self) -> None:
        self.cabinet = Cabinet(self.sources, self.model.device)
        if self.config.guidance is not None:
            self.guidance = self.config.guidance

    def __call__(self, task: EditTask) -> Outcome:
        """All rows of a task. Raises ValueError where it cannot be done."""
        original = self.original(task.sample)
        before = self.labelling.seen(original.image, original.saliency, original.depth)
        return self.run(task, original, goals_of(task, self.config, before.mask))

    def run(self, task: EditTask, original: Original, goals: Sequence[Goal]) -> Outcome:
        """The rows of a task for given goals."""
        before = self.labelling.seen(original.image, original.saliency, original.depth)
        case = make_case(task.task, before, goals)
        wanted = Goals(task.task, case.targets, task.spec.depth_span, self._like())
        parts = [
            self._edit(task, original, wanted, rows)
            for rows in batches(len(goals), task.controls, self.config.rows)
        ]
        seen = [label for part in parts for label in self.labelling(part.images)]
        return self._outcome(task, case, goals, parts, seen)

    def _like(self) -> torch.Tensor:
        return torch.zeros((), dtype=torch.float32, device=self.model.device)

    def _edit(self, task: EditTask, original: Original, wanted: Goals, rows: Sequence[Row]) -> Edited:
        return edit_batch(
            self.model, original.prompt, original.seed, wanted, rows, task.spec, self.cabinet,
            guidance=self.guidance, seed=(self.config.seed, task.sample),
        )  # fmt: skip

    def _outcome(
        self,
        task: EditTask,
        case: Case,
        goals: Sequence[Goal],
        parts: Sequence[Edited],
        seen: Sequence[Seen],
    ) -> Outcome:
        inside = [_measures(part, i) for part in parts for i in range(len(part.rows))]
        rows = [row for part in parts for row in part.rows]
        full = [
            {**score_row(case, row.trial, label), **measured, "trial": row.trial, "control": row.control}
            for row, label, measured in zip(rows, seen, inside, strict=True)
        ]
        full += _unedited(full, case) if "none" in task.controls else []
        shared = {**self.common, **self._columns(task)}
        found = [{**shared, **_move(goals[row["trial"]]), **row} for row in full]
        table, extra = zip(*(split_columns(row) for row in found), strict=True)
        pictures = Pictures(
            tuple(rows), np.stack([s.image for s in seen]),
            np.stack([s.label(task.task) for s in seen]), case.before.image,
            case.before.label(task.task), case.targets, tuple(goals),
        )  # fmt: skip
        return Outcome(list(table), list(extra), pictures)

    def _columns(self, task: EditTask) -> dict[str, Any]:
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
            "guidance": self.guidance,
            "status": "done",
        }


def make_case(task: str, before: Seen, goals: Sequence[Goal]) -> Case:
    """Targets, opposite moves and wanted regions of an image."""
    labels = Labels(before.mask, before.depth)
    mirrors = [
        target(goal.mirrored, task, labels) if isinstance(goal, Move) else None for goal in goals
    ]
    regions = [
        target(goal, "saliency", labels) if isinstance(goal, Move | SecondObject) else before.mask
        for goal in goals
    ]
    targets = np.stack([target(goal, task, labels) for goal in goals])
    return Case(task, before, targets, mirrors, targets if task == "saliency" else np.stack(regions))


def _measures(part: Edited, index: int) -> dict[str, Any]:
    """What was measured inside the network for one row; NaN becomes None."""
    found = {
        "edit_norm": part.norm, "readout_before": part.readout_before,
        "readout_after": part.readout_after, "readout_spearman": part.readout_spearman,
        "departure_before": part.departure_before, "departure_after": part.departure_after,
    }  # fmt: skip
    values = {name: float(array[index]) for name, array in found.items()}
    clean = {name: None if np.isnan(value) else value for name, value in values.items()}
    return {**clean, "seconds": part.seconds / len(part.rows)}


def _unedited(rows: Sequence[dict[str, Any]], case: Case) -> list[dict[str, Any]]:
    """Rows of the control `none`: the original image scored, its own readings at the edited places."""
    real = [row for row in rows if row["control"] == EDIT]
    return [
        {
            **score_row(case, row["trial"], case.before),
            "trial": row["trial"],
            "control": "none",
            "edit_norm": 0.0,
            "readout_before": row["readout_before"],
            "readout_after": row["readout_before"],
            "departure_before": row["departure_before"],
            "departure_after": row["departure_before"],
            "seconds": 0.0,
        }
        for row in real
    ]


def _move(goal: Goal) -> dict[str, float]:
    moved = isinstance(goal, Move | SecondObject)
    return {"dx": float(goal.dx), "dy": float(goal.dy)} if moved else {}


def split_columns(row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row's columns of `results/interventions`, and those beyond."""
    extra = {name: row[name] for name in EXTRA if name in row}
    return {name: value for name, value in row.items() if name not in extra}, extra
