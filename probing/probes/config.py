"""The configuration of probes (imports no heavy library)."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

OPTIMIZERS = ("adam", "sgd")
NORMALISERS = ("none", "rms")
SELECTIONS = ("last", "val")
DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class ProbeConfig:
    """How probes are trained; the defaults are the paper's (section 3.1)."""

    optimizer: str = "adam"
    """adam (betas 0.9 and 0.999, epsilon 1e-8) or sgd, both without weight decay"""
    lr: float = 1e-3
    """step size"""
    epochs: int = 30
    """passes over the training samples"""
    batch: int = 4
    """samples in one step; the last smaller batch is kept"""
    bias: bool = False
    """whether every linear layer has a bias"""
    normalise: str = "none"
    """rms: divide activations by their root mean square over the training samples, one constant per site and
    step that is folded back into the weights, so the probe stays linear in the raw activations"""
    selection: str = "last"
    """last: keep the last epoch, as in the paper; val: keep the epoch with the lowest validation loss"""
    val_every: int = 1
    """epochs between two validation losses; the last epoch always has one. With selection=val only epochs that
    have one are candidates"""
    smoothness: float = 0.0
    """weight of the smoothness loss of appendix F on depth probes; needs images"""
    hidden: int = 0
    """units of a hidden ReLU layer (capacity check); 0 is the linear probe. Position controls stay linear"""
    huber_delta: float = 1.0
    """standardised depth error at which the depth loss turns from square to linear"""
    seed: int = 100
    """seed of the order of the samples; the probe's own seed is added"""
    dtype: str = "float32"
    """float32 or float64 (for checks)"""

    def __post_init__(self) -> None:
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("normalise", self.normalise, NORMALISERS)
        _one_of("selection", self.selection, SELECTIONS)
        _one_of("dtype", self.dtype, DTYPES)
        for name, low in (("epochs", 1), ("batch", 1), ("val_every", 1), ("hidden", 0), ("smoothness", 0), ("seed", 0)):
            if not getattr(self, name) >= low:
                raise ValueError(f"probe.{name} must be at least {low}, not {getattr(self, name)}")
        for name in ("lr", "huber_delta"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"probe.{name} must be a positive number, not {getattr(self, name)}")


def _one_of(name: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ValueError(f"probe.{name} must be one of {', '.join(allowed)}, not {value!r}")
