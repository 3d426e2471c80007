"""Which label every patch is given under each control."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probing.dataset.split import Split
from probing.probes.controls import CONTROLS, label_rows

SPLIT = Split([0, 1, 2, 3], [4, 5], [6, 7, 8])
OWN = np.arange(60).reshape(10, 6)


@pytest.mark.parametrize("control", sorted(set(CONTROLS) - {"shuffled", "permuted", "other_image"}))
def test_most_controls_keep_every_label_where_it_is(control):
    np.testing.assert_array_equal(label_rows(control, 10, 6, SPLIT, 0), OWN)


def test_shuffled_permutes_each_image_its_own_way():
    rows = label_rows("shuffled", 10, 6, SPLIT, 0)
    np.testing.assert_array_equal(np.sort(rows, axis=1), OWN)
    assert len(np.unique(rows - OWN[:, :1], axis=0)) > 5
    np.testing.assert_array_equal(rows, label_rows("shuffled", 10, 6, SPLIT, 0))
    assert (rows != label_rows("shuffled", 10, 6, SPLIT, 1)).any()


def test_permuted_moves_labels_between_the_images_of_a_part():
    rows = label_rows("permuted", 10, 6, SPLIT, 0)
    for _, part in SPLIT.parts:
        np.testing.assert_array_equal(np.sort(rows[part], axis=None), OWN[part].ravel())
        assert (rows[part] // 6 != np.array(part)[:, None]).any(axis=1).all()
    np.testing.assert_array_equal(rows[9], OWN[9])
    np.testing.assert_array_equal(rows, label_rows("permuted", 10, 6, SPLIT, 0))
    assert (rows != label_rows("permuted", 10, 6, SPLIT, 1)).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 5), st.integers(0, 4), st.integers(1, 4), st.integers(0, 99))
def test_other_image_gives_whole_maps_of_another_image_of_the_same_part(train, val, test, seed):
    order = np.random.default_rng(seed).permutation(train + val + test)
    split = Split(order[:train], order[train : train + val], order[train + val :])
    rows = label_rows("other_image", len(order), 6, split, seed)
    sources = rows[:, 0] // 6
    np.testing.assert_array_equal(rows, sources[:, None] * 6 + np.arange(6))
    for _, part in split.parts:
        assert (sources[part] != part).all()
        home = part if len(part) > 1 else split.train
        assert set(sources[part]) <= set(home)


def test_other_image_needs_another_training_image():
    with pytest.raises(ValueError, match="at least two training samples"):
        label_rows("other_image", 2, 6, Split([0], [], [1]), 0)


def test_an_unknown_control_raises_with_the_choices():
    with pytest.raises(ValueError, match="suffled.*other_image"):
        label_rows("suffled", 10, 6, SPLIT, 0)
