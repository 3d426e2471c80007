"""Recipes: plain YAML, and mistakes refused by key."""

from __future__ import annotations

import pytest

from interventions.config import EditSpec
from interventions.counterfactual import Move
from interventions.recipe import Recipe, from_yaml


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: scenes", "kind: x", "first line"),
        ("version: 1", "version: 9", "version=9"),
        ("prompt:", "promt:", "unknown key promt"),
        ("  lr:", "  rl:", "unknown key spec.rl"),
        ("seed: 1\n", "", "seed is missing"),
        ("- move:", "- jump:", "goals"),
        ("lr_units: absolute", "lr_units: metres", "lr_units='metres'"),
        ("goals:", "goals: {", "not readable YAML"),
    ],
)
def test_recipes_with_mistakes_are_refused_by_name(old: str, new: str, message: str):
    text = Recipe("x", 1, 2.0, EditSpec("depth", ("all",), (1, 2)), (Move(1, 1),)).to_yaml()
    assert old in text
    with pytest.raises(ValueError, match=message):
        from_yaml(text.replace(old, new))


def test_recipes_are_plain_yaml():
    made = Recipe("x", 1, 2.0, EditSpec("depth", ("all",), (1, 2)), (Move(1, -2),), ("random_probe",))
    assert from_yaml(made.to_yaml()) == made
    assert "!!" not in made.to_yaml()
