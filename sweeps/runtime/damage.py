"""Damaged small files of a run: found before they are used, named, and cleared away so that a run makes them again."""

from __future__ import annotations

from collections.abc import Iterable

import storage
from storage import Store, audit
from storage.audit import Disagreement
from storage.keys import EXPERIMENTS, MANIFEST


def find(store: Store) -> list[Disagreement]:
    """Return what is damaged among the documents, the tables and the files that rows of the run's settings rest on."""
    return audit.small_files(store, stage_hashes(store))


def stage_hashes(store: Store) -> set[str] | None:
    """Return the hashes of a run's stages and experiments; None, for all rows, if its manifest can't be read."""
    stages = store.readable_document(MANIFEST).get("stages")
    return {*stages.values(), *store.readable_document(EXPERIMENTS).values()} if stages else None


def lines(found: Iterable[Disagreement]) -> list[str]:
    """Return a line for the user for each damaged file."""
    return [f"{item.path}: {item.detail}; it and what rests on it are made again" for item in found]


def refuse(output: str) -> None:
    """Raise ValueError if something that a reader of the finished run needs is damaged."""
    found = find(storage.open(output))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ValueError(
            f"{output}: {found[0].path}: {found[0].detail}{more}; mend it with "
            f"`scenesweep verify {output} --repair`, then `scenesweep run` with the settings of the run"
        )
