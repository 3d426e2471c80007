"""`scenesweep status`: how far a run is, by stage: done, running, failed with reason, left, rate and time left."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sweeps.cli.style import paint
from sweeps.config.schema import PREVIEW
from sweeps.runtime import live_status, run
from sweeps.runtime.run import Run
from sweeps.runtime.side_store import open_if_present
from sweeps.stages import curate, label, sample
from sweeps.stages.all import STAGES
from sweeps.stages.base import Stage, StatusRow


@dataclass(frozen=True)
class Status:
    """How far a run is."""

    output: str
    samples: int
    shards: int
    rows: list[StatusRow]
    failed: dict[str, str]
    """task to reason"""
    notes: list[str] = field(default_factory=list)


def read(output: str) -> Status:
    """Return the status of an output, its preview first. Raises ValueError if there is no run."""
    preview = f"{output}/{PREVIEW}"
    rows: list[StatusRow] = []
    failed: dict[str, str] = {}
    if open_if_present(preview):
        previewed = run.reopen(run.stored_config(preview))
        rows, failed = _stages(previewed, (sample, label, curate), "preview ")
        if not open_if_present(output):
            layout, notes = previewed.store.layout, ["recording is to do, once the preview is curated"]
            return Status(output, layout.samples, layout.shards, rows, failed, notes)
    current = run.reopen(run.stored_config(output))
    more, reasons = _stages(current, STAGES, "")
    layout = current.store.layout
    notes = ["activations were dropped by `scenesweep clean`"] if current.store.cleaned else []
    return Status(output, layout.samples, layout.shards, rows + more, failed | reasons, notes)


def _stages(current: Run, stages: Sequence[Stage[Any]], prefix: str) -> tuple[list[StatusRow], dict[str, str]]:
    """Return the rows of some stages of one store, and their failures."""
    live = live_status.read(current.store)
    rows: list[StatusRow] = []
    failed: dict[str, str] = {}
    for stage in stages:
        status = stage.status(current, live)
        rows += [replace(row, title=f"{prefix}{row.title}") for row in status.rows]
        failed |= {f"{prefix}{key}": reason for key, reason in status.failed.items()}
    return rows, failed


def lines(status: Status) -> list[str]:
    """Return a status as lines for the terminal, whose words are never broken."""
    rows = [row for row in status.rows if row.total != 0]
    width = max([len(row.title) for row in rows], default=0) + 2
    indent = " " * width
    columns = max(width + 30, shutil.get_terminal_size().columns)
    found = [f"{status.output}: {status.samples} samples in {status.shards} shards"]
    for row in rows:
        wrapped = textwrap.wrap(_counts(row), columns - width, break_long_words=False, break_on_hyphens=False)
        first, *rest = wrapped
        style = "red" if row.failed else "green" if _complete(row) else ""
        text = f"{row.title:{width}}{paint(first, style) if style else first}"
        found += [text, *(indent + line for line in rest)]
    return [*found, *status.notes]


def as_json(status: Status) -> dict[str, object]:
    """Return a status as plain values."""
    return {**vars(status), "rows": [{**vars(row), "complete": _complete(row)} for row in status.rows]}


def _complete(row: StatusRow) -> bool:
    return row.complete if row.total is None else row.done >= row.total


def _counts(row: StatusRow) -> str:
    if row.total is None:
        return "done" if row.complete else "to do"
    left = max(0, row.total - row.done - row.failed - row.running)
    others = {"running": row.running, "failed": row.failed, "to do": left}
    counts = [f"{row.done} of {row.total} {row.unit}{' done' if _complete(row) else ''}"]
    counts += [f"{count} {name}" for name, count in others.items() if count]
    return "; ".join(filter(None, (", ".join(counts), row.pace)))


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
