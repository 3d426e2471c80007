"""`scenesweep status`: how far a run is, by stage: done, running, failed with reason, left, rate and time left."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.config.schema import PREVIEW
from sweeps.runtime import live_status, run
from sweeps.runtime.run import Run
from sweeps.runtime.side_store import open_if_present
from sweeps.stages import curate, label, sample
from sweeps.stages.all import STAGES
from sweeps.stages.base import Stage, StatusRow

WIDTH = 32
"""width of the first column: `sampling` and the longest name of a variant"""


def describe(output: str) -> tuple[str, dict[str, str]]:
    """Return the status of an output as text, and task to reason of what failed.

    Raises ValueError if there is no run.
    """
    preview = f"{output}/{PREVIEW}"
    lines: list[str] = []
    failed: dict[str, str] = {}
    if open_if_present(preview):
        lines, failed = _stages(_reopen(preview), (sample, label, curate), "preview ")
        if not open_if_present(output):
            return "\n".join([*lines, "recording              to do, once the preview is curated"]), failed
    current = _reopen(output)
    more, reasons = _stages(current, STAGES, "")
    if current.store.cleaned:
        more.append("activations were dropped by `scenesweep clean`")
    return "\n".join([*lines, *more]), failed | reasons


def _reopen(output: str) -> Run:
    config = run.stored_config(output)
    return run.reopen(config)


def _stages(current: Run, stages: Sequence[Stage[Any]], prefix: str) -> tuple[list[str], dict[str, str]]:
    """Return the lines of some stages of one store, and their failures."""
    live, layout = live_status.read(current.store), current.store.layout
    lines = [f"{current.config.output}: {layout.samples} samples in {layout.shards} shards"]
    failed: dict[str, str] = {}
    for stage in stages:
        status = stage.status(current, live)
        lines += [_line(row, prefix) for row in status.rows]
        failed |= {f"{prefix}{key}": reason for key, reason in status.failed.items()}
    return lines, failed


def _line(row: StatusRow, prefix: str) -> str:
    title = f"{prefix}{row.title}"
    if row.total is None:
        return f"{title:{WIDTH}} {'done' if row.complete else 'to do':>6}"
    left = max(0, row.total - row.done - row.failed - row.running)
    counts = f"{row.done:>6} done {row.running:>3} running {row.failed:>4} failed {left:>6} to do"
    pace = f"; {row.pace}" if row.pace else ""
    return f"{title:{WIDTH}} {counts}  of {row.total} {row.unit}{pace}"


def grouped(failed: Mapping[str, str]) -> dict[str, str]:
    """Return failures of one stage with one reason as one entry: an example, and how many more there are.

    Reasons that differ only in numbers, such as those of a shard or step, count as one.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for key in sorted(failed):
        reason = re.sub(r"\d+", "#", failed[key])
        groups.setdefault((re.split(r"[/.]", key)[0], reason), []).append(key)
    more = {keys[0]: f" and {len(keys) - 1} more" if len(keys) > 1 else "" for keys in groups.values()}
    return {first + rest: failed[first] for first, rest in more.items()}
