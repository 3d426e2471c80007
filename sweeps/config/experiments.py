"""Settings of the experiments besides the main grid."""

from __future__ import annotations

from dataclasses import dataclass, field

NAMES = ("vae", "conv", "smoothness", "emergence", "transfer", "converged", "truth")
"""VAE self-attention (section 4.2), convolutional sites (appendix A), smoothness loss (appendix F), emergence
(figures 4 and 10), transfer between steps, converged references, and probes on renders with known geometry"""


@dataclass(frozen=True)
class ExperimentConfig:
    """Which experiments run besides the main grid, and at which sites, steps and images; the step -1 is the last."""

    names: list[str] = field(default_factory=lambda: [name for name in NAMES if name != "truth"])
    """vae (section 4.2), conv (appendix A), smoothness (appendix F), emergence (figure 4), transfer (probes of one step
    applied at the other steps), converged (ridge and logistic references), truth (scenes model only: probes on noised
    renders, scored with the renderer's depth and masks; not by default); empty runs none"""
    vae_steps: list[int] = field(default_factory=list)
    """steps at which the VAE's self-attention is probed; empty means those of the grid"""
    conv_steps: list[int] = field(default_factory=list)
    """steps at which the convolutional sites are probed; empty means those of the grid"""
    smoothness: float = 1.0
    """weight of the smoothness loss"""
    smoothness_steps: list[int] = field(default_factory=lambda: [-1])
    """steps at which depth probes are fitted with it; empty means those of the grid"""
    emergence_images: int = 16
    """test images whose latents are decoded and labelled after each step; 0 means all"""
    emergence_steps: list[int] = field(default_factory=list)
    """steps after which they are decoded; empty means those of the grid"""
    emergence_shown: int = 4
    """number of them whose pictures are kept for the report"""
    transfer_sites: list[str] = field(default_factory=lambda: ["blocks"])
    """recorded sites whose probes are applied at other steps: names, kinds, `blocks` (the last of each block and kind)
    or `all`"""
    converged_sites: list[str] = field(default_factory=lambda: ["blocks"])
    """sites whose probes are compared with closed-form ridge (depth) and converged logistic regression (saliency)"""
    converged_steps: list[int] = field(default_factory=lambda: [-1])
    """steps at which they are compared; empty means those of the grid"""
    truth_sites: list[str] = field(default_factory=lambda: ["blocks"])
    """sites that are probed on noised renders for the renderer's depth and masks"""
    truth_steps: list[int] = field(default_factory=lambda: [1, -1])
    """steps whose noise level is added to the renders; empty means those of the grid"""

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in NAMES:
                raise ValueError(f"experiments.names={name!r}: unknown; use {', '.join(NAMES)}")
        if not self.smoothness > 0:
            raise ValueError(f"experiments.smoothness={self.smoothness}: must be above 0")
        for name in ("emergence_images", "emergence_shown"):
            if getattr(self, name) < 0:
                raise ValueError(f"experiments.{name}={getattr(self, name)}: must be 0 or more")
