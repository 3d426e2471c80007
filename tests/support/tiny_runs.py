"""Settings of tiny runs of the full pipeline that several test files share, and comparisons of their outputs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import storage
from sweeps.config.load import load
from sweeps.config.schema import Config

SMALL = [
    "prompts.count=12", "sampling.shard=4", "curation.train=5", "curation.val=3", "curation.test=4",
    "curation.min_foreground=0", "curation.min_contrast=0", "sweep.steps=[1,2,15]", "probe.epochs=3",
    "interventions.images=1", "interventions.moves=1", "interventions.iterations=2",
    "interventions.tasks=[depth]", "interventions.depth_steps=[1]", "interventions.controls=[none]",
    "interventions.directions=[weights]",
    "tracking.mode=disabled", "sweep.trial_axes=[variant]", "sweep.controls=[none]", "sweep.control_sites=[]",
    "experiments.names=[]",
]  # fmt: skip
STORED = ("activations.zarr", "images.zarr", "labels.zarr", "latents.zarr", "shards", "samples.parquet")
SAMPLED = ("activations.zarr", "images.zarr", "latents.zarr", "shards/sample", "samples.parquet")


def settings(model: Path, output: Path | str, *more: str) -> list[str]:
    """Arguments after `scenes` for a run of a few seconds."""
    return [*SMALL, f"model.name={model}", f"output={output}", "ray.address=none", *more]


def configured(model: Path, output: Path | str, *more: str) -> Config:
    """The configuration of `settings`."""
    return load("scenes", settings(model, output, *more))


def copied(run: Path, target: Path) -> Path:
    """A copy of a run that a test may change; returns its folder."""
    shutil.copytree(run, target)
    return target


def stored(output: Path | str, names: tuple[str, ...] = STORED) -> dict[str, bytes]:
    """The files that must be byte-identical between two runs of the same settings, by path."""
    files = storage.open(str(output)).files
    return {path: files.get(path) for name in names for path in files.list(name)}


def scores(output: Path) -> dict[tuple, tuple]:
    """Scores of all probes by key, without the columns that may differ between runs."""
    rows = storage.open(str(output)).table("probes").to_pylist()
    keys = ("experiment", "variant", "site", "step", "task", "control", "seed")
    values = ("train_loss", "val_loss", "test_loss", "dice", "rmse", "spearman", "status")
    return {tuple(r[k] for k in keys): tuple(r[v] for v in values) for r in rows}


def assert_same_scores(output: Path, other: Path) -> None:
    """Fail unless two runs hold the same probes with scores equal to 1e-6."""
    found, expected = scores(output), scores(other)
    assert found.keys() == expected.keys()
    for key, row in found.items():
        for value, other_value in zip(row, expected[key], strict=True):
            # Columns of the other task are None, which `approx` does not accept.
            assert value == other_value or value == pytest.approx(other_value, rel=1e-6, abs=1e-6, nan_ok=True), key
