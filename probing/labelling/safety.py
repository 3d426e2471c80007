"""Which images Stable Diffusion's safety checker flags, so that curation can drop them with that reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from probing.labelling import hub, images
from probing.labelling.checkpoints import Source

NAME = "CompVis/stable-diffusion-safety-checker"
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""of CLIP's pixels in 0..1"""


@dataclass(frozen=True, eq=False)
class SafetyChecker:
    """Flags images; it never blackens them."""

    revision: str
    """names the exact weights"""
    network: Any
    """diffusers' StableDiffusionSafetyChecker"""
    device: torch.device
    """where the network lives"""

    @torch.inference_mode()
    def __call__(self, pictures: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """True for each flagged image of uint8 (n, H, W, 3), shape (n,)."""
        images.check(pictures)
        side = self.network.config.vision_config.image_size
        flags: list[bool] = []
        for start in range(0, len(pictures), 8):
            pixels = clip_pixels(pictures[start : start + 8], side).to(self.device)
            spare = torch.zeros(len(pixels), 1)  # the checker blackens what it is handed
            with hub.quiet("diffusers"):
                flags += self.network(clip_input=pixels, images=spare)[1]
        return np.array(flags, dtype=bool)


def clip_pixels(pictures: NDArray[np.uint8], side: int) -> Tensor:
    """CLIP's input (n, 3, side, side): shorter edge to side (Pillow's cubic), centre, normalised."""
    height, width = pictures.shape[1:3]
    scale = side / min(height, width)
    high, wide = (max(side, int(scale * edge)) for edge in (height, width))
    top, left = (high - side) // 2, (wide - side) // 2
    box = (left, top, left + side, top + side)
    scaled = [Image.fromarray(p).resize((wide, high), Image.Resampling.BICUBIC).crop(box) for p in pictures]
    levels = torch.from_numpy(np.stack([np.asarray(s) for s in scaled])).permute(0, 3, 1, 2)
    return images.normalise(levels.double() / 255, MEAN, DEVIATION)


def load(weights: str, device: torch.device) -> SafetyChecker:
    """The checker from its own directory, a pipeline directory that has one, or a hub id.

    Without weights: the original's hub id. Raises ValueError for weights that can't be used.
    """
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    inside = Path(weights).expanduser() / "safety_checker"
    path = str(inside) if weights and inside.is_dir() else weights or NAME
    origin = Source("curation.safety_weights", path, NAME)
    network, revision = hub.load(StableDiffusionSafetyChecker, origin)
    return SafetyChecker(f"safety-checker {revision}", network.to(device), device)
