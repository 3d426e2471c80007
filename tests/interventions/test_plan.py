"""The plan of interventions: tasks, their keys and targets, batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from interventions.config import CONTROLS, InterventionConfig
from interventions.controls import EDIT
from interventions.counterfactual import authors_moves
from interventions.plan import EditTask, Row, batches, plan, targets_of
from support import interventions_fakes as fakes


def test_batches_keep_a_trial_with_its_controls():
    found = batches(5, ("none", "random_direction"), 5)
    assert [len(rows) for rows in found] == [4, 4, 2]
    assert found[1] == (Row(2, EDIT), Row(2, "random_direction"), Row(3, EDIT), Row(3, "random_direction"))
    with pytest.raises(ValueError, match="raise it to 7"):
        batches(1, (*CONTROLS, "rank_one", "natural"), 4)


def test_plans_are_images_by_tasks_by_experiments_in_a_fixed_order():
    config = InterventionConfig(images=2, dose=(16, 64), step_counts=(1,), sides=("encoder",))
    tasks = plan(config, [9, 4, 7])
    assert [t.sample for t in tasks] == [4] * 10 + [7] * 10
    assert [t.experiment for t in tasks[:5]] == ["interventions", "dose", "dose", "steps", "sides"]
    assert [t.spec.iterations for t in tasks[:3]] == [128, 16, 64]
    assert tasks[3].spec.steps == (1,)
    assert tasks[4].spec.sites == ("encoder",)
    assert tasks[0].controls == CONTROLS
    assert tasks[1].controls == ()
    assert len({t.key for t in tasks}) == len(tasks)
    assert plan(config, [4, 7, 9]) == tasks


def test_all_experiments_of_an_image_use_the_same_moves():
    config = InterventionConfig(dose=(4,))
    mask = fakes.mask() > 0
    drawn = {targets_of(task, config, mask) for task in plan(config, [3])}
    assert len(drawn) == 1
    assert targets_of(plan(config, [5])[0], config, mask) not in drawn


def test_the_authors_moves_follow_the_order_of_test_images():
    config = InterventionConfig(move_rule="authors")
    tasks = [t for t in plan(config, [8, 11]) if t.task == "depth"]
    expected = authors_moves("depth", 2, 5, (512, 512))
    big = np.ones((512, 512), bool)
    assert [list(targets_of(task, config, big)) for task in tasks] == expected


def test_a_dropped_test_image_does_not_shift_the_authors_moves():
    config = InterventionConfig(move_rule="authors", images=2)
    big = np.ones((512, 512), bool)
    for name in ("saliency", "depth"):
        first, second = (t for t in plan(config, [8, 11, 12], [7, 8, 9, 10, 11, 12]) if t.task == name)
        expected = authors_moves(name, 6, 5, (512, 512))
        assert [t.sample for t in (first, second)] == [8, 11]
        assert list(targets_of(first, config, big)) == expected[1]
        assert list(targets_of(second, config, big)) == expected[4]


def test_ablations_leave_out_what_repeats_the_main_edit():
    config = InterventionConfig(
        images=3, ablation_images=2, dose=(8, 128), step_counts=(3, 5), sides=("decoder", "all"), frames=5,
        second_objects=1, controls=("none", "natural"),
    )  # fmt: skip
    tasks = plan(config, [1, 2, 3, 4])
    kinds = [(t.task, t.experiment) for t in tasks if t.sample == 1]
    assert kinds == [
        ("saliency", "interventions"), ("saliency", "dose"), ("saliency", "steps"), ("saliency", "sides"),
        ("saliency", "animation"), ("depth", "interventions"), ("depth", "dose"), ("depth", "steps"),
        ("depth", "sides"), ("depth", "second_object"), ("depth", "animation"),
    ]  # fmt: skip
    assert [len([t for t in tasks if t.sample == sample]) for sample in (1, 2, 3, 4)] == [11, 8, 2, 0]
    controls = {t.experiment: t.controls for t in tasks}
    assert controls["second_object"] == controls["animation"] == ("natural",)
    assert controls["dose"] == ()


def test_every_direction_has_its_controls_and_gains():
    config = InterventionConfig(
        tasks=("saliency",), directions=("weights", "pattern"), saliency_gain=2.0, gains=(1.0, 2.0, 4.0),
        controls=("none", "random_direction", "late_steps"), dose=(8,), transplants=1,
    )  # fmt: skip
    found = [(t.experiment, t.spec.direction, t.spec.gain, t.spec.iterations, t.controls) for t in plan(config, [3])]
    every, nulls = ("none", "random_direction", "late_steps"), ("random_direction",)
    assert found[:-2] == [
        ("interventions", "weights", 1.0, 128, every), ("dose", "weights", 1.0, 8, ()),
        ("gain", "weights", 2.0, 128, nulls), ("gain", "weights", 4.0, 128, nulls),
        ("interventions", "pattern", 2.0, 128, every), ("gain", "pattern", 1.0, 128, nulls),
        ("gain", "pattern", 4.0, 128, nulls),
    ]  # fmt: skip
    assert [entry[0] for entry in found[-2:]] == ["transplant", "transplant"]
    assert len({t.key for t in plan(config, [3])}) == len(found)


def test_depth_may_have_a_scale_of_its_own():
    config = InterventionConfig(directions=("weights", "pattern"), depth_scale="label", depth_gain=3.0, gains=(2.0,))
    found = {(t.task, t.experiment, t.spec.direction): (t.spec.scale, t.spec.gain) for t in plan(config, [3])}
    assert found["depth", "interventions", "pattern"] == ("label", 3.0)
    assert found["depth", "gain", "pattern"] == ("label", 2.0)
    assert found["saliency", "interventions", "pattern"] == ("reading", 1.0)
    assert found["depth", "interventions", "weights"] == ("reading", 1.0)
    with pytest.raises(ValueError, match="scale"):
        InterventionConfig(directions=("pattern",), depth_scale="labels")


def test_other_guidance_scales_are_tasks_of_their_own():
    spec = InterventionConfig().spec("depth")
    config = InterventionConfig(tasks=("depth",), guidances=(1.0, 2.0, 3.0, 3.0), ablation_images=1)
    found = plan(config, [4, 7], guidance=2.0)
    assert [(t.sample, t.experiment, t.guidance) for t in found] == [
        (4, "interventions", None), (4, "guidance", 1.0), (4, "guidance", 3.0), (7, "interventions", None),
    ]  # fmt: skip
    assert len({task.key for task in found}) == 4
    assert found[1].spec == spec
    assert EditTask(4, 0, "depth", spec).key == "interventions.00004.depth.fbb48783"


LIGHT = (
    "config",
    "controls",
    "counterfactual",
    "pictures",
    "plan",
    "recipe",
    "sources.authors",
    "sources.base",
    "summary",
)


def test_planning_and_reporting_load_no_torch():
    modules = ", ".join(f"interventions.{name}" for name in LIGHT)
    code = f"import sys, {modules}; assert not {{'torch', 'diffusers', 'transformers', 'ray'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
