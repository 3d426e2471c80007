"""Which W&B runs mirror a sweep, and what each holds, from the tables alone."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sweeps.analysis.tables import RunData, Site
from sweeps.runtime.machines import of_stage

VERSION = 3
STEP, EPOCH = "denoising_step", "epoch"
CURVES = "epochs"
"""prefix of the loss curves in a site's run"""
_KEYS = {
    "experiment", "variant", "site", "block", "index", "step", "task", "control", "seed", "status",
    "error", "attempt", "stage_hash", "tokens", "channels", "n_train", "n_val", "n_test",
}  # fmt: skip


@dataclass(frozen=True)
class PlannedRun:
    """One W&B run: identity, configuration, one history row per x, summary."""

    id: str
    name: str
    job_type: str
    tags: tuple[str, ...]
    config: dict[str, Any]
    axis: str
    """the metric that is the x axis"""
    history: list[dict[str, float]] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    """loss curves, one row per epoch, beside a history by denoising step"""
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Hash of everything the run shows; equal digests need no second writing."""
        parts = (VERSION, self.name, self.tags, self.config, self.history, self.epochs, self.summary)
        return digest(json.dumps(parts, sort_keys=True, default=str))


def digest(text: str) -> str:
    """Sixteen hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plan(run: RunData, runs: str) -> list[PlannedRun]:
    """The runs of a sweep, one per (variant, site) or, with `runs="cell"`, per probe."""
    if runs not in ("site", "cell"):
        raise ValueError(f"tracking.runs={runs!r}: expected 'site' or 'cell'")
    rows = [r for r in _rows(run.table("probes")) if r["experiment"] == run.experiment]
    return list(_by_site(run, rows) if runs == "site" else _by_cell(run, rows))


def _rows(table: pa.Table | None) -> list[dict[str, Any]]:
    if table is None:
        return []
    return table.filter(pc.equal(table["status"], "done")).to_pylist()


def _grouped(rows: Iterable[dict[str, Any]], *keys: str) -> dict[tuple, list[dict[str, Any]]]:
    groups: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[k] for k in keys)].append(row)
    return dict(sorted(groups.items()))


def _by_site(run: RunData, rows: list[dict[str, Any]]) -> Iterator[PlannedRun]:
    sites = {s.name: s for s in run.sites}
    curves = _curves(_losses(run))
    lowest = min((row["seed"] for row in rows), default=0)
    reported = [row for row in rows if row["seed"] == lowest]
    for (variant, name), members in _grouped(reported, "variant", "site").items():
        if name not in sites:
            continue
        history = [{STEP: step, **_metrics(cells)} for (step,), cells in _grouped(members, "step").items()]
        site = sites[name]
        yield PlannedRun(
            id=run.wandb_id(variant, name),
            name=f"{variant} {name}",
            job_type="probe",
            tags=(variant, site.side, site.block),
            config=_about(run, site, members[0]),
            axis=STEP,
            history=history,
            epochs=curves.get((variant, name), []),
            summary=dict(history[-1]),
        )


def _by_cell(run: RunData, rows: list[dict[str, Any]]) -> Iterator[PlannedRun]:
    sites = {s.name: s for s in run.sites}
    losses = _losses(run)
    keys = ("variant", "site", "step", "task", "control", "seed")
    for key, members in _grouped(rows, *keys).items():
        variant, name, step, task, control, seed = key
        if name not in sites:
            continue
        site, row = sites[name], members[-1]
        cell = dict(zip(keys, key, strict=True))
        yield PlannedRun(
            id=run.wandb_id(*key),
            name=f"{variant} {name} step {step} {task} {control} seed {seed}",
            job_type="probe",
            tags=(variant, site.side, site.block, task),
            config=_about(run, site, row) | cell,
            axis=EPOCH,
            history=losses.get(key, []),
            summary=_numbers(row),
        )


def _about(run: RunData, site: Site, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "variant": row["variant"],
        "site": site.name,
        "block": site.block,
        "side": site.side,
        "tokens": site.tokens,
        "channels": site.channels,
        "stage_hash": row.get("stage_hash"),
        "sweep": run.config,
        "manifest": run.manifest,
        "cluster": of_stage(run.cluster, "probe"),
    }


def _metrics(cells: list[dict[str, Any]]) -> dict[str, float]:
    """``task/score`` of the reported seed, the lowest; controls as ``task/control/score``."""
    sums: dict[str, list[float]] = defaultdict(list)
    for row in cells:
        prefix = row["task"] if row["control"] == "none" else f"{row['task']}/{row['control']}"
        for name, value in _numbers(row).items():
            sums[f"{prefix}/{name}"].append(value)
    return {name: math.fsum(values) / len(values) for name, values in sorted(sums.items())}


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in row.items() if k not in _KEYS and isinstance(v, int | float) and math.isfinite(v)}


def _losses(run: RunData) -> dict[tuple, list[dict[str, float]]]:
    """Epoch rows by cell, in order of epoch."""
    table = run.table("epochs")
    if table is None:
        return {}
    rows = table.filter(pc.equal(table["experiment"], run.experiment)).sort_by("epoch").to_pylist()
    keys = ("variant", "site", "step", "task", "control", "seed")
    return {
        key: [{EPOCH: r["epoch"], **_losses_of(r)} for r in members] for key, members in _grouped(rows, *keys).items()
    }


def _curves(losses: dict[tuple, list[dict[str, float]]]) -> dict[tuple[str, str], list[dict[str, float]]]:
    """By (variant, site): one row per epoch with ``epochs/STEP/TASK/LOSS`` of the first seed's probes."""
    rows: dict[tuple[str, str], dict[float, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for (variant, site, step, task, control, seed), found in losses.items():
        if control != "none" or seed:
            continue
        for row in found:
            named = {f"{CURVES}/step{step:02d}/{task}/{k}": v for k, v in row.items() if k != EPOCH}
            rows[variant, site][row[EPOCH]].update(named)
    return {key: [{EPOCH: e, **named} for e, named in sorted(by.items())] for key, by in rows.items()}


def _losses_of(row: dict[str, Any]) -> dict[str, float]:
    found = {k: row[k] for k in ("train_loss", "val_loss")}
    return {k: float(v) for k, v in found.items() if v is not None and math.isfinite(v)}


def summary_digest(run: RunData) -> str:
    """Hash of what the summary run shows: rows of probes, emergence and interventions, configuration, manifest,
    machines."""
    tables = [[] if (t := run.table(name)) is None else t.to_pydict() for name in ("probes", "interventions")]
    images = run.table("images")
    if images is not None:
        tables.append(images.filter(pc.equal(images["experiment"], "emergence")).to_pydict())
    return digest(json.dumps((VERSION, tables, run.config, run.manifest, run.cluster), sort_keys=True, default=str))
