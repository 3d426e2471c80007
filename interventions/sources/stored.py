"""Feeds interventions from a store: probes, activations, original images and their labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from interventions.labelling import Original
from interventions.sources.base import PROBE_SEED, ProbeKey, Sources
from interventions.sources.moments import Moments, measure
from probing.scoring.targets import Grid, pool_saliency, split_patches
from storage import Store, probe_path

STATS_SAMPLES = 8
"""training samples whose activations describe a site's distribution"""
AT_ONCE = 16
"""training samples in memory while moments are measured"""


@dataclass(frozen=True)
class Stored:
    """A finished probe run as the source of interventions."""

    store: Store
    train: tuple[int, ...]
    """training samples, ascending"""
    grids: Mapping[str, Grid]
    """site -> height and width in patches"""
    threshold: int = 0
    """a pixel is foreground if its saliency is above this"""
    depth_std: float = 1.0
    """standard deviation of stored depth, by which labels are standardised"""
    seed: int = PROBE_SEED
    """seed of the probes that are used"""

    def probe(self, key: ProbeKey) -> NDArray:
        """Weights (outputs, channels [+ 1]). Raises ValueError if the probe was not fitted or is not linear."""
        path = probe_path(key.variant, key.site, key.step, key.task, key.control, self.seed)
        if not self.store.exists(path):
            raise ValueError(
                f"interventions need the probe {path}, which is not in {self.store.url}; "
                f"fit variant {key.variant} with control {key.control} at {key.site}, step {key.step}, "
                "or leave out the control that needs it"
            )
        tensors = load(self.store.get(path))
        if "hidden" in tensors:
            raise ValueError(f"{path} has a hidden layer; interventions need linear probes (probe.hidden=0)")
        return tensors["weight"]

    def vectors(self, site: str, step: int) -> NDArray:
        """Activation vectors (m, C) of STATS_SAMPLES training samples."""
        values = self.store.read_activations("trained", site, step, list(self.train[:STATS_SAMPLES]))
        return values.reshape(-1, values.shape[-1])

    def moments(self, task: str, site: str, step: int, variant: str) -> Moments:
        """Moments over the training samples, AT_ONCE of them in memory. Raises ValueError if a class has no patch."""
        return measure(self._labelled_patches(task, site, step, variant))

    def _labelled_patches(
        self, task: str, site: str, step: int, variant: str
    ) -> Iterator[tuple[NDArray, NDArray, NDArray[np.bool_]]]:
        for start in range(0, len(self.train), AT_ONCE):
            samples = list(self.train[start : start + AT_ONCE])
            labels = self.store.read_labels(task, samples)
            if task == "saliency":
                masks = pool_saliency(labels, self.grids[site], self.threshold)
                positive = 2 * masks.counts > masks.pixels
                label = masks.counts / masks.pixels
            else:
                label = split_patches(labels, self.grids[site]).mean(axis=2, dtype=np.float64) / self.depth_std
                # the mean splits every map that is not flat; with few levels the median may be the nearest of them
                positive = label > label.mean(axis=1, keepdims=True)
            acts = self.store.read_activations(variant, site, step, samples)
            yield acts.reshape(-1, acts.shape[-1]), label.reshape(-1), positive.reshape(-1)

    @property
    def sources(self) -> Sources:
        """Probes, activations and moments as callables."""
        return Sources(self.probe, self.vectors, self.moments)

    @cached_property
    def _samples(self) -> dict[int, tuple[str, int]]:
        """Sample number -> prompt and seed."""
        table = self.store.samples().to_pydict()
        return {n: (p, s) for n, p, s in zip(table["sample"], table["prompt"], table["seed"], strict=True)}

    def original(self, sample: int) -> Original:
        """An unedited sample with its stored labels."""
        image = self.store.read_images("trained", [sample])[0]
        saliency, depth = (self.store.read_labels(task, [sample])[0] for task in ("saliency", "depth"))
        return Original(*self._samples[sample], image, saliency, depth)
