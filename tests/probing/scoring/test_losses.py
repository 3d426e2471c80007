"""Losses per patch against hand-computed numbers, full-size pixels and automatic differentiation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probing.scoring import losses
from probing.scoring.targets import pool_depth, pool_edges
from support import probe_reference


def huber_of(depth, grid, prediction, delta=1.0, dtype=torch.float64, rows=None):
    """Value and gradient (steps, patches) of predictions (steps, patches) for one image."""
    pooled = pool_depth(depth, grid)
    pixels = losses.patch_pixels(pooled, dtype, torch.device("cpu"))
    low, high = pooled.values[0, :, 0] - pooled.mean[0], pooled.values[0, :, -1] - pooled.mean[0]
    shape = [torch.from_numpy(x).to(dtype)[None] for x in ((low + high) / 2, (high - low) / 2, pooled.variance[0] / 2)]
    rows = torch.arange(prediction.shape[1])[None] if rows is None else rows
    offset = torch.from_numpy(prediction).to(dtype)[:, None] - torch.from_numpy(pooled.mean[0]).to(dtype)
    value, gradient = losses.huber(offset, shape, rows, pixels, delta)
    return value[:, 0].numpy(), gradient[:, 0].numpy()


def test_crossentropy_by_hand():
    value, gradient = losses.crossentropy(torch.tensor([0.0, 100.0, -100.0]), torch.tensor([0.25, 1.0, 0.0]))
    np.testing.assert_allclose(value, [np.log(2), 0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(gradient, [0.25, 0.0, 0.0], atol=1e-6)
    value, gradient = losses.crossentropy(torch.tensor([100.0]), torch.tensor([0.0]))
    assert (float(value), float(gradient)) == (100.0, 1.0)


def test_huber_by_hand_on_both_sides_of_delta():
    depth = np.array([[[0.0, 4.0]]], dtype=np.float32)
    value, gradient = huber_of(depth, (1, 1), np.array([[0.5], [2.0], [10.0], [4.5]]))
    expected = [(0.125 + 3.0) / 2, (1.5 + 1.5) / 2, (9.5 + 5.5) / 2, (4.0 + 0.125) / 2]
    np.testing.assert_allclose(value[:, 0], expected)
    np.testing.assert_allclose(gradient[:, 0], [(0.5 - 1) / 2, 0.0, 1.0, 0.75])


cases = st.tuples(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.floats(0.1, 3), st.integers(0, 999)
)


@settings(max_examples=80, deadline=None)
@given(cases)
def test_huber_equals_the_pixels_for_any_patch(case):
    rows, columns, height, width, delta, seed = case
    random = np.random.default_rng(seed)
    depth = random.standard_normal((1, rows * height, columns * width)) * random.choice([0.05, 0.7, 4.0])
    depth = np.round(depth, random.integers(0, 4)).astype(np.float32)
    patches = rows * columns
    prediction = np.concatenate(
        [random.standard_normal((6, patches)) * 3, np.round(random.standard_normal((4, patches)))]
    )
    found = huber_of(depth, (rows, columns), prediction, delta)
    single = huber_of(depth, (rows, columns), prediction, delta, torch.float32)
    pooled = pool_depth(depth, (rows, columns))
    for (step, patch), p in np.ndenumerate(prediction):
        slow = probe_reference.huber_patch(pooled.values[0, patch], p, delta)
        np.testing.assert_allclose([found[0][step, patch], found[1][step, patch]], slow, atol=1e-10)
        np.testing.assert_allclose([single[0][step, patch], single[1][step, patch]], slow, rtol=2e-5, atol=2e-6)


def test_huber_looks_up_the_given_rows():
    depth = np.array([[[0.0, 4.0, 10.0, 11.0]]], dtype=np.float32)
    straight = huber_of(depth, (1, 2), np.array([[3.2, 3.2]]))
    pooled = pool_depth(depth, (1, 2))
    turned = pool_depth(depth[:, :, [2, 3, 0, 1]], (1, 2))
    pixels = losses.patch_pixels(turned, torch.float64, torch.device("cpu"))
    shape = [torch.tensor([[0.0, 0.0]]).double(), torch.tensor([[2.0, 0.5]]).double()]
    shape.append(torch.from_numpy(pooled.variance / 2))
    offset = torch.tensor([[[3.2, 3.2]]]).double() - torch.from_numpy(pooled.mean)
    value, _ = losses.huber(offset, shape, torch.tensor([[1, 0]]), pixels, 1.0)
    np.testing.assert_allclose(value[0], straight[0], atol=1e-7)


def test_sorted_pixels_are_made_once_for_all_sites_of_a_grid():
    pooled = pool_depth(np.zeros((2, 2, 2), dtype=np.float32), (1, 1))
    device = torch.device("cpu")
    once = losses.patch_pixels(pooled, torch.float32, device)
    assert losses.patch_pixels(pooled, torch.float32, device) is once
    assert losses.patch_pixels(pooled, torch.float64, device) is not once


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_smoothness_equals_the_enlarged_maps_in_value_and_gradient(rows, columns, height, width, seed):
    random = np.random.default_rng(seed)
    size = (rows * height, columns * width)
    images = random.integers(0, 256, (2, *size, 3), dtype=np.uint8)
    prediction = random.standard_normal((2, rows, columns))
    edges = pool_edges(images, (rows, columns))
    maps = torch.from_numpy(prediction)[None, None]
    value, gradient = losses.smoothness(maps, torch.from_numpy(edges.across), torch.from_numpy(edges.down))
    free = torch.from_numpy(prediction).requires_grad_()
    enlarged = torch.nn.functional.interpolate(free[:, None], size=size, mode="nearest")
    slow = probe_reference.smoothness(enlarged, probe_reference.unit_range(images, torch.float64))
    np.testing.assert_allclose(float(value), float(slow.detach()), atol=1e-12)
    if slow.requires_grad:
        slow.backward()
        np.testing.assert_allclose(gradient[0, 0], free.grad, atol=1e-12)


def test_smoothness_by_hand():
    maps = torch.tensor([[[[[1.0, 3.0]]]]])
    value, gradient = losses.smoothness(maps, torch.tensor([[[0.5]]]), torch.zeros(1, 0, 2))
    assert float(value) == pytest.approx(1.0)
    np.testing.assert_allclose(gradient.flatten(), [-0.5, 0.5])
