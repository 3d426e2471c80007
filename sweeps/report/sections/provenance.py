"""The report's facts: table of sites, costs, configuration, provenance."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from storage.budget import format_bytes
from sweeps.analysis.tables import RunData, Site, leaves
from sweeps.report.context import Context
from sweeps.report.html import Section, folded, paragraph
from sweeps.report.links import experiment_anchor, site_anchor, site_link
from sweeps.report.tables import Num, Raw, table
from sweeps.runtime.units import format_duration

FAILED_SHOWN = 50


def network(context: Context) -> Section:
    """Table 2 of the paper: the recorded sites with their tokens and channels."""
    rows = [[site_link(s.name), *_shape(s)] for s in context.run.sites]
    if not rows:
        return Section("network", "", "", "")
    text = paragraph(
        "Outputs of the self-attention output projections, in the order in which the network runs "
        "them. Only the conditional half of the guided batch is recorded."
    )
    columns = ["Site", "Side", "Grid", "Tokens", "Channels", "Per image and step"]
    caption = f"Recorded sites of {context.model}"
    body = text + table(caption, columns, rows)
    for name, found in context.families.items():
        sites = next(iter(found.values())).sites
        if name in ("conv", "vae"):
            further = [[s.name, *_shape(s)] for s in sites]
            body += folded(f"Sites of experiment {name}", table(f"Sites of experiment {name}", columns, further))
    return Section("network", "The sites", "Network", body)


def _shape(site: Site) -> list[Any]:
    grid = f"{site.grid[0]} × {site.grid[1]}"
    return [site.side, grid, site.tokens, site.channels, Num(format_bytes(2 * site.tokens * site.channels))]


def costs(context: Context) -> Section:
    """Time by stage, machines, bytes by array."""
    run = context.run
    rows: list[list[Any]] = [[what, Num(format_duration(t))] for what, t in times(run)]
    body = table("Time", ["Stage", "Time"], rows) if rows else ""
    body += _machines_table(run)
    if run.space:
        total = sum(run.space.values())
        kept = [(n, b) for n, b in run.space.items() if b]
        space = [[name, Num(format_bytes(count))] for name, count in (*kept, ("all arrays", total))]
        body += table("Planned size on disk, uncompressed", ["Array", "Size"], space)
    return Section("costs", "What it cost", "Costs", body)


def _machines_table(run: RunData) -> str:
    """The machines of each session with Ray, and how many workers each stage had."""
    columns = ["Where", "Machines", "CPUs", "GPUs", "GPU models", "Workers at once, by stage", "Ray"]
    rows = [
        [*(one.get(name, "") for name in ("address", "nodes", "cpus", "gpus")), _models(one), _workers(one),
         one.get("ray", "")]
        for one in run.cluster
    ]  # fmt: skip
    return table("Machines that the run was carried out on", columns, rows) if rows else ""


def _models(session: dict[str, Any]) -> str:
    """GPU models with the number of machines that have them."""
    return ", ".join(f"{one['gpu']} on {one['nodes']}" for one in session.get("kinds", ()) if one["gpu"])


def _workers(session: dict[str, Any]) -> str:
    return ", ".join(f"{stage} {most}" for stage, most in session["workers"].items())


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
    body = _samples_table(context) + _experiments_table(run) + _manifest_table(run) + _failures(run)
    settings = yaml.safe_dump(_plain(run.config), sort_keys=False, allow_unicode=True)
    body += folded("Configuration of this run", f"<pre>{escape(settings)}</pre>")
    body += folded("Each site: its probes and its W&B runs", _sites_table(context))
    return Section("provenance", "Where the numbers come from", "Provenance", body)


def _samples_table(context: Context) -> str:
    run, probes = context.run, context.run.table("probes")
    rows: list[list[Any]] = [
        [words, count]
        for words, column in (("Training images", "n_train"), ("Validation images", "n_val"), ("Test images", "n_test"))
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
    columns = [c for c in ("variant", "site", "step", "task", "control", "error") if c in failed.column_names]
    rows = [list(r.values()) for r in _head(failed.select(columns)).to_pylist()]
    caption = f"Failed probes ({failed.num_rows}); the same command runs them again"
    return table(caption, [c.capitalize() for c in columns], rows)


def _head(rows: pa.Table) -> pa.Table:
    return rows.slice(0, FAILED_SHOWN)


def _code(text: object) -> Raw:
    return Raw(f"<code>{escape(str(text))}</code>")


def _experiments_table(run: RunData) -> str:
    """What each experiment's numbers rest on: hash, cells, images, W&B run; anchors for links."""
    probes, images = run.table("probes"), run.table("images")
    found = {name for t in (probes, images) if t is not None for name in pc.unique(t["experiment"]).to_pylist()}
    rows = [_experiment_row(run, name) for name in sorted(found - {None}, key=lambda n: (n != run.experiment, n))]
    if not rows:
        return ""
    columns = ["Experiment", "Stage hash", "Finished cells", "Test images", "W&B run"]
    return table("What the numbers of each experiment rest on", columns, rows)


def _experiment_row(run: RunData, name: str) -> list[Any]:
    counts, hashes = [0, 0], set()
    for place, (table_name, column) in enumerate((("probes", "status"), ("images", "sample"))):
        rows = run.table(table_name)
        mine = None if rows is None else rows.filter(pc.equal(rows["experiment"], name))
        if mine is None or not mine.num_rows:
            continue
        hashes |= set(mine["stage_hash"].to_pylist())
        done = pc.sum(pc.equal(mine[column], "done")).as_py() if place == 0 else pc.count_distinct(mine[column]).as_py()
        counts[place] = done
    anchor = Raw(f'<span id="{experiment_anchor(name)}">{escape(name)}</span>')
    where = "one for each site, below" if name == run.experiment else _code(run.wandb_id("summary"))
    return [anchor, _code(", ".join(sorted(map(str, hashes)))), *counts, where]


def _sites_table(context: Context) -> str:
    run, probes = context.run, context.run.table("probes")
    if probes is None:
        return ""
    mine = probes.filter(pc.and_(pc.equal(probes["experiment"], run.experiment), pc.equal(probes["status"], "done")))
    counts = dict((row["values"], row["counts"]) for row in pc.value_counts(mine["site"]).to_pylist())
    split = [context.count(f"n_{part}") for part in ("train", "val", "test")]
    images = " / ".join("–" if n is None else str(n) for n in split)
    rows = [
        [
            Raw(f'<span id="{site_anchor(s.name)}">{escape(s.name)}</span>'),
            counts.get(s.name, 0),
            images,
            _code(run.probe_stage_hash),
            *(_code(run.wandb_id(v, s.name)) for v in run.variants),
        ]
        for s in run.sites
    ]
    columns = ["Site", "Finished cells", "Train / val / test images", "Stage hash"]
    columns += [f"W&B, {variant}" for variant in run.variants]
    whole = paragraph(f"The summary run is <code>{run.wandb_id('summary')}</code>.")
    return table("Probes and mirrored W&B runs of each site", columns, rows) + whole


def _plain(node: Any) -> Any:
    """The configuration as lists, dictionaries and scalars that YAML can write."""
    if isinstance(node, dict):
        return {str(k): _plain(v) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(v) for v in node]
    return node if isinstance(node, str | int | float | bool | None) else str(node)
