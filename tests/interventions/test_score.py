"""Scores of edited images on scenes whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from interventions import score
from interventions.counterfactual import FromFile, Move, SecondObject
from interventions.score import LabelledImage, make_case

SHAPE = (32, 32)


def labelled(row: int, column: int, level: int = 100) -> LabelledImage:
    """A square at a place, nearer than what is behind it."""
    mask = np.zeros(SHAPE, bool)
    mask[row : row + 8, column : column + 8] = True
    image = np.full((*SHAPE, 3), level, np.uint8)
    depth = np.linspace(-1, 1, 32, dtype=np.float32)[:, None] + 2 * mask.astype(np.float32)
    return LabelledImage(image, mask, depth.astype(np.float32), frozenset({"red"}))


MOVES = (Move(8, 4), Move(-6, 5))


@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_an_obedient_image_scores_best_on_its_target(task: str):
    before = labelled(8, 10)
    case = make_case(task, before, MOVES)
    depth = case.targets[0] if task == "depth" else before.depth
    after = LabelledImage(before.image, case.regions[0], depth, before.content)
    row = score.score_row(case, 0, after)
    better = (lambda a, b: a > b) if task == "saliency" else (lambda a, b: a < b)
    assert row["score_after"] == pytest.approx(1.0 if task == "saliency" else 0.0, abs=1e-6)
    for other in ("score_before", "mirror_after", "original_after", "constant_after", "others_after"):
        assert better(row["score_after"], row[other]), other
    assert row["pearson_after"] == pytest.approx(1)
    assert row["slope"] == pytest.approx(1)
    assert row["shift_share"] == pytest.approx(1)
    assert row["outside_change"] == 0
    assert row["content_kept"] == 1


@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_an_unmoved_image_scores_as_before(task: str):
    before = labelled(8, 10)
    row = score.score_row(make_case(task, before, MOVES), 1, before)
    assert row["score_after"] == row["score_before"]
    assert row["slope"] == 0
    assert row["shift_share"] == 0
    assert row["area_after"] == row["area_before"] == row["area_target"] == pytest.approx(64 / 1024)


def test_collapse_is_seen_through():
    """All foreground and a flat map gain against the target, and lose against the constant."""
    before = labelled(8, 10)
    full = LabelledImage(before.image, np.ones(SHAPE, bool), np.zeros(SHAPE, np.float32))
    masks = score.score_row(make_case("saliency", before, MOVES), 0, full)
    assert masks["score_after"] > masks["score_before"]
    assert masks["constant_after"] == pytest.approx(1)
    assert masks["constant_after"] > masks["score_after"]
    assert masks["pearson_after"] is None
    assert masks["score_after"] == pytest.approx(masks["floor"])
    depth = score.score_row(make_case("depth", before, MOVES), 0, full)
    assert depth["constant_after"] < depth["score_after"]
    assert depth["slope"] < 0.5


def test_changes_elsewhere_are_outside_changes():
    before = labelled(8, 10)
    case = make_case("saliency", before, MOVES)
    image = before.image.copy()
    image[case.before.mask | case.regions[0]] = 255
    assert score.score_row(case, 0, LabelledImage(image, before.mask, before.depth))["outside_change"] == 0
    image = np.full_like(before.image, 151)
    assert score.score_row(case, 0, LabelledImage(image, before.mask, before.depth))["outside_change"] == pytest.approx(
        0.2
    )


def test_empty_masks_agree_and_have_no_centre():
    empty = np.zeros(SHAPE, bool)
    assert score.agreement("saliency", empty, empty) == 1
    assert score.agreement("saliency", empty, labelled(1, 1).mask) == pytest.approx(0, abs=1e-6)
    assert score.shift_share(labelled(1, 1).mask, labelled(5, 5).mask, empty) is None


def test_a_second_object_is_measured_where_it_is_new():
    before = labelled(8, 4)
    case = make_case("depth", before, [SecondObject(14, 0, back=0.5)])
    after = LabelledImage(before.image, case.regions[0], case.targets[0] - 0.2)
    row = score.score_row(case, 0, after)
    assert row["depth_after"] == pytest.approx(row["depth_wanted"] - 0.2, abs=1e-6)
    assert row["depth_wanted"] > row["depth_before"]
    assert row["mirror_after"] is None
    assert row["others_after"] is None


def test_a_users_own_depth_keeps_the_objects_region(tmp_path):
    before = labelled(8, 4)
    np.save(tmp_path / "d.npy", before.depth + 1)
    case = make_case("depth", before, [FromFile(str(tmp_path / "d.npy"))])
    assert np.array_equal(case.regions[0], before.mask)
    assert score.score_row(case, 0, before)["score_before"] == pytest.approx(1)


def test_lost_content_is_noticed():
    before = labelled(8, 10)
    after = LabelledImage(before.image, before.mask, before.depth, frozenset({"red", "blue"}))
    case = make_case("saliency", before, MOVES)
    assert score.score_row(case, 0, after)["content_kept"] == 0
    blind = LabelledImage(before.image, before.mask, before.depth)
    assert score.score_row(case, 0, blind)["content_kept"] is None


def test_depth_is_also_scored_on_other_scales():
    before = labelled(8, 10)
    case = make_case("depth", before, MOVES)
    target = case.targets[0].astype(np.float64)
    stretched = LabelledImage(before.image, before.mask, (3 * target - 2).astype(np.float32))
    row = score.score_row(case, 0, stretched)
    assert row["own_scale_after"] == pytest.approx(0, abs=1e-3)
    assert row["aligned_after"] == pytest.approx(0, abs=1e-3)
    assert row["score_after"] > 0.5
    old = before.depth.astype(np.float64)
    own = [(a - a.mean()) / a.std() for a in (target, old)]
    assert row["own_scale_before"] == pytest.approx(np.sqrt(np.mean((own[0] - own[1]) ** 2)))
    columns = np.stack([old.ravel(), np.ones(old.size)], axis=1)
    fitted = columns @ np.linalg.lstsq(columns, target.ravel(), rcond=None)[0]
    assert row["aligned_before"] == pytest.approx(np.sqrt(np.mean((fitted - target.ravel()) ** 2)))
    flat = score.score_row(case, 0, LabelledImage(before.image, before.mask, np.zeros(SHAPE, np.float32)))
    assert flat["own_scale_after"] is None
    assert flat["aligned_after"] == pytest.approx(target.std())
    assert score.score_row(make_case("saliency", before, MOVES), 0, before)["aligned_after"] is None
