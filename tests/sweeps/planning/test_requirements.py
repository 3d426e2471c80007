"""Interventions whose probes the sweep does not plan are refused before anything runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from probing.diffusion import published
from probing.diffusion.config import EMBEDDED
from probing.diffusion.sites import choose
from support.tiny_runs import configured, settings
from sweeps import pipeline
from sweeps.cli.main import main
from sweeps.config.load import load, presets
from sweeps.config.schema import Config
from sweeps.planning import requirements
from sweeps.runtime import run
from sweeps.runtime.grid import probe_specs
from sweeps.runtime.run import ModelInfo


@pytest.fixture(scope="module")
def found() -> ModelInfo:
    """The sites of Stable Diffusion's topology."""
    return run.model_info(load("scenes", []))


def made(preset: str, *more: str) -> Config:
    """A preset whose output holds nothing yet."""
    return load(preset, ["output=/nowhere/run", *more])


@pytest.mark.parametrize("preset", sorted(presets()))
def test_every_preset_plans_what_its_interventions_need(preset: str, found: ModelInfo) -> None:
    config = made(preset)
    if folder := published.folder(config.model.name):
        found = run.model_info(replace(config, model=replace(config.model, name=str(folder))))
    elif config.model.name in EMBEDDED:
        found = run.model_info(config)
    recorded = choose(found.sites, config.sampling.sites)
    requirements.check(config, found)
    probes = {probe for _, probe in requirements.needed(config, found.sites)}
    assert probes <= set(probe_specs(config.sweep, config.sampling.variants, recorded))
    assert ("shuffled" in {probe.control for probe in probes}) == ("shuffled_probe" in config.interventions.controls)


def test_the_authors_edits_need_their_sites_and_steps(found: ModelInfo) -> None:
    config = made("paper", "interventions.controls=[none]")
    probes = [probe for _, probe in requirements.needed(config, found.sites)]
    assert len(probes) == len(set(probes)) == 9 * 5 + 16 * 3
    assert {probe.step for probe in probes if probe.task == "depth"} == {1, 2, 3}
    late = made("paper", "interventions.controls=[late_steps]", "interventions.tasks=[depth]")
    assert {probe.step for _, probe in requirements.needed(late, found.sites)} == {1, 2, 3, 13, 14, 15}


DECODER = "sampling.sites=[mid.0,up.1.0,up.1.1,up.1.2,up.2.0,up.2.1,up.2.2,up.3.0,up.3.1,up.3.2]"
LATE = "interventions.controls=[none,late_steps]"


@pytest.mark.parametrize(
    ("preset", "pairs", "expected"),
    [
        ("paper", ["sweep.controls=[none]"],
         ["interventions.controls=shuffled_probe", "add shuffled to sweep.controls=[none]"]),
        ("causal", ["sweep.control_sites=[up.2.1]"],
         ["interventions.controls=shuffled_probe", "to sweep.control_sites=[up.2.1]"]),
        ("scenes", ["sampling.variants=[trained]", "interventions.controls=[none,random_probe]"],
         ["interventions.controls=random_probe", "add random to sampling.variants=[trained]"]),
        ("scenes", ["sweep.tasks=[saliency]"],
         ["interventions.depth_sites and depth_steps", "add depth to sweep.tasks"]),
        ("scenes", ["sweep.steps=[1,2,3]", "interventions.controls=[none]"],
         ["interventions.saliency_sites and saliency_steps", "add 4 to sweep.steps=[1,2,3]"]),
        ("scenes", ["sweep.steps=[1,2,3,4,5]", LATE], ["interventions.controls=late_steps", "to sweep.steps"]),
        ("scenes", ["sampling.sites=[up.2.1]"], ["to sampling.sites=[up.2.1]"]),
        ("scenes", ["sweep.seeds=[1,2]"], ["add 0 to sweep.seeds=[1,2]"]),
        ("causal", ["sweep.steps=[1,2,3,4,5,11,12,13,14,15]"],
         ["interventions.step_counts=10", "add 6 to sweep.steps"]),
        ("scenes", ["interventions.sides=[encoder]", "interventions.tasks=[saliency]",
                    "interventions.saliency_sites=[decoder]", DECODER],
         ["interventions.sides=encoder", "add down.0.0 to sampling.sites"]),
        ("scenes", ["probe.hidden=8"], ["probe.hidden=8", "need linear probes"]),
    ],
)  # fmt: skip
def test_what_is_not_planned_is_one_line(preset: str, pairs: list[str], expected: list[str], found: ModelInfo) -> None:
    with pytest.raises(ValueError, match="interventions") as refused:
        requirements.check(made(preset, *pairs), found)
    line = str(refused.value)
    assert "\n" not in line
    assert all(part in line for part in expected), line


def test_the_reason_of_every_experiment_names_an_existing_key(found: ModelInfo) -> None:
    pairs = ["dose=[64]", "step_counts=[4]", "sides=[encoder]", "second_objects=2", "frames=5", "controls=[none]"]
    config = made("scenes", "interventions.tasks=[depth]", *(f"interventions.{pair}" for pair in pairs))
    reasons = {reason for reason, _ in requirements.needed(config, found.sites)}
    assert reasons == {
        "interventions.depth_sites and depth_steps", "interventions.dose=64", "interventions.step_counts=4",
        "interventions.sides=encoder", "interventions.second_objects=2", "interventions.frames=5",
    }  # fmt: skip
    names = {word.split("=")[0].removeprefix("interventions.") for text in reasons for word in text.split(" and ")}
    assert all(hasattr(config.interventions, name) for name in names)


@pytest.mark.parametrize("pair", ["interventions.tasks=[]", "interventions.iterations=0"])
def test_without_edits_nothing_is_needed(pair: str, found: ModelInfo) -> None:
    requirements.check(made("scenes", "sweep.steps=[15]", "probe.hidden=8", pair), found)


def test_the_command_line_refuses_before_anything_runs(tiny_pipeline: Path, tmp_path: Path, capsys) -> None:
    words = settings(tiny_pipeline, tmp_path / "run", "interventions.controls=[none,shuffled_probe]")
    for verb in ("run", "intervene", "plan"):
        assert main([verb, "scenes", *words]) == 2
        error = capsys.readouterr().err
        assert "interventions.controls=shuffled_probe: needs 16 probes" in error
        assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_probes_that_are_already_fitted_need_no_plan(finished: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    config = configured(tiny_pipeline, tmp_path / "run", "sweep.steps=[15]")
    assert pipeline.execute(config, ("intervene",)).failed == {}
    elsewhere = replace(config, output=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"add 1 to sweep.steps=\[15\]"):
        pipeline.execute(elsewhere, ("intervene",))
