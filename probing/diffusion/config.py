"""Configuration of the model under study."""

from __future__ import annotations

import re
from dataclasses import dataclass

SCENES = "scenes"
"""name of the embedded model"""
STEPS = 15
"""denoising steps of a sample (the paper's)"""
DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""names of the supported dtypes, and bytes per value"""
DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")


@dataclass(frozen=True)
class ModelConfig:
    """Which pipeline is studied, and how it runs. Raises ValueError for an unknown dtype."""

    name: str = SCENES
    """`scenes`, a local directory of a pipeline (Stable Diffusion 1.x, 2.x or XL), or a hub id"""
    revision: str = ""
    """commit of a hub id; required for hub ids, so that a run can be repeated"""
    dtype: str = "float32"
    """dtype of the weights: float32, float16 or bfloat16"""
    autocast: str = ""
    """dtype that the UNet computes in on CUDA (the paper: float16); empty is off"""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: CUDA if there is a GPU"""
    random_seed: int = 100
    """seed of the weights of variants `random`, `random_forced` and `reinit`; `random@101` has its own"""

    def __post_init__(self) -> None:
        for key in ("dtype", "autocast"):
            value = getattr(self, key)
            if value not in DTYPES and (value or key == "dtype"):
                raise ValueError(f"model.{key}={value!r}: use {', '.join(DTYPES)}")
        if not DEVICE.fullmatch(self.device):
            raise ValueError(f"model.device={self.device!r}: use cpu, cuda, cuda:NUMBER or auto")
        if self.random_seed < 0:
            raise ValueError(f"model.random_seed={self.random_seed}: must be 0 or more")
