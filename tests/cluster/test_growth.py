"""Pending workers are visible to Ray as demand and are withdrawn when no task is left for them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from cluster import Session, TaskDone, Waiting, WorkerSpec, resources


@dataclass(frozen=True)
class Nap:
    key: str


def build() -> Any:
    def work(task: Nap) -> dict[str, Any]:
        time.sleep(0.5)
        return {}

    return work


def waiting() -> int:
    """Number of actors of this test that are pending because there is no room."""
    from ray._private.state import state

    rows = state.actor_table(None, None, "PENDING_CREATION").values()
    return sum(str(row["Name"]).startswith("grow.") for row in rows)


def test_demand_is_visible_while_tasks_wait_and_gone_after(ray_local: Session, monkeypatch: Any) -> None:
    from cluster.actors import OnRay

    monkeypatch.setattr(resources, "is_embedded", lambda: False)
    monkeypatch.setattr("cluster.actors.PENDING_S", 0.1)
    seen: list[int] = []
    told: list[str] = []

    def look(event: Any) -> None:
        if isinstance(event, TaskDone):
            seen.append(waiting())
        elif isinstance(event, Waiting):
            told.append(event.reason)

    outcome = OnRay(0, patience_s=60).run(
        [Nap(f"n{i}") for i in range(6)], WorkerSpec(build, count=None, name="grow"), [look]
    )
    assert len(outcome.done) == 6
    assert seen[0] >= 3, "six workers are requested, two fit"
    assert "4 of 6 workers of grow are not ready yet" in told
    end = time.monotonic() + 60
    while waiting():
        assert time.monotonic() < end, "workers are pending though no task is left"
        time.sleep(0.1)
