"""Tiny runs of the whole road that several test files share: settings, and what is compared of an output."""

from __future__ import annotations

from pathlib import Path

import storage
from sweeps.config.load import load
from sweeps.config.schema import Config

SMALL = [
    "prompts.count=12", "sampling.shard=4", "curation.train=5", "curation.val=3", "curation.test=4",
    "curation.min_foreground=0", "curation.min_contrast=0", "sweep.steps=[1,2,15]", "probe.epochs=3",
    "interventions.images=1", "interventions.moves=1", "interventions.iterations=2",
    "interventions.tasks=[depth]", "interventions.depth_steps=[1]", "interventions.controls=[none]",
    "tracking.mode=disabled", "sweep.trial_axes=[variant]", "sweep.controls=[none]", "experiments.names=[]",
]  # fmt: skip
STORED = ("activations.zarr", "images.zarr", "labels.zarr", "latents.zarr", "shards", "samples.parquet")
SAMPLED = ("activations.zarr", "images.zarr", "latents.zarr", "shards/sample", "samples.parquet")


def settings(model: Path, output: Path | str, *more: str) -> list[str]:
    """Arguments after `scenes` of a run that takes seconds."""
    return [*SMALL, f"model.name={model}", f"output={output}", "ray.address=none", *more]


def configured(model: Path, output: Path | str, *more: str) -> Config:
    """The same as a configuration."""
    return load("scenes", settings(model, output, *more))


def stored(output: Path | str, names: tuple[str, ...] = STORED) -> dict[str, bytes]:
    """What `byte-identical` speaks of, by path."""
    files = storage.open(str(output)).files
    return {path: files.get(path) for name in names for path in files.list(name)}


def scores(output: Path) -> dict[tuple, tuple]:
    """Rows by key, without what may differ between runs."""
    rows = storage.open(str(output)).table("probes").to_pylist()
    keys = ("experiment", "variant", "site", "step", "task", "control", "seed")
    values = ("train_loss", "val_loss", "test_loss", "dice", "rmse", "spearman", "status")
    return {tuple(r[k] for k in keys): tuple(r[v] for v in values) for r in rows}
