"""Prints two runs side by side: best sites, decoder means and settings that differ."""

from __future__ import annotations

from collections.abc import Iterable

from sweeps.config.load import to_dict
from sweeps.config.schema import GRID, Config
from sweeps.runtime import run as runs
from sweeps.runtime.run import differences

SCORES = {"saliency": ("dice", "val_dice", True), "depth": ("rmse", "val_rmse", False)}
LOSS = "train_loss"
"""chooses the best site of a run without validation images"""


def _rows(config: Config) -> list[dict]:
    """Finished rows of the grid's own task, with the reported seed."""
    run = runs.reopen(config, runs.model_info(config))
    rows = run.store.table("probes", run.hashes.probe).to_pylist()
    wanted = ("done", GRID, "none")
    mine = [row for row in rows if (row["status"], row["experiment"], row["control"]) == wanted]
    lowest = min((row["seed"] for row in mine), default=0)
    return [row for row in mine if row["seed"] == lowest]


def _mean(values: Iterable[float]) -> float | None:
    found = [v for v in values if v is not None]
    return sum(found) / len(found) if found else None


def figures(config: Config) -> dict[str, float | None]:
    """The headline numbers of a run: last step, decoder mean, and the site chosen on validation or by training loss."""
    found: dict[str, float | None] = {}
    rows = _rows(config)
    for variant in config.sampling.variants:
        for task, (score, val, higher) in SCORES.items():
            mine = [r for r in rows if r["variant"] == variant and r["task"] == task]
            last = [r for r in mine if r["step"] == max(config.sweep.steps)]
            decoder = [r[score] for r in last if r["site"].startswith("up.")]
            found[f"{variant} {score}, decoder mean, last step"] = _mean(decoder)
            if (best := _best(last, val, higher)) is not None:
                found[f"{variant} {score}, best site, last step"] = best[score]
    return found


def _best(rows: list[dict], val: str, higher: bool) -> dict | None:
    """The row with the best validation score; of a run that has none, with the lowest training loss."""
    if rated := [row for row in rows if row[val] is not None]:
        return (max if higher else min)(rated, key=lambda row: row[val])
    return min((row for row in rows if row[LOSS] is not None), key=lambda row: row[LOSS], default=None)


def describe(one: Config, two: Config) -> str:
    """A table of both runs' headline numbers, and the settings in which they differ."""
    left, right = figures(one), figures(two)
    names = list(dict.fromkeys([*left, *right]))
    width = max([len(name) for name in names], default=10)
    lines = [f"{'':{width}}  {one.output[-18:]:>18}  {two.output[-18:]:>18}  {'difference':>10}"]
    for name in names:
        a, b = left.get(name), right.get(name)
        difference = "" if a is None or b is None else f"{b - a:+.3f}"
        lines.append(f"{name:{width}}  {_text(a):>18}  {_text(b):>18}  {difference:>10}")
    changed = differences(to_dict(one), to_dict(two))
    return "\n".join([*lines, "settings that differ:", *(f"  {line}" for line in changed)])


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
