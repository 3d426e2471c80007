"""A single edit: what is requested, what is written, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from interventions.counterfactual import FromFile, Move, SecondObject, path_across
from interventions.recipe import Recipe, from_yaml
from interventions.worker import Outcome, replay
from support import interventions_fakes as fakes
from sweeps.cli import play
from sweeps.cli.main import main
from sweeps.cli.play import Request
from sweeps.config.hashing import hashes
from sweeps.config.load import load


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    """Three frames of an object on its way, by two ways of editing."""
    spec = fakes.intervener().config.spec("saliency")
    goals = tuple(path_across(0.2, 3, (128, 128)))
    return replay(Recipe(fakes.PROMPT, 5, 2.0, spec, goals, ("natural",), sample=6), fakes.intervener())


def test_every_picture_label_and_target_is_written(outcome: Outcome, tmp_path: Path):
    names = play.save(outcome, tmp_path / "deep" / "out", moving=True)
    assert names == ["sheet.png", "recipe.yaml", "scores.json", "moving-edit.gif", "moving-natural.gif"]
    folder, shown = tmp_path / "deep" / "out", outcome.pictures
    for place, row in enumerate(shown.rows):
        stem = f"{row.trial:02d}-{row.control}"
        assert np.array_equal(np.asarray(Image.open(folder / f"{stem}.png")), shown.images[place])
        assert (folder / f"{stem}-label.png").exists()
    assert np.array_equal(np.asarray(Image.open(folder / "before.png")), shown.before)
    assert len(list(folder.glob("*-asked.png"))) == 3
    assert json.loads((folder / "scores.json").read_text())[0]["dx"] == -26
    assert from_yaml((folder / "recipe.yaml").read_text()) == from_yaml(shown.recipe)


def test_the_animation_goes_through_the_frames_and_back(outcome: Outcome, tmp_path: Path):
    frames = play.frames_of(outcome.pictures, "natural")
    places = [i for i, row in enumerate(outcome.pictures.rows) if row.control == "natural"]
    assert np.array_equal(np.stack(frames), outcome.pictures.images[places])
    play.save(outcome, tmp_path, moving=True)
    assert Image.open(tmp_path / "moving-edit.gif").n_frames == 4


def test_the_sheet_has_a_line_for_each_picture(outcome: Outcome):
    found = play.sheet(outcome.pictures)
    assert found.shape == (6 * (128 + play.HEAD), 5 * (128 + play.GAP), 3)
    first = found[play.HEAD : play.HEAD + 128, :128]
    assert np.array_equal(first, outcome.pictures.before)


def test_a_line_shows_scores_and_readout(outcome: Outcome):
    row = outcome.rows[0]
    text = play.describe(row)
    for name in ("score_before", "score_after", "readout_after"):
        assert f"{row[name]:.2f}" in text
    assert "Dice" in text


def test_numbers_become_goals():
    found = play.goals_from([[3, -4]], [[20.0, 0.0, 0.5, 1.5]], ["own.png"])
    assert found == (Move(3, -4), SecondObject(20, 0, 0.5, 1.5), FromFile("own.png"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "height"}, "--task height.*saliency or depth"),
        ({"way": "loudly"}, "--way loudly.*edit, rank_one, natural"),
        ({"prompt": ""}, "--prompt"),
        ({"goals": ()}, "--move DX DY"),
        ({"frames": 3}, "--animate"),
        ({"goals": (), "frames": 1}, "--animate"),
    ],
)
def test_requests_that_make_no_sense_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Request(**{"prompt": "x", "seed": 1, "task": "depth", "goals": (Move(1, 1),), **changes})


def test_the_command_line_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    empty = f"output={tmp_path / 'none'}"
    assert main(["intervene", "scenes", empty, "--prompt", "a sphere", "--move", "-24", "0"]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
    assert main(["intervene", "scenes", empty, "--recipe", str(tmp_path / "no.yaml")]) == 2
    assert "--recipe" in capsys.readouterr().err
    assert main(["intervene", "scenes", empty, "--prompt", "a sphere"]) == 2
    assert "nothing to change" in capsys.readouterr().err


def test_the_full_measurement_is_the_scenes_preset_with_more_interventions():
    small, full = load("scenes", []), load("causal", [])
    assert (full.output, full.prompts, full.sampling, full.probe) == (
        small.output, small.prompts, small.sampling, small.probe,
    )  # fmt: skip
    assert hashes(full, "r").probe == hashes(small, "r").probe
    settings = full.interventions
    assert (settings.images, settings.moves, settings.iterations) == (40, 5, small.interventions.iterations)
    assert {"none", "random_direction", "random_probe", "shuffled_probe", "late_steps"} <= set(settings.controls)
    assert "shuffled" in full.sweep.controls


def test_a_file_may_stand_on_a_preset(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("preset: causal\nname: mine\ninterventions: {moves: 2}\n")
    found = load(str(path), ["interventions.images=3"])
    assert (found.name, found.interventions.moves, found.interventions.images) == ("mine", 2, 3)
    assert found.sampling == load("scenes", []).sampling
