"""Stable Diffusion's safety checker: flags images, so that curation can drop them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from probing.labelling import hub, images
from probing.labelling.checkpoints import Source
from probing.labelling.registry import SAFETY_CHECKER
from probing.libraries import quiet_libraries
from storage.backends import local_path

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""of CLIP's pixels in 0..1"""
STD = (0.26862954, 0.26130258, 0.27577711)
BATCH = 8


@dataclass(frozen=True, eq=False)
class SafetyChecker:
    """Flags images and never changes them."""

    revision: str
    """identifies the exact weights"""
    network: StableDiffusionSafetyChecker
    device: torch.device

    @torch.inference_mode()
    def __call__(self, pictures: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Whether each image of uint8 (n, H, W, 3) is flagged, shape (n,)."""
        images.check(pictures)
        side = self.network.config.vision_config.image_size
        flags: list[bool] = []
        for start in range(0, len(pictures), BATCH):
            pixels = clip_pixels(pictures[start : start + BATCH], side).to(self.device)
            dummy = torch.zeros(len(pixels), 1)  # the checker blackens the flagged images of this argument
            with quiet_libraries():
                flags += self.network(clip_input=pixels, images=dummy)[1]
        return np.array(flags, dtype=bool)


def clip_pixels(pictures: NDArray[np.uint8], side: int) -> Tensor:
    """CLIP's input (n, 3, side, side): shorter edge scaled to side (Pillow's cubic), centre crop, normalised."""
    height, width = pictures.shape[1:3]
    scale = side / min(height, width)
    high, wide = (max(side, int(scale * edge)) for edge in (height, width))
    top, left = (high - side) // 2, (wide - side) // 2
    box = (left, top, left + side, top + side)
    crops = [Image.fromarray(p).resize((wide, high), Image.Resampling.BICUBIC).crop(box) for p in pictures]
    levels = torch.from_numpy(np.stack([np.asarray(crop) for crop in crops])).permute(0, 3, 1, 2)
    return images.normalise(levels.double() / 255, MEAN, STD)


def load(weights: str, device: torch.device) -> SafetyChecker:
    """The checker from its own directory, a pipeline's directory that has one, or a hub id (default: the original's).

    Raises ValueError for weights that can't be used.
    """
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    weights = weights or SAFETY_CHECKER
    inside = local_path(weights, "curation.safety_weights") / "safety_checker"
    origin = Source("curation.safety_weights", str(inside) if inside.is_dir() else weights, SAFETY_CHECKER)
    network, revision = hub.load(StableDiffusionSafetyChecker, origin)
    return SafetyChecker(f"safety-checker {revision}", network.to(device), device)
