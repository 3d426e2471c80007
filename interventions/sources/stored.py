"""Feeds interventions from a store: probes, normal activations, originals and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from interventions.labelling import Original
from interventions.sources.base import PROBE_SEED, VECTORS, ProbeKey, Sources
from storage import Store, probe_path

NORMAL_SAMPLES = 8
"""training samples whose activations stand for what is normal"""


@dataclass(frozen=True)
class Stored:
    """A finished probe run as the source of interventions."""

    store: Store
    train: tuple[int, ...]
    """training samples, ascending"""
    seed: int = PROBE_SEED
    """seed of the probes that are used"""

    def probe(self, key: ProbeKey) -> NDArray:
        """Weights of a probe. Raises ValueError where it was not fitted, or is no linear probe."""
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
        """At most VECTORS token vectors (m, C) of training samples, evenly taken."""
        few = list(self.train[:NORMAL_SAMPLES])
        values = self.store.read_activations("trained", site, step, few)
        tokens = values.reshape(-1, values.shape[-1])
        return tokens[np.linspace(0, len(tokens) - 1, min(len(tokens), VECTORS)).astype(int)]

    @property
    def sources(self) -> Sources:
        """Probes and activations as callables."""
        return Sources(self.probe, self.vectors)

    @cached_property
    def _prompts(self) -> dict[int, tuple[str, int]]:
        table = self.store.samples().to_pydict()
        pairs = zip(table["prompt"], table["seed"], strict=True)
        return dict(zip(table["sample"], pairs, strict=True))

    def original(self, sample: int) -> Original:
        """An unedited sample with its stored labels."""
        prompt, seed = self._prompts[sample]
        few: Sequence[int] = [sample]
        return Original(
            prompt, seed, self.store.read_images("trained", few)[0],
            self.store.read_labels("saliency", few)[0], self.store.read_labels("depth", few)[0],
        )  # fmt: skip
