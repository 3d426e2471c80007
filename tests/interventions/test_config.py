"""Settings of interventions: mistakes refused by key, sites by name and group."""

from __future__ import annotations

import pytest

from interventions.config import InterventionConfig, choose_sites
from support import interventions_fakes as fakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("height",)}, "tasks='height'"),
        ({"controls": ("nothing",)}, "controls='nothing'"),
        ({"saliency_steps": (3, 1)}, "ascending"),
        ({"depth_sites": ()}, "depth_sites is empty"),
        ({"iterations": -1}, "iterations=-1"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"moves": 0}, "moves=0"),
        ({"move_rule": "fair"}, "move_rule='fair'"),
        ({"sides": ("left",)}, "sides='left'"),
    ],
)
def test_bad_settings_are_refused_by_name(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        InterventionConfig(**changes)


def test_sites_go_by_name_and_by_side():
    sites = fakes.model().sites()
    assert len(choose_sites(sites, ("all",))) == 16
    assert [s.name for s in choose_sites(sites, ("decoder", "mid.0"))][:2] == ["mid.0", "up.1.0"]
    assert len(choose_sites(sites, ("decoder",))) == 9
    assert [s.name for s in choose_sites(sites, ("up.3.0", "down.0.1"))] == ["down.0.1", "up.3.0"]
