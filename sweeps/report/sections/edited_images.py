"""The report's edited pictures: pairs with their labels, numbers of steps, second objects, patching, an animation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from interventions.controls import EDIT, VARIATIONS
from interventions.counterfactual import Move, SecondObject, TargetSpec
from interventions.pictures import Pictures, animation
from interventions.plan import Row
from sweeps.analysis.vocabulary import DIRECTION_TITLES, EDIT_CONTROL_TITLES, TASK_TITLES
from sweeps.report.figures.base import border_runs
from sweeps.report.gallery import interventions
from sweeps.report.gallery.probes import map_limits
from sweeps.report.page import Block, Compared, Comparisons, Heading, Paragraph, Strip
from sweeps.report.thumbnails import Picture, map_picture, photo

PHOTO = 192
"""longest side of a picture in pixels"""
PARTS = {
    "Edited pictures": "The first edited test images and their first move: the original, the requested label, the "
    "image edited along each direction, and edits of the same size along a random one.",
    "More and more edited steps": "One image and its first move, with a growing number of edited denoising steps, "
    "counted from the first (Figure 11 of the paper).",
    "A second object": "A copy of the object is requested beside it, ever farther away and smaller (Figure 12 of the "
    "paper).",
    "Another image’s activations": "Activation patching: at the edited sites, an image gets all activations of another "
    "image of the same prompt.",
    "A moving object": "One prompt, one seed: the object is requested at places across the image.",
}
"""heading and introduction of each part"""


def pictures(found: Sequence[Pictures]) -> list[Block]:
    """All parts that have pictures, each under its heading."""
    by_part = (_pairs(found), _by_steps(found), _second_objects(found), _patched(found), _moving(found))
    blocks: list[Block] = []
    for (title, text), strips in zip(PARTS.items(), by_part, strict=True):
        blocks += [Heading(title), Paragraph(text), *strips] if strips else []
    return blocks


def sliders(found: Sequence[Pictures]) -> list[Block]:
    """The first edited images of each task before and after, along the last direction of the run."""
    pairs = []
    for task, title in TASK_TITLES.items():
        for directions in interventions.pairs(found, task):
            shown = directions[-1]
            row = next((row for row in shown.rows if row.control == EDIT and row.trial == 0), None)
            if row is None:
                continue
            after = shown.images[shown.rows.index(row)]
            words = f"{title} {_goal(shown.goals[0])}, {DIRECTION_TITLES[shown.direction]}"
            line = outline(shown.targets[0]) if shown.targets[0].dtype == bool else ""
            before, edited = (
                photo(shown.before, "Image before the edit", longest=PHOTO),
                photo(after, f"Image after the edit: {words}", longest=PHOTO),
            )
            pairs.append(Compared(before, edited, words, line))
    if not pairs:
        return []
    text = "Images before and after an edit; the line is the outline of the requested object."
    return [Paragraph(text, "note"), Comparisons(pairs)]


def outline(mask: NDArray[np.generic]) -> str:
    """SVG path of the border of a mask (H, W), in units of its width and height."""
    stride = max(1, -(-max(mask.shape) // 64))
    coarse = mask[::stride, ::stride].astype(bool)
    rows, columns = coarse.shape
    parts = [f"M{x / columns:.4g} {y / rows:.4g}H{end / columns:.4g}" for y, x, end in border_runs(coarse)]
    parts += [f"M{x / columns:.4g} {y / rows:.4g}V{end / rows:.4g}" for x, y, end in border_runs(coarse.T)]
    return "".join(parts)


def _pairs(found: Sequence[Pictures]) -> list[Strip]:
    strips = []
    for task, title in TASK_TITLES.items():
        for directions in interventions.pairs(found, task):
            first = directions[0]
            cells = [*_before(first), _label(first, first.targets[0], "requested")]
            for shown in directions:
                way = DIRECTION_TITLES[shown.direction]
                for control in (EDIT, *VARIATIONS):
                    words = way if control == EDIT else EDIT_CONTROL_TITLES[control]
                    cells += _after(shown, Row(0, control), f"after: {words}")
                cells += _after(shown, Row(0, "random_direction"), f"random direction, as large as {way}")[:1]
            strips.append(Strip(f"{title}, {_goal(first.goals[0])}", cells))
    return strips


def _by_steps(found: Sequence[Pictures]) -> list[Strip]:
    strips = []
    for task, title in TASK_TITLES.items():
        if series := interventions.by_steps(found, task):
            cells = [_before(series[0])[0], _label(series[0], series[0].targets[0], "requested")]
            for shown in series:
                cells += _after(shown, Row(0), _step_count(shown))[:1]
            strips.append(Strip(f"{title}, {_goal(series[0].goals[0])}", cells))
    return strips


def _second_objects(found: Sequence[Pictures]) -> list[Strip]:
    strips = []
    for shown in interventions.series(found):
        for way in _ways(shown):
            cells = _before(shown)
            for trial, goal in enumerate(shown.goals):
                cells.append(_label(shown, shown.targets[trial], f"requested: {_goal(goal)}"))
                cells += _after(shown, Row(trial, way), "after")
            strips.append(Strip(f"{DIRECTION_TITLES[shown.direction].capitalize()}, {EDIT_CONTROL_TITLES[way]}", cells))
    return strips


def _patched(found: Sequence[Pictures]) -> list[Strip]:
    strips = []
    for task, title in TASK_TITLES.items():
        for series in interventions.transplants(found, task):
            cells = [*_before(series[0]), *_after(series[0], Row(0, "donor"), "the other image")]
            for shown in series:
                cells += _after(shown, Row(0, EDIT), f"{_step_count(shown)} of its activations")
            strips.append(Strip(title, cells))
    return strips


def _moving(found: Sequence[Pictures]) -> list[Strip]:
    cells = []
    for shown in interventions.moving(found):
        for way in _ways(shown):
            frames = [shown.images[shown.rows.index(Row(trial, way))] for trial in range(len(shown.goals))]
            words = f"{TASK_TITLES[shown.task]}, {DIRECTION_TITLES[shown.direction]}, {EDIT_CONTROL_TITLES[way]}"
            alt = f"Animation: an object requested across the image. {words}"
            cells.append(Picture(animation(frames), "gif", alt, words))
    return [Strip("", cells)] if cells else []


def _ways(shown: Pictures) -> list[str]:
    """Ways of editing that the pictures hold."""
    return [way for way in (EDIT, *VARIATIONS) if any(row.control == way for row in shown.rows)]


def _before(shown: Pictures) -> list[Picture]:
    before = photo(shown.before, "Image before the edit", "before", PHOTO)
    return [before, _label(shown, shown.label_before, "its label")]


def _after(shown: Pictures, row: Row, words: str) -> list[Picture]:
    """The edited image of a row and its label; empty if there is no such row."""
    if row not in shown.rows:
        return []
    place = shown.rows.index(row)
    alt = f"Image {words}" if words.startswith("after") else f"Image after the edit: {words}"
    return [photo(shown.images[place], alt, words, PHOTO), _label(shown, shown.labels[place], "its label")]


def _label(shown: Pictures, label: NDArray[np.generic], words: str) -> Picture:
    limits = map_limits(shown.task, shown.label_before)
    alt = f"{TASK_TITLES[shown.task]}: {words}"
    return map_picture(label.astype(np.float32), shown.task, limits, alt, words)


def _step_count(shown: Pictures) -> str:
    steps = interventions.step_count(shown)
    return "1 step" if steps == 1 else f"{steps} steps"


def _goal(goal: TargetSpec) -> str:
    if isinstance(goal, Move):
        across, along = ("left" if goal.dx < 0 else "right"), ("up" if goal.dy < 0 else "down")
        return f"moved {abs(goal.dx)} {across}, {abs(goal.dy)} {along}"
    if isinstance(goal, SecondObject):
        return f"size {goal.scale:g}, {goal.back:g} farther"
    return "a label from a file"
