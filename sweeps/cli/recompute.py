"""Sampling finished shards once more with the model, compared with what is stored."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

import storage
from cluster.process import pinned_threads
from storage.audit import Disagreement
from storage.errors import CorruptChunk, MissingChunk
from sweeps.config.schema import Config
from sweeps.runtime import run
from sweeps.stages.sample import STAGE, SampleTask, SampleWorker

TOLERANCE = 0.01
"""largest difference that counts as rounding, in root mean squares of the stored chunk"""


@dataclass
class Comparison:
    """Compares the recomputed arrays of one shard with the stored ones."""

    store: storage.Store
    task: SampleTask
    exact: bool
    """whether every bit must agree: the store was made with the versions that run now"""
    compared: list[str] = field(default_factory=list)
    found: list[Disagreement] = field(default_factory=list)

    def activation(self, site: str, step: int, values: np.ndarray) -> None:
        """Compares one chunk of activations."""
        self._compare(self.store.layout.activations(self.task.variant, site), step, values)

    def latents(self, step: int, after: np.ndarray, clean: np.ndarray) -> None:
        """Compares the latents after a step and the clean estimates."""
        self._compare(self.store.layout.latents(self.task.variant, "xt"), step, after)
        self._compare(self.store.layout.latents(self.task.variant, "x0"), step, clean)

    def images(self, values: np.ndarray) -> None:
        """Compares the images."""
        self._compare(self.store.layout.images(self.task.variant), None, values)

    def _compare(self, path: str, step: int | None, values: np.ndarray) -> None:
        spec = self.store.array(path)
        key = spec.key(self.task.shard, step)
        stored = np.empty(spec.chunk_shape, spec.dtype)
        self.compared.append(key.path)
        try:
            self.store.chunks.read(spec, key, stored)
        except (CorruptChunk, MissingChunk) as error:
            self._add("recomputed", key.path, str(error).removeprefix(f"{key.path}: "))
            return
        stored = stored[: len(values)]
        size = difference(stored, values)
        detail = f"{np.mean(stored != values):.2%} of the values differ, by up to {size:.3g} root mean squares"
        if size > TOLERANCE:
            self._add("recomputed", key.path, detail)
        elif size and self.exact:
            self._add("rounding", key.path, f"{detail} (other kinds of processors round differently)")

    def _add(self, kind: str, path: str, detail: str) -> None:
        self.found.append(Disagreement(kind, path, STAGE, self.task.variant, self.task.shard, detail))


def difference(stored: np.ndarray, values: np.ndarray) -> float:
    """Largest difference of two arrays of one shape, in root mean squares of the first; 0 for equal bits."""
    if np.array_equal(stored, values):
        return 0.0
    old, new = stored.astype(np.float64), values.astype(np.float64)
    scale = max(float(np.sqrt(np.mean(old**2))), float(np.finfo(np.float32).tiny))
    return float(np.abs(new - old).max()) / scale


def choose(store: storage.Store, variants: Sequence[str], count: int, seed: int) -> list[SampleTask]:
    """At most `count` random finished shards, drawn from all variants alike."""
    done = [SampleTask(variant, shard) for variant in variants for shard in sorted(store.completed(STAGE, variant))]
    return sorted(random.Random(seed).sample(done, min(count, len(done))))


def recompute(config: Config, count: int, seed: int) -> tuple[int, list[Disagreement]]:
    """Samples `count` random finished shards again and returns (chunks compared, disagreements).

    All bits must agree if the store was made with the present versions, otherwise values to a hundredth of their
    root mean square. Raises ValueError if the activations were deleted.
    """
    store = storage.open(config.output)
    if store.cleaned:
        raise ValueError(f"{config.output}: its activations were dropped, so nothing can be compared")
    tasks = choose(store, config.sampling.variants, count, seed)
    if not tasks:
        return 0, []
    versions = store.readable_document(storage.keys.MANIFEST).get("versions", {})
    exact = versions == json.loads(json.dumps(run.versions()))
    comparisons = [Comparison(store, task, exact) for task in tasks]
    with pinned_threads(config.sampling.threads):
        worker = SampleWorker(config, "")
        for comparison in comparisons:
            sample_again(worker, comparison)
    return sum(len(c.compared) for c in comparisons), sorted(item for c in comparisons for item in c.found)


def sample_again(worker: SampleWorker, comparison: Comparison) -> None:
    """Samples the shard of a comparison and compares every array."""
    latents = comparison.latents if worker.store.layout.latent else None
    comparison.images(worker.compute(comparison.task, comparison.activation, latents))


def live(output: str, count: int, write: Callable[[str], None]) -> list[Disagreement]:
    """`recompute` for the command line: writes what was compared, or why nothing could be."""
    seed = random.randrange(10**6)
    try:
        config = run.stored_config(output)
        compared, found = recompute(config, count, seed)
    except (ValueError, OSError) as error:
        write(f"not recomputed: {error}")
        return []
    write(f"{compared} chunks recomputed, {len(found)} disagree (shards drawn with seed {seed})")
    return found
