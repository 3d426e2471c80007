"""Tiny stores for the storage tests: a layout with a short last shard, and noise to fill it."""

from collections.abc import Iterable

import numpy as np
import zarr.storage

from storage import Layout, SiteShape, Store
from storage.backends.files import LocalFiles
from storage.backends.objects import ObjectFiles

SITES = (SiteShape("down.0.0", 16, 8), SiteShape("mid.0", 4, 12))


def tiny_layout(**changes: object) -> Layout:
    """10 samples in shards of 4 (so the last has 2), 3 steps."""
    settings = {
        "samples": 10, "shard": 4, "variants": ("trained", "random"), "sites": SITES, "steps": 3,
        "image": (8, 6), "latent": (4, 2, 3),
    }  # fmt: skip
    return Layout(**(settings | changes))


def noise(seed: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Reproducible values of any dtype."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "u":
        return rng.integers(0, 256, shape, dtype=dtype)
    return rng.normal(size=shape).astype(dtype)


def activation(layout: Layout, site: SiteShape, step: int, shard: int) -> np.ndarray:
    """What `fill` writes for one site, step and shard."""
    shape = (len(layout.shard_samples(shard)), site.tokens, site.channels)
    return noise(1000 * step + 10 * shard + len(site.name), shape, site.dtype)


def fill_shard(store: Store, variant: str, shard: int) -> None:
    """Write every array of one shard of the sampling stage and complete it."""
    layout = store.layout
    count = len(layout.shard_samples(shard))
    for step in range(1, layout.steps + 1):
        for site in layout.sites if step in layout.recorded_steps else ():
            store.write_activation(variant, site.name, step, shard, activation(layout, site, step, shard))
        latent = noise(step, (count, *layout.latent), "float32")
        store.write_latents(variant, shard, step, latent, -latent)
    store.write_images(variant, shard, noise(shard, (count, *layout.image, 3), "uint8"))
    store.complete("sample", variant, shard)


def fill(store: Store, variants: Iterable[str] = ("trained", "random")) -> Store:
    """Sample every shard of the variants."""
    for variant in variants:
        for shard in range(store.layout.shards):
            fill_shard(store, variant, shard)
    return store


def label_shard(store: Store, shard: int) -> None:
    """Write and complete the labels of one shard."""
    shape = (len(store.layout.shard_samples(shard)), *store.layout.image)
    for task, dtype in store.layout.tasks.items():
        store.write_labels(task, shard, noise(shard, shape, dtype))
    store.complete("label", "trained", shard)


def contents(store: Store) -> dict[str, bytes]:
    """Every file of a store, by path."""
    return {path: store.get(path) for path in store.list()}


def zarr_store(store: Store) -> zarr.storage.LocalStore | zarr.storage.ObjectStore:
    """The store for zarr-python, which reads it without our code."""
    if isinstance(store.files, LocalFiles):
        return zarr.storage.LocalStore(store.files.root, read_only=True)
    assert isinstance(store.files, ObjectFiles)
    return zarr.storage.ObjectStore(store.files.store, read_only=True)
