"""Trials: what is the same probe at several sites is fitted once, and every site has its rows and weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import storage
from probing.probes import fit
from support.tiny_runs import configured, copied
from sweeps import pipeline

SITES = {"mid.0": 32, "up.2.0": 16, "up.2.1": 16}
"""site -> channels"""
MORE = ("sweep.controls=[none,position,surface]", f"sweep.control_sites=[{','.join(SITES)}]", "interventions.tasks=[]")


def tables(output: Path) -> dict[str, list[dict]]:
    """Rows of the controls, in the order of their keys."""
    found = {}
    for name in ("probes", "images", "epochs"):
        rows = [r for r in storage.open(str(output)).table(name).to_pylist() if r["control"] != "none"]
        keys = ("site", "step", "task", "control", "sample", "epoch")
        rows.sort(key=lambda row: str([row.get(key) for key in keys]))
        found[name] = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return found


def test_controls_without_activations_are_fitted_once_for_the_sites_of_a_grid(
    finished: Path, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, apart = (copied(finished, tmp_path / name) for name in ("together", "apart"))
    fitted: Counter[str] = Counter()
    fit_site = fit.fit_site

    def counting(*args, **options):
        fitted.update(spec.control for spec in args[5])
        return fit_site(*args, **options)

    monkeypatch.setattr(fit, "fit_site", counting)
    assert pipeline.execute(configured(tiny_pipeline, together, *MORE), ("probe",)).failed == {}
    grids, steps, tasks = 2, 3, 2
    assert fitted == dict.fromkeys(("position", "surface"), grids * steps * tasks)
    alone = configured(tiny_pipeline, apart, *MORE, "sweep.trial_axes=[variant,site]")
    assert pipeline.execute(alone, ("probe",)).failed == {}

    found = tables(together)
    assert {(r["site"], r["channels"]) for r in found["probes"] if r["control"] == "position"} == set(SITES.items())
    assert len(found["probes"]) == len(SITES) * steps * tasks * 2
    assert found == tables(apart)
    weights = {path: storage.open(str(together)).get(path) for path in storage.open(str(together)).list("probes/")}
    assert weights == {path: storage.open(str(apart)).get(path) for path in weights}
