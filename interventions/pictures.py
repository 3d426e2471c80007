"""Edited pictures as one safe file for the report, and short animations."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from interventions.counterfactual import Goal, goal_from, goal_values
from interventions.plan import Row

FOLDER = "interventions"
"""folder of the pictures in a store"""


@dataclass(frozen=True, eq=False)
class Pictures:
    """What the report shows of one task's edits."""

    task: str
    """saliency or depth"""
    rows: tuple[Row, ...]
    """which trial and control each image is"""
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
    recipe: str = ""
    """YAML that replays to the same pixels"""
    experiment: str = "interventions"
    """name under which the rows are kept"""
    sample: int = 0
    """sample number"""
    stage_hash: str = ""
    """settings that it was made under"""
    steps: tuple[int, ...] = ()
    """denoising steps that were edited; empty in files that do not tell"""


_ARRAYS = ("images", "labels", "before", "label_before", "targets")


def picture_path(key: str) -> str:
    """Where a task's pictures lie in a store."""
    return f"{FOLDER}/{key}.safetensors"


def recipe_path(key: str) -> str:
    """Where the YAML that replays them lies."""
    return f"{FOLDER}/{key}.yaml"


def pack(pictures: Pictures) -> bytes:
    """One safetensors file; depth is kept in float16."""
    tensors = {name: _small(getattr(pictures, name)) for name in _ARRAYS}
    about = {
        "task": pictures.task,
        "rows": [[row.trial, row.control] for row in pictures.rows],
        "goals": [goal_values(goal) for goal in pictures.goals],
        "recipe": pictures.recipe,
        "experiment": pictures.experiment,
        "sample": pictures.sample,
        "stage_hash": pictures.stage_hash,
        "steps": list(pictures.steps),
    }
    return save(tensors, {"about": json.dumps(about)})


def _small(values: NDArray) -> NDArray:
    values = values.astype(np.float16) if values.dtype.kind == "f" else values
    return np.ascontiguousarray(values)


def unpack(data: bytes) -> Pictures:
    """The pictures in a file that `pack` made."""
    tensors = load(data)
    size = int.from_bytes(data[:8], "little")
    about = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["about"])
    return Pictures(
        task=about["task"],
        rows=tuple(Row(trial, control) for trial, control in about["rows"]),
        goals=tuple(goal_from(values) for values in about["goals"]),
        recipe=about["recipe"],
        experiment=about["experiment"],
        sample=about["sample"],
        stage_hash=about["stage_hash"],
        steps=tuple(about.get("steps", ())),
        **{name: tensors[name] for name in _ARRAYS},
    )


def animation(frames: Sequence[NDArray[np.uint8]], seconds: float = 0.15) -> bytes:
    """A GIF of images (H, W, 3) that runs there and back again."""
    from PIL import Image

    there_and_back = [*frames, *frames[-2:0:-1]]
    pictures = [Image.fromarray(frame) for frame in there_and_back]
    out = io.BytesIO()
    pictures[0].save(out, "GIF", save_all=True, append_images=pictures[1:], duration=round(seconds * 1000), loop=0)
    return out.getvalue()
