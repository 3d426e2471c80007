"""The report's facts: table of sites, costs, configuration, provenance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from sweeps.report_context import Context
from sweeps.report_data import RunData, leaves
from sweeps.report_html import Section, folded, paragraph
from sweeps.tables_view import Num, Raw, duration, size, table
from sweeps.tracking_plan import run_id

FAILED_SHOWN = 50


def network(context: Context) -> Section:
    """Table 2 of the paper: the recorded sites with their tokens and channels."""
    rows = [
        [
            s.name,
            s.side,
            f"{s.grid[0]} × {s.grid[1]}",
            s.tokens,
            s.channels,
            Num(size(2 * s.tokens * s.channels)),
        ]
        for s in context.run.sites
    ]
    if not rows:
        return Section("network", "", "", "")
    text = paragraph(
        "Outputs of the self-attention output projections, in the order in which the network runs "
        "them. Only the conditional half of the guided batch is recorded."
    )
    columns = ["Site", "Side", "Grid", "Tokens", "Channels", "Per image and step"]
    caption = f"Recorded sites of {context.model}"
    return Section("network", "The sites", "Network", text + table(caption, columns, rows))


def costs(context: Context) -> Section:
    """Time by stage, bytes by array."""
    run = context.run
    rows: list[list[Any]] = [[what, Num(duration(t))] for what, t in times(run)]
    body = table("Time", ["Stage", "Time"], rows) if rows else ""
    if run.space:
        total = sum(run.space.values())
        kept = [(n, b) for n, b in run.space.items() if b]
        space = [[name, Num(size(count))] for name, count in (*kept, ("all arrays", total))]
        body += table("Planned size on disk, uncompressed", ["Array", "Size"], space)
    return Section("costs", "What it cost", "Costs", body)


def times(run: RunData) -> Iterator[tuple[str, float]]:
    """Seconds by stage: wall time where it was kept, then sums over the rows."""
    yield from ((f"{stage}, wall time", float(t)) for stage, t in run.costs.items())
    for name, label in (("probes", "probe fits"), ("interventions", "interventions")):
        table_ = run.table(name)
        if table_ is not None and "seconds" in table_.column_names:
            total = pc.sum(table_["seconds"]).as_py()
            if total:
                yield f"{label}, sum over rows", float(total)


def provenance(context: Context) -> Section:
    """Configuration, hashes, versions, W&B run ids, failures."""
    run = context.run
    body = _samples_table(context) + _manifest_table(run) + _failures(run)
    settings = yaml.safe_dump(_plain(run.config), sort_keys=False, allow_unicode=True)
    body += folded("Configuration of this run", f"<pre>{escape(settings)}</pre>")
    body += folded("W&B runs", _tracking_table(run))
    return Section("provenance", "Where the numbers come from", "Provenance", body)


def _samples_table(context: Context) -> str:
    run, probes = context.run, context.run.table("probes")
    rows: list[list[Any]] = [
        [words, count]
        for words, column in (
            ("Training images", "n_train"),
            ("Validation images", "n_val"),
            ("Test images", "n_test"),
        )
        if (count := context.count(column)) is not None
    ]
    if probes is not None:
        done = pc.sum(pc.equal(probes["status"], "done")).as_py()
        rows += [["Probes finished", done], ["Probes failed", probes.num_rows - done]]
    images = run.table("images")
    if images is not None:
        rows.append(["Per-image scores", images.num_rows])
    return table("Counts", ["What", "Count"], rows) if rows else ""


def _manifest_table(run: RunData) -> str:
    rows = [[path, Raw(f"<code>{escape(str(v))}</code>")] for path, v in leaves(run.manifest)]
    return table("Manifest of the store", ["Entry", "Value"], rows, kind="text") if rows else ""


def _failures(run: RunData) -> str:
    probes = run.table("probes")
    if probes is None:
        return ""
    failed = probes.filter(pc.equal(probes["status"], "failed"))
    if not failed.num_rows:
        return ""
    columns = [
        c
        for c in ("variant", "site", "step", "task", "control", "error")
        if c in failed.column_names
    ]
    rows = [list(r.values()) for r in _head(failed.select(columns)).to_pylist()]
    caption = f"Failed probes ({failed.num_rows}); the same command runs them again"
    return table(caption, [c.capitalize() for c in columns], rows)


def _head(rows: pa.Table) -> pa.Table:
    return rows.slice(0, FAILED_SHOWN)


def _tracking_table(run: RunData) -> str:
    ids: Sequence[tuple[str, str]] = [
        (f"{v}, {s.name}", run_id(run, v, s.name)) for v in run.variants for s in run.sites
    ]
    ids = [("summary", run_id(run, "summary")), *ids]
    rows = [[name, Raw(f"<code>{i}</code>")] for name, i in ids]
    return table("Identifiers of the mirrored W&B runs", ["Run", "Id"], rows)


def _plain(node: Any) -> Any:
    """The configuration as lists, dictionaries and scalars that YAML can write."""
    if isinstance(node, dict):
        return {str(k): _plain(v) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(v) for v in node]
    return node if isinstance(node, str | int | float | bool | None) else str(node)
