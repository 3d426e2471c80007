"""The paper's labellers and their alternatives: TRACER, MiDaS, Depth Anything, rembg models.

Nothing heavy is imported before a labeller is built. The safety checker flags images instead of
labelling pixels and stands apart: `probing.labelling.safety.load`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

TRACER_ARMS = range(8)
DEPTH_ANYTHING_SIZES = ("small", "base", "large")
REMBG_MODELS = ("birefnet-general", "isnet-general-use", "u2net")
"""free models that run on this machine; rembg's own default is not free, other names are services"""

Make = Callable[[str, torch.device], Any]


def register_all(register: Callable[[str, str, Make], None]) -> None:
    """Hands every labeller of this package to `register(task, name, make(weights, device))`.

    Saliency: tracer (TE5, the paper's), tracer-te0 ... tracer-te7, rembg-MODEL.
    Depth: midas (DPT-Large, the paper's), depth-anything-v2-small, -base, -large.
    """
    register("saliency", "tracer", partial(_tracer, 5))
    for arm in TRACER_ARMS:
        register("saliency", f"tracer-te{arm}", partial(_tracer, arm))
    for model in REMBG_MODELS:
        register("saliency", f"rembg-{model}", partial(_rembg, model))
    register("depth", "midas", _midas)
    for size in DEPTH_ANYTHING_SIZES:
        register("depth", f"depth-anything-v2-{size}", partial(_depth_anything, size))


def _tracer(arm: int, weights: str, device: torch.device) -> Any:
    from probing.labelling import tracer

    return tracer.load(weights, device, arm)


def _midas(weights: str, device: torch.device) -> Any:
    from probing.labelling import midas

    return midas.load(weights, device)


def _depth_anything(size: str, weights: str, device: torch.device) -> Any:
    from probing.labelling import depth_anything

    return depth_anything.load(weights, device, size)


def _rembg(model: str, weights: str, device: torch.device) -> Any:
    from probing.labelling import cutouts

    return cutouts.load(weights, device, model)
