"""Models of the rembg package as saliency labellers: an optional extra, always chosen by name.

rembg stretches every mask to the full range, so even an image without any object gets a mask: a threshold does not
drop such images, as it does with TRACER's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from probing.labelling import images


@dataclass(frozen=True, eq=False)
class RembgLabeller:
    """A rembg session as a labeller."""

    revision: str
    """rembg's version and the model's name; rembg checks the hash of the weights it downloads"""
    predict: Callable[[Image.Image], list[Image.Image]]
    """returns the grey masks of an image"""

    def __call__(self, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Saliency uint8 (n, H, W) of images uint8 (n, H, W, 3)."""
        images.check(pictures)
        masks = np.empty(pictures.shape[:3], np.uint8)
        for mask, picture in zip(masks, pictures, strict=True):
            mask[:] = np.asarray(self.predict(Image.fromarray(picture))[0].convert("L"))
        return masks


def load(weights: str, device: torch.device, model: str) -> RembgLabeller:
    """A labeller from rembg, which keeps its weights in its own folder (REMBG_HOME).

    Raises ValueError if rembg is not installed or weights are given.
    """
    if weights:
        raise ValueError(f"labels.saliency_weights: {weights}: rembg models download their own weights; leave it empty")
    try:
        import rembg
    except ImportError as error:
        raise ValueError('labels.saliency: rembg models need the package rembg; pip install "rembg[cpu]"') from error
    options = {} if device.type == "cuda" else {"providers": ["CPUExecutionProvider"]}
    session = rembg.new_session(model, **options)
    return RembgLabeller(f"rembg {_version()} {model}", session.predict)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("rembg")
    except PackageNotFoundError:
        return "unknown"
