"""`scenesweep intervene` on one prompt: seed and move go in; pictures, scores and a recipe come out."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from interventions.config import TASKS
from interventions.controls import EDIT, VARIATIONS
from interventions.counterfactual import FromFile, Goal, Move, SecondObject, path_across
from interventions.pictures import Pictures, animation
from interventions.plan import ACROSS, Row
from interventions.recipe import Recipe, from_yaml
from interventions.worker import Intervener, Outcome, replay
from sweeps.config.schema import Config
from sweeps.report.thumbnails import colour_map
from sweeps.runtime import run
from sweeps.stages.intervene import intervener, job

WAYS = (EDIT, *VARIATIONS)
HEAD = 14
"""pixels above each of a sheet's pictures, for its name"""
GAP = 2
"""pixels between them"""
COLUMNS = ("before", "its label", "asked for", "after", "its label")


@dataclass(frozen=True)
class Request:
    """What to draw and what to change in it."""

    prompt: str
    seed: int
    """of the initial noise"""
    task: str
    """what the probes read: saliency or depth"""
    goals: tuple[Goal, ...] = ()
    """wanted scenes, each a picture"""
    frames: int = 0
    """places of the object on its way across the image, as an animation"""
    way: str = EDIT
    """how activations are moved: the inner optimisation, or a variation at its norm"""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"--task {self.task}: unknown; use {' or '.join(TASKS)}")
        if self.way not in WAYS:
            raise ValueError(f"--way {self.way}: unknown; use {', '.join(WAYS)}")
        if not self.prompt:
            raise ValueError("--prompt is empty; say what to draw")
        if not (self.goals or self.frames):
            raise ValueError("nothing to change: give --move DX DY, --second, --label FILE or --animate FRAMES")
        if self.frames and (self.goals or self.frames < 2):
            raise ValueError("--animate takes 2 frames or more, and no --move, --second or --label beside it")


def goals_from(moves: list[list[int]], seconds: list[list[float]], files: list[str]) -> tuple[Goal, ...]:
    """Goals of the command line's numbers: (dx, dy), (dx, dy, scale, back), and files."""
    return (
        *(Move(dx, dy) for dx, dy in moves),
        *(SecondObject(round(dx), round(dy), scale, back) for dx, dy, scale, back in seconds),
        *(FromFile(path) for path in files),
    )


def play(config: Config, wanted: Request | Path, folder: Path) -> list[str]:
    """Makes the pictures of a request, or of a recipe's file, and writes them into `folder`.

    Uses the model and the probes of the finished run at `config.output`. Returns lines that tell what came
    of it. Raises ValueError where the run, a probe or an input is missing.
    """
    given = _recipe_text(wanted) if isinstance(wanted, Path) else ""
    recipe = from_yaml(given) if given else None
    worker = intervener(job(run.reopen(config, run.model_info(config))))
    if recipe is None:
        assert isinstance(wanted, Request)
        recipe = _recipe(wanted, config, worker)
    outcome = replay(recipe, worker)
    names = save(outcome, folder, moving=isinstance(wanted, Request) and wanted.frames > 0)
    return [*(describe(row) for row in outcome.rows), f"{folder}: {', '.join(names)}"]


def _recipe_text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--recipe {path}: cannot be read: {error}") from error


def _recipe(wanted: Request, config: Config, worker: Intervener) -> Recipe:
    goals = wanted.goals or tuple(path_across(ACROSS, wanted.frames, worker.model.image_size))
    settings = config.interventions
    return Recipe(
        wanted.prompt, wanted.seed, worker.guidance, settings.spec(wanted.task), goals,
        () if wanted.way == EDIT else (wanted.way,), settings.rows, settings.seed,
        model=worker.about.get("model", ""), probes=worker.about.get("probes", ""),
    )  # fmt: skip


def describe(row: dict) -> str:
    """One line on one picture: scores against the wanted label, and what the probe read inside."""
    name, better = ("Dice", "higher") if row["task"] == "saliency" else ("RMSE", "lower")
    line = (
        f"picture {row['trial']:02d} {row['control']}: {name} to the wanted label {row['score_before']:.2f} before, "
        f"{row['score_after']:.2f} after ({better} is better)"
    )
    inside = row.get("readout_after")
    return line if inside is None else f"{line}; the probe read {inside:.2f} inside"


def save(outcome: Outcome, folder: Path, moving: bool) -> list[str]:
    """Writes pictures, a sheet of all, the recipe and the scores; names of the files."""
    shown = outcome.pictures
    colours = _colours(shown)
    files = {"before.png": _png(shown.before), "before-label.png": _png(colours(shown.label_before))}
    for place, row in enumerate(shown.rows):
        stem = f"{row.trial:02d}-{row.control}"
        files[f"{stem}.png"] = _png(shown.images[place])
        files[f"{stem}-label.png"] = _png(colours(shown.labels[place]))
    files |= {f"{trial:02d}-asked.png": _png(colours(label)) for trial, label in enumerate(shown.targets)}
    files["sheet.png"] = _png(sheet(shown))
    files["recipe.yaml"] = shown.recipe.encode()
    files["scores.json"] = json.dumps(outcome.rows, indent=1).encode()
    if moving:
        files |= {f"moving-{way}.gif": animation(frames_of(shown, way)) for way in _ways(shown)}
    _write(folder, files)
    return ["sheet.png", "recipe.yaml", "scores.json", *(n for n in files if n.endswith(".gif"))]


def _write(folder: Path, files: dict[str, bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise ValueError(f"--to {folder}: cannot be written: {error.strerror}; give another folder") from error


def _ways(shown: Pictures) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row.control for row in shown.rows))


def frames_of(shown: Pictures, way: str) -> list[NDArray[np.uint8]]:
    """The pictures of one way of editing, in the order of the goals: uint8 (H, W, 3) each."""
    return [shown.images[shown.rows.index(Row(trial, way))] for trial in range(len(shown.goals))]


def _colours(shown: Pictures) -> Callable[[NDArray], NDArray[np.uint8]]:
    low, high = (0.0, 1.0) if shown.task == "saliency" else np.percentile(shown.label_before, (1, 99))
    return lambda label: colour_map(label.astype(np.float32), shown.task, float(low), float(high))


def sheet(shown: Pictures) -> NDArray[np.uint8]:
    """One line per picture: before, its label, asked for, after, its label."""
    colours = _colours(shown)
    lines = []
    for row, image, label in zip(shown.rows, shown.images, shown.labels, strict=True):
        cells = [shown.before, colours(shown.label_before), colours(shown.targets[row.trial]), image, colours(label)]
        lines.append(np.concatenate([np.pad(c, ((HEAD, 0), (0, GAP), (0, 0))) for c in cells], axis=1))
    picture = Image.fromarray(np.concatenate(lines))
    pen, (height, width) = ImageDraw.Draw(picture), shown.before.shape[:2]
    for line, row in enumerate(shown.rows):
        for column, name in enumerate((*COLUMNS[:3], f"after: {row.control}", COLUMNS[4])):
            pen.text((column * (width + GAP) + 2, line * (height + HEAD) + 1), name, fill="white")
    return np.asarray(picture)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG")
    return out.getvalue()
