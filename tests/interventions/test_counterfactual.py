"""Counterfactual labels: moves, fills, pasted objects, files, draws."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interventions import counterfactual as cf
from interventions.counterfactual import FromFile, Move, SecondObject
from support import interventions_reference as reference


class Labels(NamedTuple):
    mask: np.ndarray
    depth: np.ndarray


MOVES = [Move(5, -3), Move(-4, 6), Move(0, 2), Move(-7, 0)]


def scene(height: int = 20, width: int = 24) -> Labels:
    mask = np.zeros((height, width), bool)
    mask[6:12, 8:15] = True
    depth = np.random.default_rng(0).normal(size=(height, width)).astype(np.float32)
    return Labels(mask, depth)


@pytest.mark.parametrize("move", MOVES)
def test_masks_move_right_and_down_and_leave_background(move: Move):
    mask = scene().mask
    assert np.array_equal(cf.shift_mask(mask, move), reference.shifted_mask(mask, move.dx, move.dy))


@pytest.mark.parametrize("move", [m for m in MOVES if m.dx and m.dy])
def test_depth_fills_as_the_authors_do(move: Move):
    depth = scene().depth
    expected = reference.authors_shift(depth, move.dx, move.dy)
    assert np.array_equal(cf.shift_depth(depth, move), expected)


def test_depth_fill_skips_the_first_column_after_a_positive_move_only():
    depth = np.tile(np.arange(10, dtype=np.float32), (10, 1))
    assert cf.shift_depth(depth, Move(3, 0))[0].tolist() == [1, 1, 1, 0, 1, 2, 3, 4, 5, 6]
    assert cf.shift_depth(depth, Move(-3, 0))[0].tolist() == [3, 4, 5, 6, 7, 8, 9, 9, 9, 9]


def test_a_move_that_leaves_no_depth_is_refused():
    with pytest.raises(ValueError, match="leaves nothing"):
        cf.shift_depth(scene().depth, Move(0, 19))


def test_depth_is_scaled_map_by_map():
    maps = np.stack([np.array([[0, 2], [4, 1]]), np.array([[5, 5], [5, 7]])]).astype(np.float32)
    scaled = cf.scale_range(maps, 9.0)
    assert scaled[0].tolist() == [[-9, 0], [9, -4.5]]
    assert scaled[1].tolist() == [[-9, -9], [-9, 9]]
    assert cf.scale_range(maps, 0.0) is maps


def test_a_flat_map_scales_to_zero():
    assert not cf.scale_range(np.full((1, 3, 3), 4.0, np.float32)).any()


def test_second_object_of_the_same_size_is_a_moved_copy():
    labels = scene()
    mask, depth = cf.second_object(*labels, SecondObject(8, 2))
    moved = reference.shifted_mask(labels.mask, 8, 2)
    assert np.array_equal(mask, labels.mask | moved)
    only = moved & ~labels.mask
    assert np.array_equal(depth[only], cf.shift_depth(labels.depth, Move(8, 2))[only])
    assert np.array_equal(depth[~moved], labels.depth[~moved])


def test_second_object_pushed_back_shrinks_and_hides_behind_the_first():
    labels = scene()
    mask, depth = cf.second_object(*labels, SecondObject(1, 0, scale=0.5, back=100.0))
    assert np.array_equal(depth[labels.mask], labels.depth[labels.mask])
    assert np.array_equal(mask, labels.mask)
    _, near = cf.second_object(*labels, SecondObject(1, 0, scale=0.5, back=-100.0))
    assert (near != labels.depth).sum() == pytest.approx(labels.mask.sum() / 4, rel=0.35)


@pytest.mark.parametrize(
    ("target", "message"), [(SecondObject(90, 0), "outside the image"), (SecondObject(3, 0, scale=0.0), "positive")]
)
def test_second_objects_that_make_no_sense_are_refused(target: SecondObject, message: str):
    with pytest.raises(ValueError, match=message):
        cf.second_object(*scene(), target)


def test_second_object_needs_a_first():
    empty = Labels(np.zeros((8, 8), bool), np.zeros((8, 8), np.float32))
    with pytest.raises(ValueError, match="no salient object"):
        cf.second_object(*empty, SecondObject(1, 1))


def test_own_labels_come_from_files(tmp_path: Path):
    from PIL import Image

    labels = scene()
    Image.fromarray(labels.mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    np.save(tmp_path / "depth.npy", labels.depth)
    target = FromFile(str(tmp_path / "mask.png"))
    assert np.array_equal(cf.target_label(target, "saliency", *labels), labels.mask)
    assert np.array_equal(cf.target_label(FromFile(str(tmp_path / "depth.npy")), "depth", *labels), labels.depth)
    grey = cf.target_label(target, "depth", *labels)
    assert grey.mean() == pytest.approx(0, abs=1e-5)
    assert grey.std() == pytest.approx(1, abs=1e-5)


def test_files_of_another_size_or_kind_are_refused(tmp_path: Path):
    np.save(tmp_path / "small.npy", np.zeros((4, 4)))
    (tmp_path / "text.png").write_text("no picture")
    np.save(tmp_path / "nan.npy", np.full(scene().depth.shape, np.nan))
    for name, message in (("small.npy", "20 x 24"), ("text.png", "no readable"), ("nan.npy", "not finite")):
        with pytest.raises(ValueError, match=message):
            cf.target_label(FromFile(str(tmp_path / name)), "depth", *scene())
    with pytest.raises(ValueError, match="no readable"):
        cf.target_label(FromFile(str(tmp_path / "absent.png")), "saliency", *scene())


def test_a_sealed_file_may_not_change(tmp_path: Path):
    path = tmp_path / "depth.npy"
    np.save(path, scene().depth)
    target = cf.sealed(FromFile(str(path)))
    assert np.array_equal(cf.target_label(target, "depth", *scene()), scene().depth)
    np.save(path, scene().depth + 1)
    with pytest.raises(ValueError, match="not the file"):
        cf.target_label(target, "depth", *scene())


@pytest.mark.parametrize("target", [Move(3, -4), SecondObject(1, 2, 0.5, 1.5), FromFile("a.png", "ab")])
def test_targets_survive_plain_values(target: cf.TargetSpec):
    assert cf.target_from_values(cf.target_values(target)) == target


@pytest.mark.parametrize("values", [{"jump": {}}, {"move": {"dz": 1}}, "move", {"move": {"dx": 1}}, {}])
def test_targets_that_do_not_fit_are_refused(values: object):
    with pytest.raises(ValueError, match="goals"):
        cf.target_from_values(values)


def test_the_range_of_moves_is_the_papers_and_scales():
    assert cf.move_range(512).tolist() == [*range(-120, -90), *range(90, 120)]
    assert cf.move_range(128).tolist() == [*range(-30, -22), *range(23, 30)]


@pytest.mark.parametrize(("task", "seed"), [("saliency", 123), ("depth", 1)])
def test_the_authors_moves_follow_their_stream(task: str, seed: int):
    stream = np.random.RandomState(seed)
    allowed = np.concatenate([np.arange(-120, -90), np.arange(90, 120)])
    expected = []
    for _ in range(40):
        mine: list[list[int]] = []
        for _ in range(5):
            pair = [stream.choice(allowed), stream.choice(allowed)]
            while pair in mine:
                pair = [stream.choice(allowed), stream.choice(allowed)]
            mine.append(pair)
        expected.append([Move(*pair) for pair in mine])
    assert cf.authors_moves(task, 40, 5, (512, 512)) == expected


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 100), st.integers(-20, 20), st.integers(-20, 20))
def test_visible_share_is_what_a_moved_mask_keeps(seed: int, dx: int, dy: int):
    mask = np.random.default_rng(seed).random((12, 15)) < 0.3
    mask[3, 4] = True
    share = cf.visible_share(mask, np.array([[dx, dy]]))[0]
    assert share == pytest.approx(cf.shift_mask(mask, Move(dx, dy)).sum() / mask.sum())


def test_drawn_moves_are_different_repeatable_and_keep_half_the_mask():
    mask = np.zeros((128, 128), bool)
    mask[90:128, 0:30] = True
    moves = cf.draw_moves(mask, 12, (0, 7))
    assert len(set(moves)) == 12
    assert moves == cf.draw_moves(mask, 12, (0, 7))
    assert moves != cf.draw_moves(mask, 12, (0, 8))
    kept = [cf.shift_mask(mask, move).sum() / mask.sum() for move in moves]
    assert min(kept) >= 0.5
    assert moves[:5] == cf.draw_moves(mask, 5, (0, 7))


def test_where_no_move_keeps_half_the_most_visible_are_taken():
    mask = np.zeros((128, 128), bool)
    mask[[0, 0, 127, 127], [0, 127, 0, 127]] = True
    moves = cf.draw_moves(mask, 5, (0, 0))
    assert {cf.shift_mask(mask, move).sum() for move in moves} == {1}


def test_an_empty_mask_cannot_be_moved():
    with pytest.raises(ValueError, match="moves=1: only 0"):
        cf.draw_moves(np.zeros((64, 64), bool), 1, (0,))


@pytest.mark.parametrize(("first", "side"), [(0, 1), (80, -1)])
def test_the_second_object_stands_on_the_side_with_more_room(first: int, side: int):
    mask = np.zeros((128, 128), bool)
    mask[50:70, first : first + 30] = True
    series = cf.second_objects(mask)
    assert [(g.scale, g.back) for g in series] == list(cf.SERIES)
    assert {np.sign(g.dx) for g in series} == {side}
    labels = Labels(mask, np.where(mask, 1.0, -1.0).astype(np.float32))
    for target in series:
        both, _ = cf.second_object(*labels, target)
        assert (both & ~mask).sum() == pytest.approx(mask.sum() * target.scale**2, rel=0.15)


def test_a_series_needs_an_object():
    with pytest.raises(ValueError, match="no salient object"):
        cf.second_objects(np.zeros((8, 8), bool))


def test_the_way_across_goes_through_the_original_place():
    assert cf.path_across(0.25, 5, (128, 128)) == [Move(dx, 0) for dx in (-32, -16, 0, 16, 32)]
