"""Notes why tasks failed that leave no row and no shard record, for `scenesweep status`; nothing else reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

from storage import Store


def path(stage: str) -> str:
    """Where a stage's reasons are."""
    return f"failed/{stage}.json"


def note(store: Store, stage: str, failed: Mapping[str, str]) -> None:
    """Replaces a stage's reasons, task to reason; without any, the note goes."""
    with suppress(OSError):  # a full disk takes no note; the command's own end tells the reasons
        if failed:
            store.put(path(stage), json.dumps(dict(failed), indent=1, sort_keys=True).encode())
        elif store.exists(path(stage)):
            store.delete(path(stage))


def read(store: Store, stage: str) -> dict[str, str]:
    """Task to reason, as the stage's last run left them; empty where nothing failed or the note is unreadable."""
    try:
        found = json.loads(store.get(path(stage)))
    except (ValueError, FileNotFoundError):
        return {}
    return found if isinstance(found, dict) else {}
