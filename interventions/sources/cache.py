"""Where edits get their probes and what is normal at a site: callables, so that storage does not matter."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interventions.controls import probes_of
from interventions.sources.base import VECTORS, ProbeKey, Sources
from interventions.steer import Readers, as_direction, make_readers
from probing.diffusion.sites import SiteSpec


@dataclass(frozen=True, eq=False)
class ActivationStats:
    """How a site's activations are distributed at a step."""

    centred: NDArray[np.float32]
    """(m, C) token vectors minus their mean"""
    mean: Tensor
    """(C)"""
    deviation: Tensor
    """(C) standard deviations; at least a thousandth of the root mean square"""
    rms: float
    """root mean square over tokens and channels"""

    @staticmethod
    def of(vectors: NDArray, like: Tensor) -> ActivationStats:
        """Statistics of token vectors (m, C), thinned evenly to at most VECTORS."""
        thin = np.linspace(0, len(vectors) - 1, min(len(vectors), VECTORS)).astype(int)
        values = np.asarray(vectors[thin], dtype=np.float32)
        rms = float(np.sqrt(np.square(values, dtype=np.float64).mean()))
        if not 0 < rms < np.inf:
            raise ValueError(f"activations with a root mean square of {rms} have no scale to edit in")
        mean = values.mean(axis=0)
        deviation = values.std(axis=0).clip(min=1e-3 * rms)
        return ActivationStats(
            values - mean, torch.from_numpy(mean).to(like), torch.from_numpy(deviation).to(like), rms
        )

    def departure(self, acts: Tensor) -> Tensor:
        """How far activations (R, T, C) are from normal: root mean square of standardised values, (R)."""
        return ((acts - self.mean) / self.deviation).square().mean((1, 2)).sqrt()


@dataclass(frozen=True, eq=False)
class SiteProbes:
    """A site at a step, ready for edits: probes and what is normal there."""

    readers: Readers
    """probes of the real edit (first) and of the controls"""
    normal: ActivationStats
    """distribution of the activations"""
    direction: NDArray[np.float64]
    """(C) of the real edit's probe"""


@dataclass(eq=False)
class ProbeCache:
    """Keeps places between images; a place is fetched once for each task and set of controls."""

    sources: Sources
    device: torch.device
    places: dict[tuple, SiteProbes] = field(default_factory=dict)
    normals: dict[tuple, ActivationStats] = field(default_factory=dict)

    def place(self, task: str, site: SiteSpec, step: int, controls: Sequence[str]) -> SiteProbes:
        """The place of a site and step. Raises ValueError where a probe is missing or does not fit."""
        kinds = probes_of(controls)
        key = (task, site.name, step, kinds)
        if key not in self.places:
            like = torch.zeros((), dtype=torch.float32, device=self.device)
            probes = [self._probe(ProbeKey(task, site.name, step, *kind), site) for kind in kinds]
            self.places[key] = SiteProbes(
                make_readers(probes, site.channels, like),
                self._normal(site.name, step, like),
                as_direction(probes[0], site.channels)[0],
            )
        return self.places[key]

    def _probe(self, key: ProbeKey, site: SiteSpec) -> NDArray:
        weights = np.asarray(self.sources.probe(key))
        try:
            as_direction(weights, site.channels)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
        return weights

    def _normal(self, site: str, step: int, like: Tensor) -> ActivationStats:
        if (site, step) not in self.normals:
            self.normals[site, step] = ActivationStats.of(self.sources.vectors(site, step), like)
        return self.normals[site, step]


def name_number(name: str) -> int:
    """A number that stands for a name in seeds, the same everywhere."""
    return zlib.crc32(name.encode())
