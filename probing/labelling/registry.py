"""The registry of labellers: what turns images into depth maps and saliency maps.

Heavy libraries are imported only when a labeller is built.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, Protocol

import numpy as np

from storage.backends import local_path

if TYPE_CHECKING:
    import torch


class Labeller(Protocol):
    """Labels images."""

    revision: str
    """identifies the exact weights"""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (n, H, W, 3) to labels (n, H, W): uint8 for saliency, float32 for depth."""
        ...


@dataclass(frozen=True)
class LabelConfig:
    """Which labellers are used, and how their labels become training targets."""

    saliency: str = "scenes"
    """labeller of salient objects"""
    depth: str = "scenes"
    """labeller of relative inverse depth"""
    saliency_weights: str = ""
    """checkpoint of the saliency labeller, if it needs one"""
    depth_weights: str = ""
    """checkpoint or directory of the depth labeller, or a hub id with its commit, NAME@COMMIT"""
    threshold: int = 127
    """a pixel is foreground if its saliency (0..255) is above this (the paper: 0)"""
    depth_mean: float = 0.0
    """mean that standardises depth; with depth_deviation 0: computed over the training split"""
    depth_deviation: float = 0.0
    """standard deviation that standardises depth; 0 computes both over the training split"""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 254:
            raise ValueError(f"labels.threshold={self.threshold}: saliency is 0 to 255; give 0 to 254")
        if not self.depth_deviation >= 0:
            raise ValueError(f"labels.depth_deviation={self.depth_deviation}: must be 0 or more")


Make = Callable[[str, "torch.device"], Labeller]
"""(weights, device) -> labeller"""
DEFAULTS: dict[str, str] = {}
"""labeller -> hub id of its weights, if none are given"""
SAFETY_CHECKER = "CompVis/stable-diffusion-safety-checker@cb41f3a270d63d454d385fc2e4f571c487c253c5"
"""the safety checker of Stable Diffusion"""
COMMIT = re.compile(r"[0-9a-f]{40}")
_REGISTRY: dict[tuple[str, str], Make] = {}


def register(task: str, name: str, make: Make) -> None:
    """Add a labeller, which `make(weights, device)` builds."""
    _REGISTRY[task, name] = make


def build(task: str, name: str, weights: str, device: torch.device) -> Labeller:
    """The labeller of a task. Raises ValueError for an unknown name or for weights that can't be used."""
    return _maker(task, name)(weights, device)


def check(config: LabelConfig, load: bool = True, installed: bool = True) -> list[str]:
    """Check that labellers and their weights are there; return a line for each checkpoint that is still to be got.

    load: load local weights once and discard them, so that a wrong checkpoint is found before any work, and raise
    ValueError for those that are missing. installed: whether packages that labellers need must be on this machine.
    Weights that a hub or another package downloads are left to the workers. Raises ValueError as `build` does.
    """
    notes = []
    for task in ("saliency", "depth"):
        name, weights = getattr(config, task), getattr(config, f"{task}_weights")
        make = _maker(task, name)
        if installed and name.startswith("rembg") and importlib.util.find_spec("rembg") is None:
            raise ValueError(f'labels.{task}={name}: needs the package rembg; pip install "rembg[cpu]"')
        from_hub = DEFAULTS.get(name, "") if not weights else weights
        check_pinned(from_hub, f"labels.{task}_weights")
        needed = name.startswith(("tracer", "midas"))
        present = bool(weights) and local_path(weights, f"labels.{task}_weights").exists()
        if load and (needed or present):
            import torch

            make(weights, torch.device("cpu"))
        elif needed and not present and not is_hub_id(weights):
            notes.append(f"labels.{task}_weights: {weights or 'not set'}: a run needs the checkpoint of {name}")
    return notes


def packages(config: LabelConfig) -> dict[str, str]:
    """Versions of the packages that bring weights of their own, by `SETTING: package NAME`; none if not installed."""
    keys = [f"labels.{task}" for task in ("saliency", "depth") if getattr(config, task).startswith("rembg")]
    installed = bool(keys) and importlib.util.find_spec("rembg") is not None
    return {f"{key}: package rembg": version("rembg") for key in keys if installed}


def is_hub_id(weights: str) -> bool:
    """Whether text can be a hub id, `owner/name` or `owner/name@revision`; a folder of that name takes precedence."""
    return weights.count("/") == 1 and weights[0] not in "/.~" and not weights.endswith((".pt", ".pth", ".safetensors"))


def check_pinned(weights: str, key: str) -> None:
    """Raise ValueError for a hub id without its commit: other weights may have that name tomorrow.

    Nothing is wrong with a directory of that name.
    """
    name, _, revision = weights.partition("@")
    if is_hub_id(weights) and not COMMIT.fullmatch(revision) and not local_path(weights, key).exists():
        raise ValueError(
            f"{key}: {weights} on the hub may change; give a directory, or {name}@COMMIT with the commit's 40 digits"
        )


def _maker(task: str, name: str) -> Make:
    # other packages add labellers through this entry point group: functions that call `register`
    for entry in entry_points(group="scenesweep.labellers"):
        entry.load()()
    if (task, name) not in _REGISTRY:
        known = sorted(n for t, n in _REGISTRY if t == task)
        raise ValueError(f"labels.{task}: no labeller {name!r}; known: {', '.join(known)}")
    return _REGISTRY[task, name]


def _load(module: str, options: dict[str, str | int], weights: str, device: torch.device) -> Labeller:
    """Call `load(weights, device, **options)` of a module of this folder."""
    return importlib.import_module(f"probing.labelling.{module}").load(weights, device, **options)


register("saliency", "scenes", partial(_load, "scenes", {"task": "saliency"}))
register("depth", "scenes", partial(_load, "scenes", {"task": "depth"}))
register("saliency", "tracer", partial(_load, "tracer", {"arm": 5}))
for _arm in range(8):
    register("saliency", f"tracer-te{_arm}", partial(_load, "tracer", {"arm": _arm}))
# free models that run on this machine; rembg's default is not free, and some of its other names are web services
for _model in ("birefnet-general", "isnet-general-use", "u2net"):
    register("saliency", f"rembg-{_model}", partial(_load, "cutouts", {"model": _model}))
register("depth", "midas", partial(_load, "midas", {}))
for _size in ("small", "base", "large"):
    register("depth", f"depth-anything-v2-{_size}", partial(_load, "depth_anything", {"size": _size}))
    DEFAULTS[f"depth-anything-v2-{_size}"] = f"depth-anything/Depth-Anything-V2-{_size.capitalize()}-hf"
