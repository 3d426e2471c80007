"""Probes and activation statistics on the device, kept between images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interventions.config import MEAN_DIFFERENCE, WEIGHTS
from interventions.controls import probes_of
from interventions.editing.steer import LinearProbes, as_direction, make_probes
from interventions.sources.base import ProbeKey, Sources
from interventions.sources.moments import Moments
from probing.diffusion.sites import SiteSpec

VECTORS = 1024
"""largest number of activation vectors that describe a site's distribution at a step"""


@dataclass(frozen=True, eq=False)
class ActivationStats:
    """The distribution of a site's activations at a step."""

    centred: NDArray[np.float32]
    """(m, C) activation vectors minus their mean"""
    mean: Tensor
    """(C)"""
    std: Tensor
    """(C) standard deviations, at least a thousandth of the root mean square"""
    rms: float
    """root mean square over vectors and channels"""

    @staticmethod
    def of(vectors: NDArray, like: Tensor) -> ActivationStats:
        """Statistics of vectors (m, C), thinned evenly to at most VECTORS.

        Raises ValueError if the root mean square is zero or not finite.
        """
        thin = np.linspace(0, len(vectors) - 1, min(len(vectors), VECTORS)).astype(int)
        values = np.asarray(vectors[thin], dtype=np.float32)
        rms = float(np.sqrt(np.square(values, dtype=np.float64).mean()))
        if not 0 < rms < np.inf:
            raise ValueError(f"activations with a root mean square of {rms} have no scale to edit in")
        mean, std = values.mean(axis=0), values.std(axis=0).clip(min=1e-3 * rms)
        return ActivationStats(values - mean, torch.from_numpy(mean).to(like), torch.from_numpy(std).to(like), rms)

    def rms_zscore(self, acts: Tensor) -> Tensor:
        """Root mean square of the standardised values of activations (R, T, C), per row (R); 1 is typical."""
        return ((acts - self.mean) / self.std).square().mean((1, 2)).sqrt()


@dataclass(frozen=True, eq=False)
class SiteProbes:
    """Probes and activation statistics of a site at a step."""

    linear: LinearProbes
    """of the real edit (first) and of the controls, in the order of `controls.probes_of`"""
    stats: ActivationStats
    probe: NDArray[np.float64]
    """(C) of the real edit"""
    directions: Directions | None = None
    """where the edit goes; None for the paper's own, which follows the probe's weights channel by channel"""


@dataclass(frozen=True, eq=False)
class Directions:
    """What activations are moved along in place of the weights, for each of the probes."""

    unit: Tensor
    """(P, C) unit vectors"""
    reading: Tensor
    """(P) change of a probe's reading by one unit along its direction"""
    gap: float
    """natural gap of the two classes along the real edit's direction"""
    contrast: float
    """difference of their mean labels"""


@dataclass(eq=False)
class ProbeCache:
    """Loads the probes of a site and step once for each task, direction and set of controls."""

    sources: Sources
    device: torch.device
    site_probes: dict[tuple, SiteProbes] = field(default_factory=dict)
    stats: dict[tuple[str, int], ActivationStats] = field(default_factory=dict)
    moments: dict[tuple[str, str, int, str], Moments] = field(default_factory=dict)

    def get(self, task: str, site: SiteSpec, step: int, controls: Sequence[str], direction: str) -> SiteProbes:
        """The probes of a site and step. Raises ValueError if a probe is missing or does not fit the site, or if a
        probe reads its direction backwards."""
        kinds = probes_of(controls)
        key = (task, site.name, step, kinds, direction)
        if key not in self.site_probes:
            like = torch.zeros((), dtype=torch.float32, device=self.device)
            if (site.name, step) not in self.stats:
                self.stats[site.name, step] = ActivationStats.of(self.sources.vectors(site.name, step), like)
            keys = [ProbeKey(task, site.name, step, *kind) for kind in kinds]
            weights = [self._weights(key, site.channels) for key in keys]
            probes = [as_direction(one, site.channels)[0] for one in weights]
            directions = None if direction == WEIGHTS else self._directions(direction, keys, probes, like)
            linear, stats = make_probes(weights, site.channels, like), self.stats[site.name, step]
            self.site_probes[key] = SiteProbes(linear, stats, probes[0], directions)
        return self.site_probes[key]

    def _directions(
        self, name: str, keys: Sequence[ProbeKey], probes: Sequence[NDArray[np.float64]], like: Tensor
    ) -> Directions:
        units, readings = [], []
        for key, probe in zip(keys, probes, strict=True):
            moments = self._moments(key)
            # labels that were moved have no class means to speak of
            by_means = name == MEAN_DIFFERENCE and key.control == "none"
            unit = moments.mean_difference() if by_means else moments.pattern(probe)
            units.append(unit)
            readings.append(float(unit @ probe))
        if not readings[0] > 0:
            raise ValueError(
                f"interventions.directions={name}: the probe of {keys[0].task} at {keys[0].site}, step {keys[0].step} "
                "does not read this direction; use other sites or steps"
            )
        own = self._moments(keys[0])
        stacked, reading = torch.from_numpy(np.stack(units)).to(like), torch.tensor(readings).to(like)
        return Directions(stacked, reading, own.gap(units[0]), own.contrast)

    def _moments(self, key: ProbeKey) -> Moments:
        place = (key.task, key.site, key.step, key.variant)
        if place not in self.moments:
            self.moments[place] = self.sources.moments(*place)
        return self.moments[place]

    def _weights(self, key: ProbeKey, channels: int) -> NDArray:
        weights = self.sources.probe(key)
        try:
            as_direction(weights, channels)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
        return weights
