"""Which W&B runs mirror a sweep and what each contains, from the tables alone."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow.compute as pc

from sweeps.analysis.tables import Json, RunData, Site
from sweeps.config.schema import GRID
from sweeps.runtime.machines import of_stage

VERSION = 4
DRIVER = "driver"
"""kind of the run that shows a sweep while it works"""
STEP, EPOCH = "denoising_step", "epoch"
CURVES = "epochs"
"""prefix of the loss curves in a site's run"""
PROBE = ("variant", "site", "step", "task", "control", "seed")
"""columns that identify one probe"""
NOT_METRICS = {
    *PROBE, "experiment", "block", "index", "status", "error", "attempt", "stage_hash", "tokens", "channels",
    "n_train", "n_val", "n_test",
}  # fmt: skip
HIGHER = {
    "dice", "dice_background", "dice_threshold", "val_dice", "ap", "ap_val", "skill", "spearman", "spearman_residual",
    "pearson",
}  # fmt: skip
"""scores of which the largest over the denoising steps is the best"""
LOWER = {
    "rmse", "rmse_aligned", "rmse_object", "rmse_background", "val_rmse", "crossentropy", "train_loss", "val_loss",
    "test_loss",
}  # fmt: skip
"""scores of which the smallest is the best"""
History = list[dict[str, float]]


@dataclass(frozen=True)
class PlannedRun:
    """One W&B run: identity, configuration, one history row per value of the x axis, summary."""

    id: str
    name: str
    job_type: str
    tags: tuple[str, ...]
    config: Json
    axis: str
    """the metric on the x axis"""
    history: History = field(default_factory=list)
    epochs: History = field(default_factory=list)
    """loss curves, one row per epoch, beside a history by denoising step"""
    summary: dict[str, float] = field(default_factory=dict)
    probes: int = 1
    """number of probes that it shows"""

    @property
    def digest(self) -> str:
        """Hash of everything in the run but the machines; a run with an equal digest is not written again."""
        config = {key: value for key, value in self.config.items() if key != "cluster"}
        return _digest((VERSION, self.name, self.tags, config, self.history, self.epochs, self.summary))

    @property
    def best(self) -> dict[str, str]:
        """By metric over the denoising steps, which value W&B keeps in the summary beside the last one: max or min."""
        names = {name for row in self.history for name in row} if self.axis == STEP else ()
        kinds = {name: name.rpartition("/")[2] for name in sorted(names)}
        return {name: "max" if kind in HIGHER else "min" for name, kind in kinds.items() if kind in HIGHER | LOWER}


def _digest(content: object) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def summary_digest(run: RunData) -> str:
    """Hash of the summary run's content: probes, emergence, interventions, configuration, manifest, machines."""
    tables = [table.to_pydict() if (table := run.table(name)) else [] for name in ("probes", "interventions")]
    images = run.table("images")
    if images is not None:
        tables.append(images.filter(pc.equal(images["experiment"], "emergence")).to_pydict())
    return _digest((VERSION, tables, run.config, run.manifest, run.cluster))


def plan(run: RunData, runs: str) -> list[PlannedRun]:
    """The runs of a sweep: one per (variant, site), or one per probe if `runs` is "cell".

    Raises ValueError for any other value of `runs`.
    """
    if runs not in ("site", "cell"):
        raise ValueError(f"tracking.runs={runs!r}: expected 'site' or 'cell'")
    table = run.table("probes")
    if table is None:
        return []
    done = pc.and_(pc.equal(table["status"], "done"), pc.equal(table["experiment"], GRID))
    rows = table.filter(done).to_pylist()
    return list(_by_site(run, rows) if runs == "site" else _by_probe(run, rows))


def _grouped(rows: Iterable[Json], keys: Iterable[str]) -> dict[tuple, list[Json]]:
    """Rows by the values of columns, in order of these."""
    groups: dict[tuple, list[Json]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[k] for k in keys)].append(row)
    return dict(sorted(groups.items()))


def _by_site(run: RunData, rows: list[Json]) -> Iterator[PlannedRun]:
    sites = {s.name: s for s in run.sites}
    curves = _loss_curves(_losses(run))
    reported = min((row["seed"] for row in rows), default=0)
    rows = [row for row in rows if row["seed"] == reported and row["site"] in sites]
    for (variant, name), members in _grouped(rows, ("variant", "site")).items():
        history = [{STEP: step, **_metrics(probes)} for (step,), probes in _grouped(members, ("step",)).items()]
        site = sites[name]
        yield PlannedRun(
            id=run.wandb_id(variant, name),
            name=f"{variant} {name}",
            job_type="probe",
            tags=(variant, site.side, site.block),
            config=_config(run, site, members[0]),
            axis=STEP,
            history=history,
            epochs=curves.get((variant, name), []),
            summary={STEP: history[-1][STEP], "duration_s": _duration(members)},
            probes=len(members),
        )


def _by_probe(run: RunData, rows: list[Json]) -> Iterator[PlannedRun]:
    sites = {s.name: s for s in run.sites}
    losses = _losses(run)
    for key, members in _grouped((row for row in rows if row["site"] in sites), PROBE).items():
        variant, name, step, task, control, seed = key
        site, row = sites[name], members[-1]
        yield PlannedRun(
            id=run.wandb_id(*key),
            name=f"{variant} {name} step {step} {task} {control} seed {seed}",
            job_type="probe",
            tags=(variant, site.side, site.block, task),
            config=_config(run, site, row) | dict(zip(PROBE, key, strict=True)),
            axis=EPOCH,
            history=losses.get(key, []),
            summary=_numbers(row) | {"duration_s": _duration([row])},
        )


def _config(run: RunData, site: Site, row: Json) -> Json:
    """Configuration of a run that mirrors probes of a site."""
    return {
        "variant": row["variant"],
        "site": site.name,
        "block": site.block,
        "side": site.side,
        "layer_index": run.sites.index(site),
        "grid": site.grid[0],
        "grid_width": site.grid[1],
        "tokens": site.tokens,
        "channels": site.channels,
        "stage_hash": row.get("stage_hash"),
        **run.addresses,
        "sweep": run.config,
        "manifest": run.manifest,
        "cluster": of_stage(run.cluster, "probe"),
    }


def _duration(rows: Iterable[Json]) -> float:
    """Seconds that fitting probes took; W&B's own runtime of these runs is that of writing them."""
    return math.fsum(row["seconds"] or 0.0 for row in rows)


def _metrics(rows: list[Json]) -> dict[str, float]:
    """Means by `task/score`; of controls by `task/control/score`."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        prefix = row["task"] if row["control"] == "none" else f"{row['task']}/{row['control']}"
        for name, value in _numbers(row).items():
            values[f"{prefix}/{name}"].append(value)
    return {name: math.fsum(v) / len(v) for name, v in sorted(values.items())}


def _numbers(row: Json) -> dict[str, float]:
    """The finite numbers of a row that are metrics."""
    numbers = {k: v for k, v in row.items() if k not in NOT_METRICS and isinstance(v, int | float)}
    return {k: float(v) for k, v in numbers.items() if math.isfinite(v)}


def _losses(run: RunData) -> dict[tuple, History]:
    """Losses by probe, one row per epoch in ascending order."""
    table = run.table("epochs")
    if table is None:
        return {}
    rows = table.filter(pc.equal(table["experiment"], GRID)).sort_by("epoch").to_pylist()
    return {
        key: [{EPOCH: row[EPOCH], **_numbers({k: row[k] for k in ("train_loss", "val_loss")})} for row in members]
        for key, members in _grouped(rows, PROBE).items()
    }


def _loss_curves(losses: dict[tuple, History]) -> dict[tuple[str, str], History]:
    """By (variant, site): one row per epoch with `epochs/STEP/TASK/LOSS` of the probes with seed 0."""
    curves: dict[tuple[str, str], dict[float, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for (variant, site, step, task, control, seed), rows in losses.items():
        if control == "none" and not seed:
            for row in rows:
                named = {f"{CURVES}/step{step:02d}/{task}/{k}": v for k, v in row.items() if k != EPOCH}
                curves[variant, site][row[EPOCH]].update(named)
    return {key: [{EPOCH: epoch, **row} for epoch, row in sorted(rows.items())] for key, rows in curves.items()}
