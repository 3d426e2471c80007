"""Whole tasks on the tiny model: rows, columns, plans, recipes that replay, pictures."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest

from interventions import pictures
from interventions.config import CONTROLS, EditSpec
from interventions.controls import EDIT
from interventions.counterfactual import SERIES, Move, SecondObject
from interventions.plan import EditTask, plan
from interventions.recipe import Recipe, from_yaml
from interventions.worker import NothingToMoveError, Outcome, replay
from probing.diffusion.sampling import sample
from storage import tables
from support import interventions_fakes as fakes


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """Both tasks of one image with every control."""
    worker = fakes.intervener(controls=CONTROLS)
    return {task.task: worker(task) for task in plan(worker.config, [6])}


def by_control(outcome: Outcome) -> dict[str, list[dict]]:
    return {c: [row for row in outcome.rows if row["control"] == c] for c in (EDIT, *CONTROLS)}


@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_every_trial_has_a_row_for_the_edit_and_each_control(outcomes: dict[str, Outcome], task: str):
    for control, rows in by_control(outcomes[task]).items():
        assert [row["trial"] for row in rows] == [0, 1], control


@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_rows_fit_the_table(outcomes: dict[str, Outcome], task: str):
    table = tables.rows_to_table("interventions", outcomes[task].rows, tables.INTERVENTIONS)
    assert table.num_rows == 2 * (1 + len(CONTROLS))
    for name in ("score_before", "score_after", "original_after", "edit_norm", "dx", "dy", "lr", "guidance"):
        assert table[name].null_count == 0, name
    assert set(table["status"].to_pylist()) == {"done"}
    columns = {name for row in outcomes[task].rows for name in row}
    assert set(table.schema.names) - columns == {"error"}


@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_no_edit_is_the_original(outcomes: dict[str, Outcome], task: str):
    for row in by_control(outcomes[task])["none"]:
        assert row["score_after"] == row["score_before"]
        assert row["edit_norm"] == row["outside_change"] == row["shift_share"] == row["seconds"] == 0


@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_controls_are_as_strong_as_the_edit(outcomes: dict[str, Outcome], task: str):
    found = by_control(outcomes[task])
    for control in ("random_direction", "random_probe", "shuffled_probe"):
        for row, real in zip(found[control], found[EDIT], strict=True):
            assert row["edit_norm"] == pytest.approx(real["edit_norm"], rel=1e-3), control
            assert (row["dx"], row["dy"], row["score_before"]) == (real["dx"], real["dy"], real["score_before"])


def test_pictures_survive_their_file(outcomes: dict[str, Outcome]):
    shown = outcomes["depth"].pictures
    back = pictures.unpack(pictures.pack(shown))
    assert back.rows == shown.rows
    assert back.goals == shown.goals
    assert back.recipe == shown.recipe
    assert np.array_equal(back.images, shown.images)
    assert np.array_equal(back.targets, shown.targets.astype(np.float16))
    masks = pictures.unpack(pictures.pack(outcomes["saliency"].pictures))
    assert np.array_equal(masks.labels, outcomes["saliency"].pictures.labels)


@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_a_recipe_replays_to_the_same_pixels(outcomes: dict[str, Outcome], task: str):
    shown = outcomes[task].pictures
    again = replay(from_yaml(shown.recipe), fakes.intervener())
    assert again.pictures.rows == shown.rows
    assert np.array_equal(again.pictures.images, shown.images)
    assert again.pictures.recipe == shown.recipe


def test_play_needs_no_stored_sample_and_replays_too():
    played = Recipe(fakes.PROMPT, 5, 2.0, fakes.intervener().config.spec("depth"),
                    (Move(20, 10), SecondObject(30, 0, 0.5, 1.0)))  # fmt: skip
    worker = fakes.intervener()
    worker.labelling = dataclasses.replace(
        worker.labelling, saliency=lambda images: np.stack([fakes.mask()] * len(images))
    )
    first, second = (replay(r, worker) for r in (played, from_yaml(played.to_yaml())))
    assert np.array_equal(first.pictures.images, second.pictures.images)
    assert first.rows[0]["experiment"] == "play"
    assert from_yaml(first.pictures.recipe) == played


def test_a_recipe_of_another_model_is_refused():
    foreign = Recipe("x", 1, 2.0, EditSpec("depth", ("all",), (1,)), (Move(1, 1),), model="other@1")
    worker = fakes.intervener()
    worker.about = {"model": "scenes@2"}
    with pytest.raises(ValueError, match="made with model other@1, this is scenes@2"):
        replay(foreign, worker)


def test_a_missing_probe_fails_the_task_by_name():
    worker = fakes.intervener(controls=("random_probe",))

    def lacking(key):
        if key.variant == "random":
            raise ValueError(f"no probe {key.site}")
        return fakes.probe(key)

    worker.probe_cache.sources = dataclasses.replace(worker.probe_cache.sources, probe=lacking)
    with pytest.raises(ValueError, match="no probe up.2.1"):
        worker(plan(worker.config, [1])[0])


def test_a_probe_of_another_width_fails_the_task_by_name():
    worker = fakes.intervener(controls=())
    worker.probe_cache.sources = dataclasses.replace(worker.probe_cache.sources, probe=lambda key: np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"up\.2\.1.*needs 1 or 2 outputs"):
        worker(EditTask(1, 0, "saliency", worker.config.spec("saliency")))


def test_animations_run_there_and_back():
    from PIL import Image

    frames = [np.full((8, 8, 3), level, np.uint8) for level in (0, 80, 160, 240)]
    shown = Image.open(io.BytesIO(pictures.animation(frames)))
    assert shown.n_frames == 6


def test_the_second_object_series_is_scored_by_its_own_depth():
    worker = fakes.intervener(second_objects=1, controls=("none",))
    (task,) = (t for t in plan(worker.config, [6]) if t.experiment == "second_object")
    outcome = worker(task)
    assert [row["control"] for row in outcome.rows] == [EDIT] * len(SERIES)
    asked = [row["depth_wanted"] for row in outcome.rows]
    assert asked == sorted(asked, reverse=True)
    assert all(row["depth_before"] is not None and row["depth_after"] is not None for row in outcome.rows)
    again = replay(from_yaml(outcome.pictures.recipe), fakes.intervener())
    assert np.array_equal(again.pictures.images, outcome.pictures.images)


def test_another_guidance_is_compared_with_an_original_of_its_own():
    worker = fakes.intervener(guidance=3.0, controls=("random_direction",))
    shown = worker(plan(worker.config, [6])[1]).pictures
    by_hand = sample(fakes.model(), [fakes.PROMPT], [106], steps=fakes.STEPS, guidance=3.0)
    assert np.array_equal(shown.before, by_hand.images.numpy()[0])
    again = replay(from_yaml(shown.recipe), fakes.intervener())
    assert np.array_equal(again.pictures.images, shown.images)


@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_an_empty_edit_is_the_stored_image_bit_for_bit(task: str):
    worker = fakes.intervener(iterations=0, tasks=(task,), controls=("none", "random_direction", "late_steps"))
    outcome = worker(plan(worker.config, [6])[0])
    assert len(outcome.pictures.images) == 6
    assert (outcome.pictures.images == fakes.original(6).image).all()
    edited = [row for row in outcome.rows if row["control"] == EDIT]
    assert [row["edit_norm"] for row in edited] == [0, 0]
    assert [row["readout_after"] for row in edited] == [None, None]


@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_the_worst_reading_is_no_better_than_the_mean(outcomes: dict[str, Outcome], task: str):
    mean = "readout_after" if task == "saliency" else "readout_spearman"
    for control, rows in by_control(outcomes[task]).items():
        for row in rows:
            if control == "none":
                assert "readout_least" not in row
            else:
                assert row["readout_least"] <= row[mean] + 1e-9


def test_an_edit_at_another_guidance_is_compared_with_the_unedited_image_at_the_same():
    worker = fakes.intervener(controls=(), guidances=(3.0,), tasks=("depth",))
    bright = np.stack([fakes.mask()])
    worker.labelling = dataclasses.replace(
        worker.labelling, saliency=lambda images: np.repeat(bright, len(images), axis=0)
    )
    main, other = plan(worker.config, [6], guidance=worker.guidance)
    found = worker(other)
    assert {row["guidance"] for row in found.rows} == {3.0}
    assert {row["guidance"] for row in worker(main).rows} == {2.0}
    unedited = sample(worker.model, [fakes.PROMPT], [106], steps=fakes.STEPS, guidance=3.0).images.numpy()[0]
    assert np.array_equal(found.pictures.before, unedited)
    assert not np.array_equal(found.pictures.before, fakes.original(6).image)
    nothing = dataclasses.replace(other, spec=dataclasses.replace(other.spec, iterations=0))
    assert all(row["score_after"] == row["score_before"] for row in worker(nothing).rows)
    again = replay(from_yaml(found.pictures.recipe), worker)
    assert np.array_equal(again.pictures.images, found.pictures.images)


def test_an_image_without_object_at_another_guidance_is_told_apart_from_a_fault():
    worker = fakes.intervener(controls=(), guidances=(3.0,), tasks=("depth",))
    worker.labelling = dataclasses.replace(worker.labelling, threshold=255, content=None)
    with pytest.raises(NothingToMoveError, match="no salient object in the unedited image at guidance 3"):
        worker(plan(worker.config, [6])[1])
