"""Finds and loads the weights of the scenes model that ship with the package."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

from safetensors.torch import load_file

from probing.scenes.teacher import Teacher


def folder() -> Path:
    """Directory of the shipped weights."""
    return Path(str(files("probing.scenes") / "weights"))


def load_labeller(path: Path | None = None) -> tuple[Teacher, str]:
    """The labelling network in fp32 and the checksum of its file. Raises ValueError if the file is missing."""
    path = path or folder() / "labeller.safetensors"
    if not path.exists():
        raise ValueError(f"scenes: {path} is missing; reinstall, or run `scenesweep train-scenes`")
    network = Teacher()
    network.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return network.eval(), hashlib.sha256(path.read_bytes()).hexdigest()[:16]
