"""Edited pictures as one safetensors file for the report, and short animations (no torch)."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load, save

from interventions.config import MAIN, WEIGHTS
from interventions.counterfactual import TargetSpec, target_from_values, target_values
from interventions.plan import Row

FOLDER = "interventions"
"""folder of the pictures in a store"""
_ARRAYS = ("images", "labels", "before", "label_before", "targets")


@dataclass(frozen=True, eq=False)
class Pictures:
    """What the report shows of one task's edits; R rows."""

    task: str
    """saliency or depth"""
    rows: tuple[Row, ...]
    """trial and control of each image"""
    images: NDArray[np.uint8]
    """(R, H, W, 3) edited"""
    labels: NDArray
    """(R, H, W) labels of the edited images: bool, or standardised depth"""
    before: NDArray[np.uint8]
    """(H, W, 3) the unedited image"""
    label_before: NDArray
    """(H, W) its label"""
    targets: NDArray
    """(trials, H, W) target labels"""
    goals: tuple[TargetSpec, ...]
    """what the target labels were made from; empty for activation patching"""
    recipe: str = ""
    """YAML that replays to the same pixels"""
    experiment: str = MAIN
    """column `experiment` of the results"""
    sample: int = 0
    """sample number"""
    stage_hash: str = ""
    """hash of the settings of the run"""
    steps: tuple[int, ...] = ()
    """edited denoising steps; empty in files of earlier versions"""
    direction: str = WEIGHTS
    """what activations are moved along"""


def picture_path(key: str) -> str:
    """Path of a task's pictures in a store."""
    return f"{FOLDER}/{key}.safetensors"


def recipe_path(key: str) -> str:
    """Path of the recipe that replays them."""
    return f"{FOLDER}/{key}.yaml"


def pack(pictures: Pictures) -> bytes:
    """Serialise as one safetensors file; depth is stored in float16."""
    tensors = {}
    for name in _ARRAYS:
        values = getattr(pictures, name)
        tensors[name] = np.ascontiguousarray(values.astype(np.float16) if values.dtype.kind == "f" else values)
    about = {
        "task": pictures.task,
        "rows": [[row.trial, row.control] for row in pictures.rows],
        "goals": [target_values(target) for target in pictures.goals],
        "recipe": pictures.recipe,
        "experiment": pictures.experiment,
        "sample": pictures.sample,
        "stage_hash": pictures.stage_hash,
        "steps": list(pictures.steps),
        "direction": pictures.direction,
    }
    return save(tensors, {"about": json.dumps(about)})


def unpack(data: bytes) -> Pictures:
    """The pictures of a file written by `pack`."""
    tensors = load(data)
    # safetensors.numpy returns no metadata: read the JSON header, which follows its 8-byte length
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about = json.loads(header["__metadata__"]["about"])
    about["rows"] = tuple(Row(trial, control) for trial, control in about["rows"])
    about["goals"] = tuple(target_from_values(values) for values in about["goals"])
    about["steps"] = tuple(about.get("steps", ()))
    return Pictures(**(about | {name: tensors[name] for name in _ARRAYS}))


def animation(frames: Sequence[NDArray[np.uint8]], seconds: float = 0.15) -> bytes:
    """A looping GIF of images (H, W, 3), forwards and backwards, `seconds` per frame."""
    pictures = [Image.fromarray(frame) for frame in (*frames, *frames[-2:0:-1])]
    out = io.BytesIO()
    pictures[0].save(out, "GIF", save_all=True, append_images=pictures[1:], duration=round(seconds * 1000), loop=0)
    return out.getvalue()
