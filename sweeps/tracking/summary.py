"""Contents of a sweep's W&B summary run: tables, the report's figures and images, a reference to the store."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from storage import Store
from sweeps.analysis import summary
from sweeps.analysis.scores import Scores
from sweeps.analysis.tables import RunData
from sweeps.report import thumbnails
from sweeps.report.build import Drawn
from sweeps.report.context import Context
from sweeps.report.gallery.probes import Example
from sweeps.report.page import TitledStrip
from sweeps.runtime.layout import PAGE

if TYPE_CHECKING:
    import wandb


def fill(run: wandb.Run, drawn: Drawn, store: Store) -> None:
    """Log everything to an open W&B run."""
    context, data = drawn.context, drawn.context.run
    logged: dict[str, object] = {**figures(drawn), **pictures(drawn)}
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
    for artifact in artifacts(data, store):
        run.log_artifact(artifact)


def figures(drawn: Drawn) -> dict[str, wandb.Image]:
    """Every figure of the report under its name, with its title."""
    import wandb

    return {f"figures/{p.name}": wandb.Image(p.png(), caption=p.title) for p in drawn.figures}


def pictures(drawn: Drawn) -> dict[str, list[wandb.Image]]:
    """The report's strips of images by section, each strip as one image with its title and captions."""
    import wandb

    by_section: dict[str, list[TitledStrip]] = {}
    for strip in drawn.strips:
        by_section.setdefault(f"pictures/{strip.section}", []).append(strip)
    return {
        name: [
            wandb.Image(sheet, caption=strip.words)
            for sheet, strip in zip(thumbnails.sheets([s.pictures for s in strips]), strips, strict=True)
        ]
        for name, strips in by_section.items()
    }


def results_table(table: pa.Table) -> wandb.Table:
    """A W&B table with the columns of a results table.

    Types come from the schema and rows go straight into `data`, because W&B's own check of every cell takes seconds
    for a grid.
    """
    import wandb

    types = [str if pa.types.is_string(f.type) else float for f in table.schema]
    result = wandb.Table(columns=table.column_names, dtype=types, optional=True)
    rows = table.slice(0, wandb.Table.MAX_ROWS).to_pylist()
    result.data.extend(list(row.values()) for row in rows)
    return result


def claim_table(context: Context) -> wandb.Table:
    """The paper's five claims with rule, verdict and evidence."""
    import wandb

    names = ("name", "verdict", "evidence", "rule")
    return wandb.Table(columns=[*names], data=[[getattr(c, n) for n in names] for c in context.claims])


def headline_numbers(context: Context) -> dict[str, float | str]:
    """The report's headline as summary values."""
    values: dict[str, float | str] = {}
    for task, scores in context.scores.items():
        values |= {f"{task}/{name}": value for name, value in _task_numbers(scores)}
    for task, headline in context.headlines.items():
        values[f"{task}/best_baseline"] = headline.baseline.name
        values[f"{task}/gain_over_best_baseline"] = headline.gain.estimate
    return values


def _task_numbers(scores: Scores) -> Iterator[tuple[str, float | str]]:
    label, best = scores.measure.score, summary.best_site(scores)
    if best is not None:
        yield "best_site", scores.sites[best].name
        yield f"best_{label}", summary.final(scores, "trained", scores.sites[best].name).estimate
    rise = summary.emergence(scores, "trained", scores.lead_part)
    if rise.found:
        yield "emergence_step", rise.step.estimate
    if not scores.site_indices("decoder"):
        return
    yield f"decoder_{label}", summary.final(scores, "trained", "decoder").estimate
    for other in summary.other_variants(scores):
        gain = summary.gap(scores, "decoder", other)
        yield f"gap_{other}", gain.estimate
        yield f"gap_{other}_low", gain.low
        yield f"gap_{other}_high", gain.high


def cluster_numbers(run: RunData) -> dict[str, int | str]:
    """The machines of the last session with Ray as summary values; empty if there was none."""
    if not run.cluster:
        return {}
    session = run.cluster[-1]
    values: dict[str, int | str] = {
        name: session[name] for name in ("ray", "address", "nodes", "cpus", "gpus") if name in session
    }
    values["gpu_models"] = ", ".join(dict.fromkeys(node["gpu"] for node in session.get("kinds", ()) if node["gpu"]))
    values |= {f"workers/{stage}": most for stage, most in session["workers"].items()}
    return {f"cluster/{name}": value for name, value in values.items()}


def example_table(examples: Sequence[Example]) -> wandb.Table:
    """Test images with label and prediction maps, one row each."""
    import wandb

    rows = []
    for example in examples:
        row: dict[str, int | str | wandb.Image] = {
            "sample": example.sample,
            "caption": example.caption,
            "image": wandb.Image(example.image),
        }
        for r in example.readings:
            maps = {"label": r.label, **{f"step {step}": map_ for step, map_ in r.predictions.items()}}
            for name, values in maps.items():
                row[f"{r.task} {name}"] = wandb.Image(thumbnails.colour_map(values, r.task, *r.limits))
        rows.append(row)
    names = list(rows[0])
    return wandb.Table(columns=[*names], data=[[row[name] for name in names] for row in rows])


def artifacts(run: RunData, store: Store) -> Iterator[wandb.Artifact]:
    """What the summary run leaves behind: the store and its probes, which stay where they are, and the report's page.

    W&B records them as outputs of the summary run, also offline, and each names the store that it was made from.
    """
    import wandb

    yield reference(run, "store", store.url, run.manifest)
    origin = {"store": artifact_name(run, "store"), **run.addresses}
    if store.holds("probes/"):
        yield reference(run, "probes", f"{store.url}/probes", origin)
    if store.exists(PAGE):
        report = wandb.Artifact(artifact_name(run, "report"), type="report", metadata=origin)
        with report.new_file("index.html", mode="wb") as file:
            file.write(store.get(PAGE))
        yield report


def artifact_name(run: RunData, kind: str) -> str:
    """Name of one of the sweep's artifacts, of the letters, digits and few signs that W&B takes there."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', run.group)}-{kind}"


def reference(run: RunData, kind: str, url: str, metadata: Mapping[str, object]) -> wandb.Artifact:
    """An artifact that points at a place without reading it."""
    import wandb

    address = url if "://" in url else Path(url).resolve().as_uri()
    artifact = wandb.Artifact(artifact_name(run, kind), type=kind, metadata=dict(metadata))
    artifact.add_reference(address, name=kind, checksum=False)
    return artifact
