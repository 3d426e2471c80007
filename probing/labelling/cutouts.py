"""Models of the rembg package as saliency labellers: an optional extra, always named explicitly.

rembg stretches every mask to the full range, so an image without any object still gets a mask: such
images are not dropped by a threshold as TRACER's are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from probing.labelling import REMBG_MODELS, images


@dataclass(frozen=True, eq=False)
class RembgLabeller:
    """A rembg session as a labeller."""

    revision: str
    """rembg's version and the model's name; rembg checks the weights it fetches by their hash"""
    predict: Callable[[Image.Image], list[Image.Image]]
    """rembg's session: grey masks of an image"""

    def __call__(self, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Saliency uint8 (n, H, W) of images uint8 (n, H, W, 3)."""
        images.check(pictures)
        masks = np.empty(pictures.shape[:3], np.uint8)
        for mask, picture in zip(masks, pictures, strict=True):
            mask[:] = np.asarray(self.predict(Image.fromarray(picture))[0].convert("L"))
        return masks


def load(weights: str, device: torch.device, model: str) -> RembgLabeller:
    """A labeller from rembg, which keeps its weights in its own folder (REMBG_HOME).

    Raises ValueError where rembg is not installed, weights are given, or the model is not one of ours.
    """
    if model not in REMBG_MODELS:
        raise ValueError(f"labels.saliency: rembg-{model} is not among {', '.join(REMBG_MODELS)}")
    if weights:
        raise ValueError(f"labels.saliency_weights: {weights}: rembg models fetch their own weights; leave it empty")
    rembg = _package()
    options: dict[str, Any] = {} if device.type == "cuda" else {"providers": ["CPUExecutionProvider"]}
    session = rembg.new_session(model, **options)
    return RembgLabeller(f"rembg {_version()} {model}", session.predict)


def _package() -> Any:
    try:
        import rembg
    except ImportError as error:
        raise ValueError('labels.saliency: rembg models need the package rembg; pip install "rembg[cpu]"') from error
    return rembg


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("rembg")
    except PackageNotFoundError:
        return "unknown"
