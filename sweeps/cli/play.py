"""A single edit, `scenesweep intervene --prompt`: writes pictures, scores and a recipe that repeats it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from interventions.config import TASKS, choose_sites
from interventions.controls import EDIT, VARIATIONS, probes_of
from interventions.counterfactual import FromFile, Move, SecondObject, TargetSpec, path_across, sealed
from interventions.pictures import Pictures, animation
from interventions.plan import ACROSS, Row
from interventions.recipe import Recipe, from_yaml
from interventions.sources.base import PROBE_SEED
from interventions.worker import Intervener, Outcome, replay
from probing.diffusion.sites import whole_kinds
from sweeps.config.schema import GRID, Config
from sweeps.report.thumbnails import colour_map
from sweeps.runtime import inputs, run
from sweeps.runtime.grid import ProbeSpec, finished
from sweeps.runtime.run import Run
from sweeps.stages.intervene import intervener, job

WAYS = (EDIT, *VARIATIONS)
HEAD = 14
"""pixels above each picture of a sheet, for its name"""
GAP = 2
"""pixels between pictures"""


@dataclass(frozen=True)
class Request:
    """What to draw and what to change in it."""

    prompt: str
    seed: int
    """seed of the initial noise"""
    task: str
    """what the probes predict: saliency or depth"""
    goals: tuple[TargetSpec, ...] = ()
    """target scenes, one picture each"""
    frames: int = 0
    """positions of the object on its way across the image, as an animation"""
    way: str = EDIT
    """how activations are moved: the inner optimisation, or a variation with its norm"""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"--task {self.task}: unknown; use {' or '.join(TASKS)}")
        if self.way not in WAYS:
            raise ValueError(f"--way {self.way}: unknown; use {', '.join(WAYS)}")
        if not self.prompt:
            raise ValueError("--prompt is empty; describe what to draw")
        if not (self.goals or self.frames):
            raise ValueError("nothing to change: give --move DX DY, --second, --label FILE or --animate FRAMES")
        if self.frames and (self.goals or self.frames < 2):
            raise ValueError("--animate takes 2 frames or more, and no --move, --second or --label")


def goals_from(moves: list[list[int]], seconds: list[list[float]], files: list[str]) -> tuple[TargetSpec, ...]:
    """Goals from the arguments of --move (dx, dy), --second (dx, dy, scale, back) and --label (files)."""
    return (
        *(Move(dx, dy) for dx, dy in moves),
        *(SecondObject(round(dx), round(dy), scale, back) for dx, dy, scale, back in seconds),
        *(FromFile(path) for path in files),
    )


def play(config: Config, request: Request | Path, folder: Path) -> list[str]:
    """Makes the pictures of a request, or of a recipe's file, and writes them into `folder`.

    Uses the model and the probes of the finished run at `config.output`. Returns lines that describe the result.
    Raises ValueError if the run, a probe or an input is missing.
    """
    if isinstance(request, Path):  # before the model is loaded, which takes a while
        recipe = _read(request)
    reopened = run.reopen(config)
    inputs.check(reopened)
    worker = intervener(job(reopened))
    if isinstance(request, Request):
        recipe = _recipe(request, config, worker)
    _check_probes(reopened, recipe)
    outcome = replay(recipe, worker)
    names = save(outcome, folder, moving=isinstance(request, Request) and request.frames > 0)
    return [*(describe(row) for row in outcome.rows), f"{folder}: {', '.join(names)}"]


def _check_probes(reopened: Run, recipe: Recipe) -> None:
    """Raise ValueError if the probes of a recipe were not fitted with the run's present settings."""
    if reopened.config.interventions.probes:  # those of the authors, for the real edit
        return
    spec, kinds = recipe.spec, whole_kinds(reopened.config.sampling.sites)
    needed = {
        ProbeSpec(variant, site.name, step, spec.task, control, PROBE_SEED)
        for variant, control in probes_of(recipe.controls)
        for site in choose_sites(reopened.model_info.recordable, spec.sites, kinds=kinds)
        for step in spec.steps
    }
    missing = needed - finished(reopened.store, GRID, reopened.hashes.probe)
    if missing:
        raise ValueError(
            f"{reopened.config.output}: {len(missing)} of the probes that this edit needs are not fitted with these "
            f"settings, the first is {min(missing).key}; run `scenesweep probe`, or give the settings of the run"
        )


def _read(path: Path) -> Recipe:
    try:
        return from_yaml(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--recipe {path}: cannot be read: {error}") from error


def _recipe(request: Request, config: Config, worker: Intervener) -> Recipe:
    settings = config.interventions
    return Recipe(
        request.prompt,
        request.seed,
        worker.guidance,
        settings.spec(request.task, settings.directions[-1]),
        tuple(map(sealed, request.goals)) or tuple(path_across(ACROSS, request.frames, worker.model.image_size)),
        () if request.way == EDIT else (request.way,),
        settings.rows,
        settings.seed,
        model=worker.about.get("model", ""),
        probes=worker.about.get("probes", ""),
    )


def describe(row: dict) -> str:
    """One line on one picture: its scores against the target label, and what the probe read inside the network."""
    name, better = ("Dice", "higher") if row["task"] == "saliency" else ("RMSE", "lower")
    line = (
        f"picture {row['trial']:02d} {row['control']}: {name} to the target label {row['score_before']:.2f} before, "
        f"{row['score_after']:.2f} after ({better} is better)"
    )
    inside = row.get("readout_after")
    return line if inside is None else f"{line}; {inside:.2f} in the probe's readout"


def save(outcome: Outcome, folder: Path, moving: bool) -> list[str]:
    """Writes pictures, a sheet of all, the recipe and the scores. Returns the names of the main files.

    Raises ValueError if the folder cannot be written.
    """
    pictures = outcome.pictures
    colours = _colours(pictures)
    files = {"before.png": _png(pictures.before), "before-label.png": _png(colours(pictures.label_before))}
    for row, image, label in zip(pictures.rows, pictures.images, pictures.labels, strict=True):
        stem = f"{row.trial:02d}-{row.control}"
        files |= {f"{stem}.png": _png(image), f"{stem}-label.png": _png(colours(label))}
    files |= {f"{trial:02d}-asked.png": _png(colours(label)) for trial, label in enumerate(pictures.targets)}
    files["sheet.png"] = _png(sheet(pictures))
    files["recipe.yaml"] = pictures.recipe.encode()
    files["scores.json"] = json.dumps(outcome.rows, indent=1).encode()
    if moving:
        ways = dict.fromkeys(row.control for row in pictures.rows)
        files |= {f"moving-{way}.gif": animation(frames_of(pictures, way)) for way in ways}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise ValueError(f"--to {folder}: cannot be written: {error.strerror}; give another folder") from error
    return ["sheet.png", "recipe.yaml", "scores.json", *(name for name in files if name.endswith(".gif"))]


def frames_of(pictures: Pictures, way: str) -> list[NDArray[np.uint8]]:
    """The pictures of one way of editing, in the order of the goals: uint8 (H, W, 3) each."""
    return [pictures.images[pictures.rows.index(Row(trial, way))] for trial in range(len(pictures.goals))]


def _colours(pictures: Pictures) -> Callable[[NDArray], NDArray[np.uint8]]:
    """A colour map for labels of all pictures; depth is scaled to the label before the edit."""
    low, high = (0.0, 1.0) if pictures.task == "saliency" else np.percentile(pictures.label_before, (1, 99))
    return lambda label: colour_map(label.astype(np.float32), pictures.task, float(low), float(high))


def sheet(pictures: Pictures) -> NDArray[np.uint8]:
    """One line per picture: before, its label, target label, after, its label."""
    colours = _colours(pictures)
    lines = []
    for row, image, label in zip(pictures.rows, pictures.images, pictures.labels, strict=True):
        labels = [colours(values) for values in (pictures.label_before, pictures.targets[row.trial], label)]
        cells = [pictures.before, labels[0], labels[1], image, labels[2]]
        lines.append(np.concatenate([np.pad(cell, ((HEAD, 0), (0, GAP), (0, 0))) for cell in cells], axis=1))
    canvas = Image.fromarray(np.concatenate(lines))
    draw, (height, width) = ImageDraw.Draw(canvas), pictures.before.shape[:2]
    for line, row in enumerate(pictures.rows):
        for column, name in enumerate(("before", "its label", "target label", f"after: {row.control}", "its label")):
            draw.text((column * (width + GAP) + 2, line * (height + HEAD) + 1), name, fill="white")
    return np.asarray(canvas)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG")
    return out.getvalue()
