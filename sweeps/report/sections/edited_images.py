"""The report's edited pictures: pairs with their labels, numbers of steps, second objects, an animation."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from interventions.controls import EDIT, VARIATIONS
from interventions.counterfactual import Goal, Move, SecondObject
from interventions.pictures import Pictures, animation
from interventions.plan import Row
from sweeps.report import thumbnails
from sweeps.report.figures.interventions import CONTROL_TITLES
from sweeps.report.figures.probes import TASK_TITLES
from sweeps.report.gallery import interventions
from sweeps.report.html import paragraph, picture

PHOTO = 192
"""longest side of a picture in pixels"""


def pictures(found: Sequence[Pictures]) -> str:
    """All parts that have pictures."""
    parts = [
        ("Edited pictures", "The first edited test images and their first move: what was painted, what was asked, what "
         "came, and what edits of the same size in other directions gave.", _pairs(found)),
        ("More and more edited steps", "One image and its first move, with the first steps of denoising edited "
         "(Figure 11 of the paper).", _steps(found)),
        ("A second object", "A copy of the object is asked for beside it, ever farther away and smaller (Figure 12 of "
         "the paper).", _objects(found)),
        ("Another image’s activations", "At the edited sites an image gets everything that the network held while it "
         "painted another image of the same prompt: the most that an edit at these places can do.",
         _transplants(found)),
        ("An object on its way", "One prompt, one seed: the object is asked for at places across the image.",
         _moving(found)),
    ]  # fmt: skip
    return "".join(f"<h3>{title}</h3>{paragraph(text)}{body}" for title, text, body in parts if body)


def _pairs(found: Sequence[Pictures]) -> str:
    return "".join(_pair(p) for task in TASK_TITLES for p in interventions.pairs(found, task))


def _pair(shown: Pictures) -> str:
    cells = _start(shown) + [_label(shown, shown.targets[0], "asked for")]
    for control in (EDIT, *VARIATIONS, "random_direction"):
        words = "after" if control == EDIT else CONTROL_TITLES[control]
        cells += _after(shown, Row(0, control), words)[: 1 if control == "random_direction" else 2]
    return _strip(f"{TASK_TITLES[shown.task]}, {_goal(shown.goals[0])}", cells)


def _steps(found: Sequence[Pictures]) -> str:
    strips = []
    for task, title in TASK_TITLES.items():
        series = interventions.by_steps(found, task)
        if series:
            cells = _start(series[0])[:1] + [_label(series[0], series[0].targets[0], "asked for")]
            for shown in series:
                cells += _after(shown, Row(0), _count(interventions.step_count(shown)))[:1]
            strips.append(_strip(f"{title}, {_goal(series[0].goals[0])}", cells))
    return "".join(strips)


def _objects(found: Sequence[Pictures]) -> str:
    return "".join(
        _strip(f"{CONTROL_TITLES[way].capitalize()}", _object_cells(shown, way))
        for shown in interventions.series(found)
        for way in _ways(shown)
    )


def _object_cells(shown: Pictures, way: str) -> list[str]:
    cells = _start(shown)
    for trial, goal in enumerate(shown.goals):
        cells.append(_label(shown, shown.targets[trial], f"asked: {_goal(goal)}"))
        cells += _after(shown, Row(trial, way), "after")
    return cells


def _transplants(found: Sequence[Pictures]) -> str:
    return "".join(
        _strip(title, _transplant_cells(series))
        for task, title in TASK_TITLES.items()
        for series in interventions.transplants(found, task)
    )


def _transplant_cells(series: Sequence[Pictures]) -> list[str]:
    first = series[0]
    cells = _start(first) + _after(first, Row(0, "donor"), "the other image")
    for shown in series:
        cells += _after(shown, Row(0, EDIT), f"{_count(interventions.step_count(shown))} of its activations")
    return cells


def _moving(found: Sequence[Pictures]) -> str:
    cells = []
    for shown in interventions.moving(found):
        for way in _ways(shown):
            frames = [shown.images[shown.rows.index(Row(trial, way))] for trial in range(len(shown.goals))]
            address = "data:image/gif;base64," + base64.b64encode(animation(frames)).decode()
            words = f"{TASK_TITLES[shown.task]}, {CONTROL_TITLES[way]}"
            cells.append(picture(address, f"Animation: an object asked for across the image. {words}", escape(words)))
    return _strip("", cells) if cells else ""


def _ways(shown: Pictures) -> list[str]:
    return [way for way in (EDIT, *VARIATIONS) if any(row.control == way for row in shown.rows)]


def _start(shown: Pictures) -> list[str]:
    before = picture(thumbnails.photo(shown.before, PHOTO), "Image before the edit", "before")
    return [before, _label(shown, shown.label_before, "its label")]


def _after(shown: Pictures, row: Row, words: str) -> list[str]:
    """The picture of a row with its label; nothing where the row is not there."""
    if row not in shown.rows:
        return []
    place = shown.rows.index(row)
    alt = "Image after the edit" if words == "after" else f"Image after the edit: {words}"
    photo = picture(thumbnails.photo(shown.images[place], PHOTO), alt, escape(words))
    return [photo, _label(shown, shown.labels[place], "its label")]


def _label(shown: Pictures, label: NDArray, words: str) -> str:
    low, high = (0.0, 1.0) if shown.task == "saliency" else np.percentile(shown.label_before, (1, 99))
    address = thumbnails.map_picture(label.astype(np.float32), shown.task, float(low), float(high))
    return picture(address, f"{TASK_TITLES[shown.task]}: {words}", escape(words), map_like=True)


def _count(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def _goal(goal: Goal) -> str:
    if isinstance(goal, Move):
        across, along = ("left" if goal.dx < 0 else "right"), ("up" if goal.dy < 0 else "down")
        return f"moved {abs(goal.dx)} {across}, {abs(goal.dy)} {along}"
    if isinstance(goal, SecondObject):
        return f"size {goal.scale:g}, {goal.back:g} farther"
    return "a label from a file"


def _strip(name: str, cells: Sequence[str]) -> str:
    head = f'<p class="strip-name">{escape(name)}</p>' if name else ""
    return f'{head}<div class="strip">{"".join(cells)}</div>'
