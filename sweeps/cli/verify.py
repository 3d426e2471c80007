"""The verb `verify`: every byte of an output reread, a random shard sampled again, and what is wrong repaired."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import storage
from storage import CorruptFile, Store, audit
from storage.audit import REWRITTEN, Disagreement
from sweeps.cli import recompute
from sweeps.config.schema import PREVIEW
from sweeps.runtime import damage, experiments, side_store
from sweeps.runtime.run import stored_config
from sweeps.stages import decode, replay


def execute(output: str, recomputed: int, mend: bool, write: Callable[[str], None]) -> int:
    """Write every disagreement of an output and of the stores inside it, repair them if asked; return their number."""
    main = storage.open(output)
    urls = [f"{output}/{PREVIEW}", *(stage.url(output) for stage in (replay, decode))]
    total = 0
    with main.lease("scenesweep verify") if mend else nullcontext():
        for store in filter(None, (main, *map(side_store.open_if_present, urls))):
            hashes = damage.stage_hashes(store)
            found = audit.verify(store, hashes=hashes)
            if store is main and recomputed:
                found += recompute.live(output, recomputed, write)
            for item in found:
                write(f"{item.kind}: {item.path}: {item.detail}")
            if found and mend:
                _repair(store, found, hashes, write)
                if store is main and any(item.path in REWRITTEN for item in found):
                    _rewrite(output, write)
            total += len(found)
    write(f"{total} disagreements")
    return total


def _repair(store: Store, found: list[Disagreement], hashes: set[str] | None, write: Callable[[str], None]) -> None:
    shards = audit.repair(store, found, hashes)
    if shards:
        write(f"{len(shards)} bad shards are marked; `scenesweep run` redoes them")
    if any(item.kind in audit.SMALL_KINDS for item in found):
        write(f"damaged files are set aside in {storage.keys.SET_ASIDE}; `scenesweep run` makes them again")


def _rewrite(output: str, write: Callable[[str], None]) -> None:
    """Write a run's documents again from its configuration, if that is whole."""
    from sweeps import pipeline

    try:
        experiments.write_hashes(pipeline.prepare(stored_config(output)))
    except (CorruptFile, ValueError) as error:
        write(f"not written again: {error}")
