"""What edits need from outside: probes by their keys, and activations (no torch)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from numpy.typing import NDArray

PROBE_SEED = 0
"""seed of the probes that drive edits: the protocol's"""
VECTORS = 1024
"""most token vectors that stand for a site's distribution"""


@dataclass(frozen=True, order=True)
class ProbeKey:
    """Names one probe."""

    task: str
    """saliency or depth"""
    site: str
    """such as up.2.1"""
    step: int
    """denoising step, from 1"""
    variant: str = "trained"
    """network that its activations came from"""
    control: str = "none"
    """what it was fitted on: none, or shuffled"""


@dataclass(frozen=True)
class Sources:
    """What edits need from outside."""

    probe: Callable[[ProbeKey], NDArray]
    """weights (outputs, channels), or with a bias as one more column; ValueError where there is none"""
    vectors: Callable[[str, int], NDArray]
    """(site, step) -> token vectors (m, channels) of the trained network, from training samples"""
