"""Additional stores inside an output, for arrays that only some probes read.

They are separate so that the layout of the main store does not depend on which experiments run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import storage
from storage import Layout, SiteShape, Store
from sweeps.runtime.layout import TRAINED
from sweeps.runtime.run import Run


def layout(main: Layout, sites: Sequence[SiteShape], latent: tuple[int, ...]) -> Layout:
    """Return arrays for the trained variant's samples, sharded as in the main store."""
    return Layout(
        samples=main.samples,
        shard=main.shard,
        variants=(TRAINED,),
        sites=tuple(sites),
        steps=main.steps,
        image=main.image,
        latent=latent,
        tasks={},
        codec=main.codec,
        sigmas=main.sigmas,
        alphas=main.alphas,
        format=main.format,
    )


def open_if_present(url: str) -> Store | None:
    """Return the store at a URL, or None if there is none."""
    try:
        return storage.open(url)
    except ValueError:
        return None


def missing_steps(run: Run, url: str, records: Mapping[int, str]) -> list[tuple[int, tuple[int, ...]]]:
    """Return (shard, steps) of sampled shards that lack steps; `records` maps steps to stages of completion records.

    Each step has completion records of its own, so that steps can be added later.
    """
    store = open_if_present(url)
    done = {
        step: store.completed(record, TRAINED, stage_hash=run.hashes.sample) if store else set()
        for step, record in records.items()
    }
    sampled = sorted(run.store.completed("sample", TRAINED)) if records else []
    missing = [(shard, tuple(step for step in records if shard not in done[step])) for shard in sampled]
    return [(shard, steps) for shard, steps in missing if steps]


def drop_activations(url: str) -> int:
    """Delete the activations of the store at a URL and return the number of freed bytes."""
    store = open_if_present(url)
    return 0 if store is None else store.drop_activations()
