"""Contents of a sweep's W&B summary run: tables, the report's figures and pictures, a reference to the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sweeps.analysis import summary
from sweeps.analysis.scores import Scores
from sweeps.analysis.tables import RunData
from sweeps.report import thumbnails
from sweeps.report.build import Drawn
from sweeps.report.context import Context
from sweeps.report.gallery.probes import Example
from sweeps.report.page import TitledStrip


def fill(run: Any, drawn: Drawn, store: Any) -> None:
    """Log everything to an open W&B run."""
    context, data = drawn.context, drawn.context.run
    logged: dict[str, Any] = figures(drawn) | pictures(drawn)
    for name in ("probes", "interventions"):
        table = data.table(name)
        if table is not None:
            logged[f"tables/{name}"] = results_table(table)
    if context.examples:
        logged["tables/examples"] = example_table(context.examples)
    logged["tables/claims"] = claim_table(context)
    run.log(logged)
    run.summary.update(headline_numbers(context) | {f"claims/{c.key}": c.verdict for c in context.claims})
    run.summary.update(cluster_numbers(data))
    run.log_artifact(reference(data, store.url))


def figures(drawn: Drawn) -> dict[str, Any]:
    """Every figure of the report under its name, with its title."""
    import wandb

    return {f"figures/{p.name}": wandb.Image(p.png(), caption=p.title) for p in drawn.figures}


def pictures(drawn: Drawn) -> dict[str, Any]:
    """By section, the report's strips of pictures, each as one image with its title and captions."""
    import wandb

    found: dict[str, list[TitledStrip]] = {}
    for strip in drawn.strips:
        found.setdefault(f"pictures/{strip.section}", []).append(strip)
    return {
        name: [
            wandb.Image(sheet, caption=strip.words)
            for sheet, strip in zip(thumbnails.sheets([s.pictures for s in strips]), strips, strict=True)
        ]
        for name, strips in found.items()
    }


def results_table(table: pa.Table) -> Any:
    """A W&B table with the columns of a results table.

    Types come from the schema and rows go straight into `data`: W&B's own check of every cell
    takes seconds for a grid.
    """
    import wandb

    kinds = [str if pa.types.is_string(f.type) else float for f in table.schema]
    found = wandb.Table(columns=table.column_names, dtype=kinds, optional=True)
    rows = table.slice(0, wandb.Table.MAX_ROWS).to_pylist()
    found.data.extend(list(row.values()) for row in rows)
    return found


def claim_table(context: Context) -> Any:
    """The paper's five claims with rule, verdict and evidence."""
    import wandb

    names = ("name", "verdict", "evidence", "rule")
    return wandb.Table(columns=[*names], data=[[getattr(c, n) for n in names] for c in context.claims])


def headline_numbers(context: Context) -> dict[str, Any]:
    """The report's headline as summary values."""
    found: dict[str, Any] = {}
    for task, scores in context.scores.items():
        found |= {f"{task}/{k}": v for k, v in _headline(scores) if v is not None}
    for task, one in context.headlines.items():
        found |= {f"{task}/best_rival": one.baseline.name, f"{task}/gain_over_best_rival": one.gain.estimate}
    return found


def cluster_numbers(data: RunData) -> dict[str, Any]:
    """The machines of the last session with Ray as summary values; empty where there was none."""
    if not data.cluster:
        return {}
    *_, last = data.cluster
    found = {name: last[name] for name in ("ray", "address", "nodes", "cpus", "gpus") if name in last}
    models = ", ".join(dict.fromkeys(one["gpu"] for one in last.get("kinds", ()) if one["gpu"]))
    workers = {f"workers/{stage}": most for stage, most in last["workers"].items()}
    return {f"cluster/{name}": value for name, value in (found | {"gpu_models": models} | workers).items()}


def _headline(scores: Scores) -> Iterator[tuple[str, Any]]:
    label = scores.measure.score
    best = summary.best_site(scores)
    if best is not None:
        yield "best_site", scores.sites[best].name
        yield f"best_{label}", summary.final(scores, "trained", scores.sites[best].name).estimate
    if not scores.which("decoder"):
        return
    yield f"decoder_{label}", summary.final(scores, "trained", "decoder").estimate
    for other in summary.contrasts(scores):
        gap = summary.gap(scores, "decoder", other)
        yield f"gap_{other}", gap.estimate
        yield f"gap_{other}_low", gap.low
        yield f"gap_{other}_high", gap.high
    emergence = summary.emergence(scores, "trained", "decoder").estimate
    yield "emergence_step", emergence if np.isfinite(emergence) else None


def example_table(examples: list[Example]) -> Any:
    """Test images with label and prediction maps, one row each."""
    import wandb

    rows = [dict(_example_cells(example)) for example in examples]
    names = list(rows[0])
    return wandb.Table(columns=[*names], data=[[row[name] for name in names] for row in rows])


def _example_cells(example: Example) -> Iterator[tuple[str, Any]]:
    import wandb

    yield "sample", example.sample
    yield "caption", example.caption
    yield "image", wandb.Image(example.image)
    for r in example.readings:
        maps = {"label": r.label, **{f"step {s}": p for s, p in r.predictions.items()}}
        for name, values in maps.items():
            yield (f"{r.task} {name}", wandb.Image(thumbnails.colour_map(values, r.task, *r.limits)))


def reference(data: RunData, url: str) -> Any:
    """An artifact that points at the store without reading it."""
    import wandb

    address = url if "://" in url else Path(url).resolve().as_uri()
    artifact = wandb.Artifact(f"{data.name}-store", type="store", metadata=data.manifest)
    artifact.add_reference(address, name="store", checksum=False)
    return artifact
