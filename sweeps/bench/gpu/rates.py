"""The rates that `plan --rates FILE` reads, from what a bench has measured so far."""

from __future__ import annotations

from typing import Any

from sweeps.bench.gpu.record import Record


def of(record: Record) -> dict[str, Any]:
    """Rates of one worker on the card, by the names of `planning.cluster_costs.Rates`; only those that were measured.

    `sampling` is that of recording without a disk, whose own speed is `storage`: a plan takes the slower of the two.
    """
    salient, depth = (record.number("labellers", name) for name in ("tracer", "midas"))
    found = {
        "sampling": record.number("capture", "recording") or record.number("sampling", "sampling"),
        "labelling": 1 / (1 / salient + 1 / depth) if salient and depth else None,
        "probing": record.number("probes", "probing"),
        "overhead": record.number("edits", "overhead"),
        "storage": record.number("capture", "disk"),
    }
    return {name: value for name, value in found.items() if value}
