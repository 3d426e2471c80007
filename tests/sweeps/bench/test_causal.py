"""The bench on planted models: the full pipeline gives the planted verdicts, and a wrong one fails the command."""

from __future__ import annotations

import json

import numpy as np
import pytest

from interventions.counterfactual import Move
from interventions.pictures import Pictures
from interventions.plan import Row
from probing.planted.labels import painted
from sweeps.bench import causal, paired, suite
from sweeps.cli.main import main

SIDE = 6


def scene(dx: int) -> np.ndarray:
    """A picture with an object of two columns, `dx` pixels right of the middle, that is near."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:, 2 + dx : 4 + dx] = True
    return painted(mask, np.zeros_like(mask))


def pictures(*rows: tuple[str, np.ndarray]) -> Pictures:
    """Edited pictures of the object that should go one pixel to the right."""
    controls, images = zip(*rows, strict=True)
    empty = np.zeros((len(rows), SIDE, SIDE), bool)
    named = tuple(Row(0, control) for control in controls)
    return Pictures("saliency", named, np.stack(images), empty, scene(0), empty[0], empty[:1], (Move(1, 0),))


def test_the_way_of_a_picture_is_measured_against_what_its_moved_label_paints():
    found = causal.ways_of(
        pictures(("edit", scene(1)), ("edit", scene(0)), ("decoy_place", scene(1)), ("edit", scene(2)))
    )
    assert list(found) == [1, 0, 0]


@pytest.mark.parametrize(("verdict", "code"), [("supported", 0), ("not supported", 1)])
def test_a_verdict_that_is_not_the_planted_one_fails_the_command(verdict, code, monkeypatch, capsys):
    row = paired.row("used_pattern", "way of the picture", "way to its target", [(1.0, 1.0)])
    row |= {"verdict": verdict, "planted": "supported", "bar": {"least": 0.98}, "met": verdict == "supported"}
    monkeypatch.setattr(suite, "measure", lambda name: [row])
    assert main(["bench", "causal"]) == code
    assert f"; {verdict}, planted supported" in capsys.readouterr().out


def test_a_missed_speed_is_no_failure(monkeypatch):
    monkeypatch.setattr(suite, "measure", lambda name: [paired.row("capture_over_sampling", "a", "b", [(9.0, 1.0)])])
    assert main(["bench", "capture"]) == 0


@pytest.mark.slow
def test_the_full_pipeline_finds_what_each_planted_model_uses(capsys):
    assert main(["bench", "causal", "--json"]) == 0
    found = {row["what"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert set(found) == {f"{kind}_{direction}" for kind, planted in causal.PLANTED.items() for direction in planted}
    for name, row in found.items():
        assert set(paired.KEYS) < set(row)
        assert row["verdict"] == row["planted"]
        acts = row["planted"] == "supported"
        assert row["ratio"] == pytest.approx(1.0 if acts else 0.0, abs=causal.EXACT), name
        for task in causal.TASKS:
            assert (row["lead"][task]["low"] > 0) == acts, (name, task)
    claims = {name.partition("_w")[0]: row["claim"] for name, row in found.items() if name.endswith("_weights")}
    assert claims == {"used": "supported", "read_only": "not supported", "distractor": "supported"}
