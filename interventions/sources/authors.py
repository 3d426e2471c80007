"""Reads the probes that the paper's authors publish (probe_checkpoints.zip), so that they can drive edits."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from interventions.sources.base import Probe, ProbeKey
from storage.backends import local_path

_FILES = {
    "saliency": "large_syn_dataset/at_step_{step}/segmentation_probe_{place}{suffix}.pth",
    "depth": "large_syn_dataset_continuous/at_step_{step}/regression_probe_{place}{suffix}.pth",
}
"""where the authors' scripts look for a probe; their steps count from 0"""
SITE = re.compile(r"(down|up)\.\d\.\d|mid\.0")


@dataclass(frozen=True)
class AuthorsProbes:
    """The unzipped folder as the `probe` of `Sources`."""

    folder: Path
    """holds large_syn_dataset and large_syn_dataset_continuous"""
    saliency_suffix: str = ""
    """suffix of their saliency files (their --weights_type)"""
    depth_suffix: str = "_linear_no_bias_unsmoothed"
    """suffix of their depth files; the default is what their intervention script loads"""

    @staticmethod
    def publish(key: ProbeKey) -> bool:
        """Whether the authors publish such a probe: of the trained network, on true labels."""
        return (key.variant, key.control) == ("trained", "none")

    def path(self, key: ProbeKey) -> Path:
        """The file of a probe. Raises ValueError if its site is no self-attention of Stable Diffusion's UNet."""
        if not SITE.fullmatch(key.site):
            raise ValueError(f"the authors publish no probe at {key.site}, only at a UNet's self-attention")
        block, layer = key.site.rsplit(".", 1) if key.site.count(".") == 2 else (f"{key.site.split('.')[0]}.0", "0")
        place = f"{block.replace('.', '_')}_attn1_out_{layer}"
        suffix = self.saliency_suffix if key.task == "saliency" else self.depth_suffix
        return self.folder / _FILES[key.task].format(step=key.step - 1, place=place, suffix=suffix)

    def __call__(self, key: ProbeKey) -> NDArray[np.float32]:
        """Weights (outputs, channels [+ 1]). Raises ValueError if there is no such linear probe."""
        import torch  # planning uses `publish` alone

        if not self.publish(key):
            raise ValueError(f"the authors publish no probe of variant {key.variant}, control {key.control}")
        path = self.path(key)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)  # no file can run code
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            raise ValueError(f"{path}: no readable probe: {str(error).splitlines()[0]}") from error
        if set(state) - {"dense1.weight", "dense1.bias"} or "dense1.weight" not in state:
            raise ValueError(f"{path}: has {', '.join(state)}; edits need one linear map, dense1")
        weight = state["dense1.weight"].float().numpy()
        if "dense1.bias" not in state:
            return weight
        return np.concatenate([weight, state["dense1.bias"].float().numpy()[:, None]], axis=1)


def theirs_first(folder: str, own: Probe) -> Probe:
    """The authors' probes if they publish them, `own` otherwise (those of controls)."""
    theirs = AuthorsProbes(local_path(folder, "interventions.probes"))
    return lambda key: theirs(key) if theirs.publish(key) else own(key)
