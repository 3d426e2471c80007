"""Configuration of the model under study."""

from __future__ import annotations

import re
from dataclasses import dataclass

SCENES = "scenes"
"""name of the embedded model"""
SCENES_DIT = "scenes-dit"
"""name of the embedded transformer"""
EMBEDDED = {SCENES: "pipeline", SCENES_DIT: "dit"}
"""embedded models -> folder below the shipped weights"""
PAPER_STEPS = 15
"""denoising steps of a sample in the paper, and wherever nothing else is set"""
DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""names of the supported dtypes, and bytes per value"""
MOST_PIXELS = 4096
"""of an image's side"""
VARIANT = re.compile(r"[A-Za-z0-9_-]{1,40}")
DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")


@dataclass(frozen=True)
class ModelConfig:
    """Which pipeline is studied, and how it runs. Raises ValueError for an unknown dtype."""

    name: str = SCENES
    """`scenes` or `scenes-dit`, a local directory of a diffusers pipeline, a single safetensors file of Stable
    Diffusion 1.x, 2.x or XL, or a hub id; families: see the README"""
    config: str = ""
    """for a single file: local directory with the pipeline's configuration files, without weights"""
    revision: str = ""
    """commit of a hub id; required for hub ids, so that a run can be repeated"""
    dtype: str = "float32"
    """dtype of the weights: float32, float16 or bfloat16"""
    autocast: str = ""
    """dtype that the UNet computes in on CUDA (the paper: float16); empty is off"""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: CUDA if there is a GPU"""
    variant: str = ""
    """copy of the weights to load, such as `fp16` for files named `*.fp16.safetensors`; empty is the main one"""
    size: int = 0
    """side of the images in pixels; 0 is the model's own size"""
    random_seed: int = 100
    """seed of the weights of variants `random`, `random_forced` and `reinit`; `random@101` has its own"""

    def __post_init__(self) -> None:
        for key in ("dtype", "autocast"):
            value = getattr(self, key)
            if value not in DTYPES and (value or key == "dtype"):
                raise ValueError(f"model.{key}={value!r}: use {', '.join(DTYPES)}")
        if not DEVICE.fullmatch(self.device):
            raise ValueError(f"model.device={self.device!r}: use cpu, cuda, cuda:NUMBER or auto")
        if self.variant and not VARIANT.fullmatch(self.variant):
            raise ValueError(f"model.variant={self.variant!r}: give the middle of the files' names, such as fp16")
        if not 0 <= self.size <= MOST_PIXELS:
            raise ValueError(f"model.size={self.size}: give 0 for the model's own size, or at most {MOST_PIXELS}")
        if self.random_seed < 0:
            raise ValueError(f"model.random_seed={self.random_seed}: must be 0 or more")
