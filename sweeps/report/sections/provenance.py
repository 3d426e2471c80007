"""The report's facts: recorded sites, costs, configuration, provenance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc
import yaml
from markupsafe import Markup

from storage.budget import format_bytes
from sweeps.analysis.tables import RunData, Site, leaves
from sweeps.analysis.vocabulary import EXPERIMENT_TITLES, KIND_NOUNS, variant_title
from sweeps.analysis.words import listed
from sweeps.config.schema import GRID
from sweeps.report.context import Context
from sweeps.report.links import code, experiment_anchor, site_anchor, site_link
from sweeps.report.page import Block, Code, Folded, Paragraph, Section
from sweeps.report.tables import Cell, Num, Table, grid_size
from sweeps.runtime.layout import wandb_page
from sweeps.runtime.units import format_duration

FAILED_SHOWN = 50
"""failed probes listed on the page"""


def network(context: Context) -> Section:
    """Table 2 of the paper: the recorded sites with their tokens and channels."""
    if not context.run.sites:
        return Section("network")
    outputs = listed([KIND_NOUNS[kind] for kind in dict.fromkeys(site.kind for site in context.run.sites)])
    text = (
        f"Outputs of {outputs}, in the order in which the network runs them. Only the conditional half of the guided "
        "batch is recorded."
    )
    columns = ["Site", "Side", "Grid", "Tokens", "Channels", "Per image and step"]
    rows = [[site_link(s.name), *_shape(s)] for s in context.run.sites]
    blocks: list[Block] = [Paragraph(text), Table(f"Recorded sites of {context.model}", columns, rows)]
    for name, found in context.families.items():
        if name in ("conv", "vae"):
            title = f"Sites of the experiment “{EXPERIMENT_TITLES[name]}”"
            rows = [[s.name, *_shape(s)] for s in next(iter(found.values())).sites]
            blocks.append(Folded(title, [Table(title, columns, rows)]))
    return Section("network", "The sites", "Network", blocks)


def _shape(site: Site) -> list[Cell]:
    size = Num(format_bytes(2 * site.tokens * site.channels))  # activations are float16
    return [site.side, grid_size(site.grid), site.tokens, site.channels, size]


def costs(context: Context) -> Section:
    """Time by stage, machines, bytes by array."""
    run = context.run
    blocks: list[Block] = []
    if rows := [[stage, Num(format_duration(seconds))] for stage, seconds in times(run)]:
        blocks.append(Table("Time", ["Stage", "Time"], rows))
    if run.cluster:
        columns = ["Address", "Machines", "CPUs", "GPUs", "GPU models", "Workers at once, by stage", "Ray"]
        sessions = []
        for one in run.cluster:
            models = ", ".join(f"{kind['gpu']} on {kind['nodes']}" for kind in one.get("kinds", ()) if kind["gpu"])
            workers = ", ".join(f"{stage} {most}" for stage, most in one["workers"].items())
            facts = [one.get(name, "") for name in ("address", "nodes", "cpus", "gpus")]
            sessions.append([*facts, models, workers, one.get("ray", "")])
        blocks.append(Table("Machines on which the run was executed", columns, sessions))
    if run.space:
        arrays = {name: count for name, count in run.space.items() if count} | {"all arrays": sum(run.space.values())}
        rows = [[name, Num(format_bytes(count))] for name, count in arrays.items()]
        blocks.append(Table("Planned size on disk, uncompressed", ["Array", "Size"], rows))
    return Section("costs", "What it cost", "Costs", blocks)


def times(run: RunData) -> Iterator[tuple[str, float]]:
    """Seconds by stage: wall time if it was recorded, then sums over the rows."""
    yield from ((f"{stage}, wall time", float(t)) for stage, t in run.costs.items())
    for name, label in (("probes", "probe fits"), ("interventions", "interventions")):
        table = run.table(name)
        if table is not None and "seconds" in table.column_names:
            if total := pc.sum(table["seconds"]).as_py():
                yield f"{label}, sum over rows", float(total)


def provenance(context: Context) -> Section:
    """Configuration, hashes, versions, W&B run ids, failures."""
    run = context.run
    blocks: list[Block] = [*_counts(context), *_experiments(run)]
    if manifest := [[path, code(value)] for path, value in leaves(run.manifest)]:
        blocks.append(Table("Manifest of the store", ["Entry", "Value"], manifest, style="text"))
    blocks += _failures(run)
    settings = yaml.safe_dump(_plain(run.config), sort_keys=False, allow_unicode=True)
    blocks.append(Folded("Configuration of this run", [Code(settings)]))
    if sites := _sites(context):
        blocks.append(Folded("Each site: its probes and its W&B runs", sites))
    return Section("provenance", "Where the numbers come from", "Provenance", blocks)


def _counts(context: Context) -> list[Table]:
    """Numbers of images and of rows; empty without any."""
    names = {"Training images": "n_train", "Validation images": "n_val", "Test images": "n_test"}
    counts = {name: context.count(column) for name, column in names.items()}
    probes, images = context.run.table("probes"), context.run.table("images")
    if probes is not None:
        done = pc.sum(pc.equal(probes["status"], "done")).as_py()
        counts |= {"Probes finished": done, "Probes failed": probes.num_rows - done}
    if images is not None:
        counts["Per-image scores"] = images.num_rows
    rows = [[name, count] for name, count in counts.items() if count is not None]
    return [Table("Counts", ["What", "Count"], rows)] if rows else []


def _failures(run: RunData) -> list[Table]:
    """The first failed probes with their errors; empty without failures."""
    probes = run.table("probes")
    failed = None if probes is None else probes.filter(pc.equal(probes["status"], "failed"))
    if failed is None or not failed.num_rows:
        return []
    columns = [c for c in ("variant", "site", "step", "task", "control", "error") if c in failed.column_names]
    rows = [list(row.values()) for row in failed.select(columns).slice(0, FAILED_SHOWN).to_pylist()]
    caption = f"Failed probes ({failed.num_rows}); the same command runs them again"
    return [Table(caption, [c.capitalize() for c in columns], rows)]


def _experiments(run: RunData) -> list[Table]:
    """Origin of each experiment's numbers: hash, probes, images, W&B run; with anchors for links."""
    probes, images = run.table("probes"), run.table("images")
    names = {name for t in (probes, images) if t is not None for name in pc.unique(t["experiment"]).to_pylist()}
    rows = [_experiment_row(run, name) for name in sorted(names - {None}, key=lambda n: (n != GRID, n))]
    columns = ["Experiment", "Stage hash", "Finished probes", "Test images", "W&B run"]
    return [Table("Origin of each experiment’s numbers", columns, rows)] if rows else []


def _experiment_row(run: RunData, name: str) -> list[Cell]:
    counts, hashes = [0, 0], set()
    for place, (table, column) in enumerate((("probes", "status"), ("images", "sample"))):
        rows = run.table(table)
        own = None if rows is None else rows.select(["stage_hash", column]).filter(pc.equal(rows["experiment"], name))
        if own is None or not own.num_rows:
            continue
        hashes |= set(pc.unique(own["stage_hash"]).to_pylist())
        count = pc.sum(pc.equal(own[column], "done")) if table == "probes" else pc.count_distinct(own[column])
        counts[place] = count.as_py()
    anchor = Markup('<span id="{}">{}</span>').format(experiment_anchor(name), name)
    wandb_run = "one for each site, below" if name == GRID else code(run.wandb_id("summary"))
    return [anchor, code(", ".join(sorted(map(str, hashes)))), *counts, wandb_run]


def _sites(context: Context) -> list[Block]:
    """Probes, hash and W&B runs of every site of the main grid; empty without probes."""
    run, probes = context.run, context.run.table("probes")
    if probes is None:
        return []
    done = pc.and_(pc.equal(probes["experiment"], GRID), pc.equal(probes["status"], "done"))
    counts = {c["values"]: c["counts"] for c in pc.value_counts(probes.filter(done)["site"]).to_pylist()}
    split = [context.count(f"n_{part}") for part in ("train", "val", "test")]
    images = " / ".join("–" if n is None else str(n) for n in split)
    rows = [
        [
            Markup('<span id="{}">{}</span>').format(site_anchor(s.name), s.name),
            counts.get(s.name, 0),
            images,
            code(run.probe_stage_hash),
            *(code(run.wandb_id(v, s.name)) for v in run.variants),
        ]
        for s in run.sites
    ]
    columns = ["Site", "Finished probes", "Train / val / test images", "Stage hash"]
    columns += [f"W&B, {variant_title(v)}" for v in run.variants]
    project = str(run.setting("tracking.project") or "scenesweep")
    place = wandb_page(str(run.setting("tracking.entity") or ""), project, run.group)
    linked = Markup('<a href="{0}">{0}</a>').format(place) if run.setting("tracking.entity") else place
    summary = Paragraph(Markup("The summary run is {}; all are in {}.").format(code(run.wandb_id("summary")), linked))
    return [Table("Probes and W&B runs of each site", columns, rows), summary]


def _plain(node: Any) -> Any:
    """The configuration as lists, dictionaries and scalars that YAML can write."""
    if isinstance(node, dict):
        return {str(k): _plain(v) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(v) for v in node]
    return node if isinstance(node, str | int | float | bool | None) else str(node)
