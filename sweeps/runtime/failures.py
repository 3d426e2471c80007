"""Reasons of failed tasks that leave neither a table row nor a record, for `scenesweep status` only."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from storage import Store


def path(stage: str) -> str:
    """Return the path of a stage's reasons in the store."""
    return f"failed/{stage}.json"


def write(store: Store, stage: str, failed: Mapping[str, str]) -> None:
    """Replace the reasons of a stage, given as task to reason; remove the file if there are none."""
    with suppress(OSError):  # a full disk takes no note; the command reports the reasons when it ends
        if failed:
            store.put_document(path(stage), dict(failed))
        elif store.exists(path(stage)):
            store.delete(path(stage))


def read(store: Store, stage: str) -> dict[str, str]:
    """Return task to reason of the stage's last execution; empty if nothing failed or the file is unreadable."""
    return store.readable_document(path(stage))
