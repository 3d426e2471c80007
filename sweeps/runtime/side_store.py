"""Stores of their own inside an output, for what only some probes read: the main store never depends on which."""

from __future__ import annotations

from collections.abc import Sequence

import storage
from storage import Layout, SiteShape, Store
from sweeps.runtime.layout import VARIANT


def layout(main: Layout, sites: Sequence[SiteShape], latent: tuple[int, ...]) -> Layout:
    """Arrays of the trained network's samples, sharded as in the main store."""
    return Layout(
        samples=main.samples,
        shard=main.shard,
        variants=(VARIANT,),
        sites=tuple(sites),
        steps=main.steps,
        image=main.image,
        latent=latent,
        tasks={},
        codec=main.codec,
    )


def opened(url: str) -> Store | None:
    """The store at a URL, None where there is none."""
    try:
        return storage.open(url)
    except ValueError:
        return None


def clean(url: str) -> int:
    """Drops the activations of the store at a URL; the bytes freed."""
    store = opened(url)
    return 0 if store is None else store.drop_activations()
