"""What the report states and shows about ablations, second objects and kept pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from interventions.config import EditSpec
from interventions.counterfactual import SERIES, Move, SecondObject
from interventions.pictures import Pictures, pack, picture_path
from interventions.plan import Row
from interventions.recipe import Recipe
from interventions.summary import summarise
from sweeps.analysis import summary
from sweeps.analysis.interventions import ablations, second_objects, side
from sweeps.analysis.scores import MEASURES
from sweeps.report.figures.ablations import ablation_panel, panels
from sweeps.report.gallery.interventions import by_steps, kept, moving, pairs, series, step_count, transplants
from sweeps.report.page import Strip
from sweeps.report.sections import edited_images
from sweeps.report.sections.interventions import patching_effects

MEASURE = {measure.task: measure for measure in MEASURES}

SITES = {"decoder": "up.1.0,up.3.2", "encoder": "down.0.0", "all": "down.0.0,mid.0,up.1.0"}


def row(sample: int, trial: int, after: float, **changes: object) -> dict:
    common = {
        "experiment": "interventions", "task": "saliency", "control": "edit", "sites": SITES["decoder"],
        "steps": "1,2,3", "iterations": 128, "lr": 0.03, "guidance": 4.0, "status": "done",
        **dict.fromkeys(("depth_wanted", "depth_before", "depth_after")),
    }  # fmt: skip
    return {**common, "sample": sample, "trial": trial, "score_before": 0.3, "score_after": after,
            "original_after": 0.7, **changes}  # fmt: skip


def rows() -> list[dict]:
    """Six images edited in the main way, four of them also otherwise; more steps help more."""
    images, few = [(s, t) for s in range(6) for t in range(2)], [(s, t) for s in range(4) for t in range(2)]
    found = [row(s, t, 0.5 if s < 4 else 0.9) for s, t in images]
    found += [row(s, t, 0.1, control="random_direction") for s, t in images]
    for count, after in ((1, 0.4), (10, 0.6)):
        steps = ",".join(map(str, range(1, count + 1)))
        found += [row(s, t, after, experiment="steps", steps=steps) for s, t in few]
    found += [row(s, t, 0.2, experiment="sides", sites=SITES["encoder"]) for s, t in few]
    found += [row(0, 0, 9.0, experiment="steps", steps="1", status="failed")]
    return found


def objects() -> list[dict]:
    """Second objects at half of the requested depth by the edit, and without effect by another way of editing."""
    return [
        row(s, t, 0.5, experiment="second_object", task="depth", control=way, depth_before=0.2,
            depth_wanted=0.2 + requested, depth_after=0.2 + share * requested)
        for way, share in (("edit", 0.5), ("natural", 0.0))
        for s in range(3)
        for t, requested in enumerate((1.5, 1.0, 0.5, -0.5))
    ]  # fmt: skip


def test_an_ablation_holds_the_main_edit_on_its_own_images():
    steps, sides = ablations(rows())
    assert [(p.label, p.after.estimate, p.images) for p in steps.points] == [
        ("1", 0.4, 4),
        ("3", 0.5, 4),
        ("10", 0.6, 4),
    ]
    assert {p.label: p.after.estimate for p in sides.points} == {"encoder": 0.2, "decoder": 0.5}
    assert {p.before.estimate for p in steps.points} == {0.3}


@pytest.mark.parametrize(("group", "sites"), SITES.items())
def test_groups_of_sites_are_named(group: str, sites: str):
    assert side(sites) == group
    assert side("mid.0") == "bottleneck"
    assert side("down.0.0,up.1.0") == "down.0.0,up.1.0"


def test_second_objects_give_a_slope_for_each_way_of_editing():
    found = second_objects([*rows(), *objects()])
    edit, natural = ("weights", "edit"), ("weights", "natural")
    assert list(found) == [edit, natural]
    assert found[edit][0].slope.estimate == pytest.approx(0.5)
    assert found[natural][0].slope.estimate == pytest.approx(0)
    assert found[edit][0].edits == 12


def test_directions_are_kept_apart():
    pattern = [{**r, "direction": "pattern", "score_after": 0.8} for r in rows()]
    found = {(a.experiment, a.direction): [p.after.estimate for p in a.points] for a in ablations([*rows(), *pattern])}
    assert found["steps", "weights"] == [0.4, 0.5, 0.6]
    assert found["steps", "pattern"] == [0.8, 0.8, 0.8]
    ways = second_objects([*objects(), *({**r, "direction": "pattern"} for r in objects())])
    assert list(ways) == [("weights", "edit"), ("pattern", "edit"), ("weights", "natural"), ("pattern", "natural")]


def test_panels_contain_their_numbers():
    table = pa.Table.from_pylist([*rows(), *objects()])
    drawn = {p.name: p for p in panels(table)}
    assert set(drawn) == {"edits-saliency-weights-steps", "edits-saliency-weights-sides", "edits-second-object"}
    assert [r[2:6] for r in drawn["edits-saliency-weights-steps"].rows] == [
        ("1", 4, 0.3, 0.4), ("3", 4, 0.3, 0.5), ("10", 4, 0.3, 0.6),
    ]  # fmt: skip
    requested, achieved = np.array([r[4:] for r in drawn["edits-second-object"].rows if r[1] == "edit"]).T
    assert achieved == pytest.approx(0.5 * requested)
    assert "3: 0.50" in drawn["edits-saliency-weights-steps"].text
    for panel in drawn.values():
        assert panel.svg.count("<path") > 5
    assert panels(None) == []


def pictures(
    experiment: str, sample: int, steps: int, task: str = "saliency", goals: tuple = (Move(3, 1),)
) -> Pictures:
    values = np.random.default_rng([sample, steps]).integers(0, 255, (2 * len(goals), 16, 16, 3), dtype=np.uint8)
    label = values[0, ..., 0] > 127 if task == "saliency" else values[0, ..., 0].astype(np.float32)
    spec = EditSpec(task, ("decoder",), tuple(range(1, steps + 1)))
    return Pictures(
        task, tuple(Row(t, c) for t in range(len(goals)) for c in ("edit", "natural")), values,
        np.stack([label] * len(values)), values[0], label, np.stack([label] * len(goals)), goals,
        Recipe("a sphere", 1, 2.0, spec, goals).to_yaml(), experiment, sample, "now",
    )  # fmt: skip


class Folder:
    """Files as a store lists and gives them."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.get = files, files.__getitem__

    def list(self, prefix: str) -> list[str]:
        return sorted(path for path in self.files if path.startswith(prefix))


def strips_of(found: list[Pictures]) -> list[Strip]:
    return [block for block in edited_images.pictures(found) if isinstance(block, Strip)]


def shown() -> list[Pictures]:
    series = tuple(SecondObject(9, 0, scale, back) for scale, back in SERIES)
    made = [
        *(pictures("interventions", sample, 3) for sample in range(5)), pictures("interventions", 0, 3, "depth"),
        pictures("steps", 0, 10), pictures("steps", 0, 1), pictures("steps", 1, 1),
        pictures("second_object", 0, 3, "depth", series), pictures("animation", 0, 3, goals=(Move(-4, 0), Move(4, 0))),
    ]  # fmt: skip
    made.append(replace(made[0], stage_hash="before"))
    files = {picture_path(f"{place}"): pack(p) for place, p in enumerate(made)}
    return kept(Folder({**files, picture_path("broken"): b"\0" * 20, "interventions/0.yaml": b"x"}), {"now"})


def test_kept_pictures_are_chosen_by_what_they_show():
    found = shown()
    assert len(found) == 11
    assert [[p.sample for p in directions] for directions in pairs(found, "saliency")] == [[0], [1], [2]]
    assert [step_count(p) for p in by_steps(found, "saliency")] == [1, 3, 10]
    assert {p.sample for p in by_steps(found, "saliency")} == {0}
    assert by_steps(found, "depth") == []
    assert [len(p.goals) for p in series(found)] == [4]
    assert [p.experiment for p in moving(found)] == ["animation"]


def test_an_image_is_shown_with_its_edits_along_every_direction():
    weights = pictures("interventions", 4, 3)
    pattern = replace(weights, direction="pattern")
    assert [[p.direction for p in one] for one in pairs([pattern, weights], "saliency")] == [["weights", "pattern"]]
    (strip,) = strips_of([pattern, weights])
    assert [p.caption for p in strip.pictures if "after" in p.caption] == [
        "after: probe weights", "after: along the covariance", "after: pattern", "after: along the covariance",
    ]  # fmt: skip


def test_controls_alone_are_no_edit():
    plain = replace(pictures("interventions", 0, 3), rows=(Row(0, "none"), Row(0, "natural")))
    assert pairs([plain], "saliency") == []


def test_the_page_shows_pairs_steps_objects_and_an_animation():
    strips = strips_of(shown())
    found = [picture for strip in strips for picture in strip.pictures]
    assert [p.alt for p in found].count("Image after: probe weights") == 4
    assert [p.alt for p in found].count("Image after") == 2 * len(SERIES)
    assert {"1 step", "3 steps", "10 steps", "requested: size 0.55, 1.5 farther"} <= {p.caption for p in found}
    assert any("3 right, 1 down" in strip.name for strip in strips)
    assert [p.format for p in found].count("gif") == 2
    assert edited_images.pictures([]) == []


def test_each_guidance_has_its_own_unedited_images():
    mine = [
        row(sample, trial, after, experiment="guidance", guidance=scale, score_before=before)
        for scale, before, after in ((1.0, 0.2, 0.25), (9.0, 0.4, 0.8))
        for sample in range(4)
        for trial in range(2)
    ]
    found = next(a for a in ablations([*rows(), *mine]) if a.experiment == "guidance")
    assert [(p.label, p.before.estimate, p.after.estimate) for p in found.points] == [
        ("1", 0.2, 0.25), ("4", 0.3, 0.5), ("9", 0.4, 0.8),
    ]  # fmt: skip
    panel = ablation_panel(found)
    assert panel.name == "edits-saliency-weights-guidance"
    assert "1: 0.20 and 0.25; 4: 0.30 and 0.50; 9: 0.40 and 0.80" in panel.text


def transplant(sample: int, steps: int) -> Pictures:
    """The picture of an image that got another's activations in its first steps."""
    made = pictures("transplant", sample, steps)
    return replace(made, rows=(Row(0, "edit"), Row(0, "donor")), goals=(), recipe="", steps=tuple(range(1, steps + 1)))


def test_patching_shows_the_other_image_then_growing_numbers_of_steps():
    made = [transplant(s, n) for s in (4, 2) for n in (15, 3)]
    series = transplants(made, "saliency")
    assert [[(p.sample, step_count(p)) for p in one] for one in series] == [
        [(4, 3), (4, 15)], [(2, 3), (2, 15)],
    ]  # fmt: skip
    for strip in strips_of(made):
        words = [picture.caption for picture in strip.pictures]
        patched = ["the other image", "3 steps of its activations", "15 steps of its activations"]
        assert [w for w in words if "other" in w or "activations" in w] == patched
    assert len(strips_of(made)) == 2


def test_the_page_states_the_effect_of_patching():
    often = [(s, 0) for s in range(4)]
    found = [row(s, t, 0.4, experiment="transplant") for s, t in often]
    found += [row(s, t, 0.9, experiment="transplant", steps=",".join(map(str, range(1, 16)))) for s, t in often]
    effects = [summary.Edits(e, MEASURE[e.series.task], np.array([0.3]), np.array([0.4])) for e in summarise(found)]
    (paragraph,) = patching_effects(effects)
    text = paragraph.text
    assert "4 images" in text
    assert "from 0.30" in text
    assert text.index("to 0.40") < text.index("steps 1 to 3") < text.index("to 0.90") < text.index("steps 1 to 15")
    assert patching_effects([]) == []
