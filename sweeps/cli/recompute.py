"""Samples finished shards once more with the model and compares what comes out with what is stored."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import storage
from cluster.process import pinned_threads
from storage.audit import Disagreement
from storage.errors import CorruptChunk, MissingChunk
from sweeps.config.schema import Config
from sweeps.runtime import run
from sweeps.stages.sample import STAGE, SampleTask, SampleWorker

TOLERANCE = 0.01
"""largest difference, in root mean squares of the stored chunk, that passes for rounding"""


@dataclass
class Comparison:
    """Compares recomputed arrays with the stored ones of one shard."""

    store: storage.Store
    task: SampleTask
    exact: bool
    """whether every bit must agree: the store was made with the versions that run now"""
    compared: list[str] = field(default_factory=list)
    found: list[Disagreement] = field(default_factory=list)

    def activation(self, site: str, step: int, values: np.ndarray) -> None:
        self._compare(f"activations.zarr/{self.task.variant}/{site}", step, values)

    def latents(self, step: int, after: np.ndarray, clean: np.ndarray) -> None:
        for kind, values in (("xt", after), ("x0", clean)):
            self._compare(f"latents.zarr/{self.task.variant}/{kind}", step, values)

    def images(self, values: np.ndarray) -> None:
        self._compare(f"images.zarr/{self.task.variant}", None, values)

    def _compare(self, path: str, step: int | None, values: np.ndarray) -> None:
        spec = self.store.array(path)
        key = spec.key(self.task.shard, step)
        stored = np.empty(spec.chunk_shape, spec.dtype)
        self.compared.append(key.path)
        try:
            self.store.chunks.read(spec, key, stored)
        except (CorruptChunk, MissingChunk) as error:
            self._note("recomputed", key.path, str(error).removeprefix(f"{key.path}: "))
            return
        stored = stored[: len(values)]
        size = difference(stored, values)
        if size > TOLERANCE or (size and self.exact):
            share = f"{np.mean(stored != values):.2%} of the values differ, by up to {size:.3g} root mean squares"
            kind = "recomputed" if size > TOLERANCE else "rounding"
            hint = "" if size > TOLERANCE else " (another kind of processor rounds otherwise)"
            self._note(kind, key.path, share + hint)

    def _note(self, kind: str, path: str, detail: str) -> None:
        self.found.append(Disagreement(kind, path, STAGE, self.task.variant, self.task.shard, detail))


def difference(stored: np.ndarray, values: np.ndarray) -> float:
    """Largest difference of two arrays of one shape, in root mean squares of the first; 0 for equal bits."""
    if np.array_equal(stored, values):
        return 0.0
    old, new = stored.astype(np.float64), values.astype(np.float64)
    scale = max(float(np.sqrt(np.mean(old**2))), float(np.finfo(np.float32).tiny))
    return float(np.abs(new - old).max()) / scale


def choose(store: storage.Store, variants: Sequence[str], count: int, seed: int) -> list[SampleTask]:
    """At most `count` finished shards at random, all variants alike."""
    done = [SampleTask(variant, shard) for variant in variants for shard in sorted(store.completed(STAGE, variant))]
    return sorted(random.Random(seed).sample(done, min(count, len(done))))


def recompute(config: Config, count: int, seed: int) -> tuple[int, list[Disagreement]]:
    """Samples `count` random finished shards again: (chunks compared, those that disagree).

    Bits must agree where the store was made with the present versions, else values to a hundredth
    of their root mean square. Raises ValueError where the activations were dropped.
    """
    store = storage.open(config.output)
    if store.cleaned:
        raise ValueError(f"{config.output}: its activations were dropped, so nothing can be compared")
    tasks = choose(store, config.sampling.variants, count, seed)
    if not tasks:
        return 0, []
    exact = _versions(store) == json.loads(json.dumps(run.versions()))
    with pinned_threads(config.sampling.threads):
        worker = SampleWorker(config, "")
        ended = [_again(worker, Comparison(store, task, exact)) for task in tasks]
    return sum(len(c.compared) for c in ended), sorted(d for c in ended for d in c.found)


def live(output: str, count: int, say: Callable[[str], None]) -> list[Disagreement]:
    """`recompute` for the command line: says what was done, or why it could not be."""
    seed = random.randrange(10**6)
    try:
        config = run.stored_config(output)
        compared, found = recompute(config, count, seed)
    except (ValueError, OSError) as error:
        say(f"not recomputed: {error}")
        return []
    say(f"{compared} chunks recomputed, {len(found)} disagree (shards drawn with seed {seed})")
    return found


def _versions(store: storage.Store) -> dict[str, Any]:
    return json.loads(store.get(storage.keys.MANIFEST)).get("versions", {})


def _again(worker: SampleWorker, comparison: Comparison) -> Comparison:
    latents = comparison.latents if bool(worker.store.layout.latent) else None
    comparison.images(worker.compute(comparison.task, comparison.activation, latents))
    return comparison
