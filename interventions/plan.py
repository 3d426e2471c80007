"""The plan of interventions: tasks over test images, and the images that each task samples (no torch)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from interventions.config import ANIMATION, GUIDANCE, SECOND_OBJECT, EditSpec, InterventionConfig
from interventions.controls import EDIT
from interventions.counterfactual import Goal, authors_moves, draw_moves, path_across, second_objects

ACROSS = 0.25
"""the animation's object goes this share of the width to either side"""


@dataclass(frozen=True, order=True)
class Row:
    """One image of a batch."""

    trial: int
    """which wanted label"""
    control: str = EDIT
    """`edit`, or the control it stands for"""


@dataclass(frozen=True)
class EditTask:
    """All moves of one test image under one edit."""

    sample: int
    """sample number"""
    position: int
    """place among all test images, dropped ones too, from 0; the authors' moves depend on it"""
    task: str
    """saliency or depth"""
    spec: EditSpec
    """where, when and how strongly"""
    controls: tuple[str, ...] = ()
    """what the real edit is compared with"""
    experiment: str = "interventions"
    """name under which the rows are kept"""
    guidance: float | None = None
    """guidance scale, where it is another than the main edit's"""

    @property
    def key(self) -> str:
        """Names the task; the same for equal tasks in every process."""
        told = (self.spec, self.controls, *(() if self.guidance is None else (self.guidance,)))
        digest = hashlib.sha256(repr(told).encode()).hexdigest()[:8]
        return f"{self.experiment}.{self.sample:05d}.{self.task}.{digest}"


def rows_of(trials: Sequence[int], controls: Sequence[str]) -> tuple[Row, ...]:
    """The images of a batch: every trial's real edit, then its controls; `none` needs no image."""
    names = [EDIT, *(name for name in controls if name != "none")]
    return tuple(Row(trial, name) for trial in trials for name in names)


def batches(trials: int, controls: Sequence[str], most: int) -> list[tuple[Row, ...]]:
    """Splits an image's rows into batches of at most `most`; a trial and its controls stay together.

    Raises ValueError where one trial alone is more than that.
    """
    each = len(rows_of([0], controls))
    if each > most:
        raise ValueError(f"interventions.rows={most}: one move with its controls takes {each}; raise it to {each}")
    width = most // each
    return [rows_of(range(start, min(start + width, trials)), controls) for start in range(0, trials, width)]


def goals_of(task: EditTask, config: InterventionConfig, mask: NDArray[np.bool_]) -> tuple[Goal, ...]:
    """The goals of a task; the main experiment and its ablations move an image in the same ways."""
    if task.experiment == SECOND_OBJECT:
        return tuple(second_objects(mask))
    if task.experiment == ANIMATION:
        return tuple(path_across(ACROSS, config.frames, mask.shape))
    if config.move_rule == "authors":
        return tuple(authors_moves(task.task, task.position + 1, config.moves, mask.shape)[task.position])
    return tuple(draw_moves(mask, config.moves, (config.seed, task.sample)))


def plan(
    config: InterventionConfig, samples: Sequence[int], order: Sequence[int] = (), guidance: float | None = None
) -> list[EditTask]:
    """The tasks over test samples, ascending; image by image, so that a run cut short has whole images.

    `order` is the whole test list, where some of it were dropped: the authors' moves count these too. `guidance`
    is that of sampling, which an ablation of it leaves out.
    """
    chosen = sorted(samples)[: config.images or None]
    position = {sample: i for i, sample in enumerate(order or sorted(samples))}
    kinds: list[tuple[str, str, EditSpec, tuple[str, ...], float | None]]
    kinds = [(task, *kind, None) for task in config.tasks for kind in config.experiments(task)]
    kinds += [(t, GUIDANCE, config.spec(t), (), scale) for t in config.tasks for scale in config.scales(guidance)]
    return [
        EditTask(sample, position[sample], task, spec, controls, experiment, scale)
        for count, sample in enumerate(chosen)
        for task, experiment, spec, controls, scale in kinds
        if count < config.images_of(experiment, len(samples))
    ]
