"""The labellers' resizing against numpy, and the batching around it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probing.labelling import images
from probing.labelling.images import ImageLabeller
from support import labelling_reference


@pytest.mark.parametrize(("shape", "size"), [((50, 50), (37, 37)), ((16, 20), (24, 31)), ((512, 6), (384, 6))])
def test_cubic_is_cubic_without_antialias(shape, size):
    image = np.random.default_rng(1).random((3, *shape))
    found = images.resize_cubic(torch.from_numpy(image)[None], size)[0].numpy()
    assert np.abs(found - labelling_reference.cubic(image, *size)).max() < 1e-9
    assert found.min() < -0.01  # antialiased or linear resizing of white noise never leaves its range


@pytest.mark.parametrize("factor", [2, 4])
def test_linear_is_linear_with_half_pixel_centres(factor):
    maps = np.random.default_rng(2).standard_normal((1, 5, 7))
    found = images.resize_linear(torch.from_numpy(maps)[None], (5 * factor, 7 * factor))[0].numpy()
    assert np.abs(found - labelling_reference.linear(maps, factor)).max() < 1e-12


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (512, 512, (384, 384)),
        (128, 128, (384, 384)),
        (512, 768, (384, 576)),
        (480, 640, (384, 512)),
        (400, 384, (384, 384)),
    ],
)
def test_minimal_size(height, width, expected):
    assert images.minimal_size(height, width, 384, 32) == expected


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(512, 512, (518, 518)), (512, 768, (518, 784)), (1000, 500, (1036, 518))]
)
def test_covering_size(height, width, expected):
    assert images.covering_size(height, width, 518, 14) == expected


@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
def test_sizes_are_positive_multiples(height, width):
    for rule, target, multiple in ((images.minimal_size, 384, 32), (images.covering_size, 518, 14)):
        size = rule(height, width, target, multiple)
        assert all(side > 0 and side % multiple == 0 for side in size)
    assert min(images.covering_size(height, width, 518, 14)) >= 518


def test_normalise():
    levels = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 3, 1, 1)
    found = images.normalise(levels, images.IMAGENET_MEAN, images.IMAGENET_STD)
    assert found.dtype == torch.float32
    assert np.allclose(found.flatten(), [-0.485 / 0.229, (0.5 - 0.456) / 0.224, (1 - 0.406) / 0.225], atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_labeller_hands_images_on_and_labels_back_in_order(count):
    pictures = np.random.default_rng(3).integers(0, 256, (count, 4, 6, 3), np.uint8)
    labeller = ImageLabeller("r", lambda part: part[:, 1], torch.device("cpu"), np.uint8)
    labels = labeller(pictures)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, pictures[..., 1])


@pytest.mark.parametrize(("shape", "dtype"), [((2, 4, 4, 3), "float32"), ((4, 4, 3), "uint8"), ((1, 4, 4, 4), "uint8")])
def test_labeller_refuses_other_arrays(shape, dtype):
    labeller = ImageLabeller("r", lambda part: part[:, 0], torch.device("cpu"), np.uint8)
    with pytest.raises(ValueError, match=r"uint8 images \(n, H, W, 3\)"):
        labeller(np.zeros(shape, dtype))
