"""The registry of labellers: what turns images into depth maps and saliency maps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from probing.labelling import register_all


class Labeller(Protocol):
    """Labels images; `revision` names the exact weights."""

    revision: str

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (n, H, W, 3) to labels (n, H, W): uint8 for saliency, float32 for depth."""
        ...


@dataclass(frozen=True)
class LabelConfig:
    """Which labellers speak, and how their labels become training targets."""

    saliency: str = "scenes"
    """labeller of salient objects"""
    depth: str = "scenes"
    """labeller of relative inverse depth"""
    saliency_weights: str = ""
    """checkpoint of the saliency labeller, where it needs one"""
    depth_weights: str = ""
    """checkpoint or directory of the depth labeller, where it needs one"""
    threshold: int = 127
    """a pixel is foreground where its saliency (0..255) is above this (the paper: 0)"""
    depth_mean: float = 0.0
    """mean that standardises depth; with depth_deviation 0: computed over the training split"""
    depth_deviation: float = 0.0
    """deviation that standardises depth; 0 computes both over the training split"""


_REGISTRY: dict[tuple[str, str], Callable[[str, torch.device], Labeller]] = {}


def register(task: str, name: str, make: Callable[[str, torch.device], Labeller]) -> None:
    """Adds a labeller: `make(weights, device)` builds it."""
    _REGISTRY[task, name] = make


def build(task: str, name: str, weights: str, device: torch.device) -> Labeller:
    """The labeller of a task. Raises ValueError for a name that is not known.

    Packages add theirs through the entry point group `scenesweep.labellers`, whose entries are
    called once and are to call `register`.
    """
    return _maker(task, name)(weights, device)


def _maker(task: str, name: str) -> Callable[[str, torch.device], Labeller]:
    for entry in entry_points(group="scenesweep.labellers"):
        entry.load()()
    if (task, name) not in _REGISTRY:
        known = sorted(n for t, n in _REGISTRY if t == task)
        raise ValueError(f"labels.{task}: no labeller {name!r}; known: {', '.join(known)}")
    return _REGISTRY[task, name]


def check(config: LabelConfig) -> None:
    """Loads what is on this disk once and forgets it, so that a wrong checkpoint is told before any work.

    What a hub or another package fetches by itself is left to the workers. Raises ValueError as `build` does.
    """
    for task in ("saliency", "depth"):
        name, weights = getattr(config, task), getattr(config, f"{task}_weights")
        make = _maker(task, name)
        if name.startswith(("tracer", "midas")) or (weights and Path(weights).expanduser().exists()):
            make(weights, torch.device("cpu"))


class _ScenesNetwork:
    """The scenes model's labelling network; asked for both tasks of the same images, it runs once."""

    def __init__(self, device: torch.device) -> None:
        from probing.scenes import weights

        self.network, self.revision = weights.load_labeller()
        self.network.to(device)
        self.seen, self.labels = b"", (np.empty(0), np.empty(0))

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Relative inverse depth and mask probability of uint8 images (n, H, W, 3)."""
        from probing.scenes import teacher

        seen = hashlib.blake2b(np.ascontiguousarray(images).data, digest_size=16).digest() + repr(images.shape).encode()
        if seen != self.seen:
            self.labels = teacher.label(self.network, images)
            self.seen = seen
        return self.labels


@lru_cache(maxsize=2)
def _scenes_network(device: torch.device) -> _ScenesNetwork:
    return _ScenesNetwork(device)


class ScenesLabeller:
    """One head of the scenes model's labelling network, which the labellers of a process share."""

    def __init__(self, task: str, device: torch.device) -> None:
        self.task = task
        self.network = _scenes_network(device)
        self.revision = self.network.revision

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """As `Labeller` says."""
        depth, mask = self.network(images)
        if self.task == "depth":
            return depth.clip(min=0).astype(np.float32)
        return (mask * 255).round().astype(np.uint8)


def _scenes(task: str, _weights: str, device: torch.device) -> ScenesLabeller:
    return ScenesLabeller(task, device)


for _task in ("saliency", "depth"):
    register(_task, "scenes", partial(_scenes, _task))
register_all(register)
