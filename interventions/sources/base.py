"""What edits need from outside: probes by key, activations and their moments (no torch)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from numpy.typing import NDArray

from interventions.sources.moments import Moments

PROBE_SEED = 0
"""seed of the probes that drive edits: the protocol's"""


@dataclass(frozen=True, order=True)
class ProbeKey:
    """Identifies one probe."""

    task: str
    """saliency or depth"""
    site: str
    """such as up.2.1"""
    step: int
    """denoising step, from 1"""
    variant: str = "trained"
    """network that its activations came from"""
    control: str = "none"
    """labels that it was fitted to: none (the true ones), shuffled or permuted"""


Probe = Callable[[ProbeKey], NDArray]
"""weights (outputs, channels [+ 1]) of a probe, a last column being the bias; raises ValueError if there is none"""


@dataclass(frozen=True)
class Sources:
    """Probes and activations, wherever they are stored."""

    probe: Probe
    vectors: Callable[[str, int], NDArray]
    """(site, step) -> activation vectors (m, channels) of the trained network on some training samples"""
    moments: Callable[[str, str, int, str], Moments]
    """(task, site, step, variant) -> moments of the activations over all patches of the training samples"""
