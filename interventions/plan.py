"""The plan of interventions: tasks over test images, and the batches of images that a task samples (no torch)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from interventions.config import ANIMATION, GUIDANCE, MAIN, SECOND_OBJECT, EditSpec, InterventionConfig
from interventions.controls import EDIT
from interventions.counterfactual import TargetSpec, authors_moves, draw_moves, path_across, second_objects
from probing.diffusion.config import PAPER_STEPS

ACROSS = 0.25
"""the animation moves the object by this share of the image width to either side"""


@dataclass(frozen=True)
class EditTask:
    """All moves of one test image under one edit: the unit of work and of retry."""

    sample: int
    """sample number"""
    position: int
    """index in the full test list, dropped images included, from 0; the authors' moves depend on it"""
    task: str
    """saliency or depth"""
    spec: EditSpec
    """where, when and how strongly activations are edited"""
    controls: tuple[str, ...] = ()
    """comparisons that run beside the real edit"""
    experiment: str = MAIN
    """column `experiment` of the results"""
    guidance: float | None = None
    """guidance scale if it differs from that of the main edit"""

    @property
    def key(self) -> str:
        """Name of the task; the same for equal tasks in every process."""
        settings = (self.spec, self.controls, *(() if self.guidance is None else (self.guidance,)))
        digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
        return f"{self.experiment}.{self.sample:05d}.{self.task}.{digest}"


@dataclass(frozen=True, order=True)
class Row:
    """One image of a batch."""

    trial: int
    """index of its target label"""
    control: str = EDIT
    """`edit`, or the name of the control or variation"""


def rows_of(trials: Sequence[int], controls: Sequence[str]) -> tuple[Row, ...]:
    """The images of a batch: every trial's real edit, then its controls; `none` needs no image."""
    names = [EDIT, *(name for name in controls if name != "none")]
    return tuple(Row(trial, name) for trial in trials for name in names)


def batches(trials: int, controls: Sequence[str], limit: int) -> list[tuple[Row, ...]]:
    """Split an image's rows into batches of at most `limit`; a trial and its controls stay together.

    Raises ValueError if one trial with its controls exceeds the limit.
    """
    needed = len(rows_of([0], controls))
    if needed > limit:
        raise ValueError(f"interventions.rows={limit}: one move with its controls takes {needed}; raise it to {needed}")
    width = limit // needed
    return [rows_of(range(start, min(start + width, trials)), controls) for start in range(0, trials, width)]


def targets_of(task: EditTask, config: InterventionConfig, mask: NDArray[np.bool_]) -> tuple[TargetSpec, ...]:
    """The targets of a task for an image with the given mask (H, W).

    The main experiment and its ablations use the same moves of an image.
    """
    if task.experiment == SECOND_OBJECT:
        return tuple(second_objects(mask))
    if task.experiment == ANIMATION:
        return tuple(path_across(ACROSS, config.frames, mask.shape))
    if config.move_rule == "authors":
        return tuple(authors_moves(task.task, task.position + 1, config.moves, mask.shape)[task.position])
    return tuple(draw_moves(mask, config.moves, (config.seed, task.sample)))


def plan(
    config: InterventionConfig,
    samples: Sequence[int],
    order: Sequence[int] = (),
    guidance: float | None = None,
    total: int = PAPER_STEPS,
) -> list[EditTask]:
    """The tasks over test samples, ascending and image by image, so that an interrupted run has whole images.

    `order` is the full test list if some of its images were dropped: the authors' moves count these too. `guidance`
    is that of sampling, which the guidance ablation leaves out; `total` is the number of a sample's denoising steps.
    """
    chosen = sorted(samples)[: config.images or None]
    position = {sample: i for i, sample in enumerate(order or sorted(samples))}
    kinds: list[tuple[str, str, EditSpec, tuple[str, ...], float | None]]
    kinds = [(task, *experiment, None) for task in config.tasks for experiment in config.experiments(task, total)]
    kinds += [
        (task, GUIDANCE, config.spec(task, direction), (), scale)
        for task in config.tasks
        for direction in config.directions
        for scale in config.scales(guidance)
    ]
    return [
        EditTask(sample, position[sample], task, spec, controls, experiment, scale)
        for count, sample in enumerate(chosen)
        for task, experiment, spec, controls, scale in kinds
        if count < config.images_of(experiment, len(samples))
    ]
