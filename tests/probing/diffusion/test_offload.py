"""Copies to the host: right values whatever the device does meanwhile, and no more buffers than are in use."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probing.diffusion.offload import Offload


def devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.mark.parametrize("name", devices())
def test_values_arrive_whatever_is_computed_meanwhile(name):
    device = torch.device(name)
    offload = Offload(device)
    expected, arrivals = [], []
    for seed in range(20):
        values = torch.randn((64, 96), generator=torch.Generator().manual_seed(seed)).half()
        expected.append(values.numpy().copy())
        arrivals.append(offload.start(values.to(device)))
        torch.randn((512, 512), device=device) @ torch.randn((512, 512), device=device)
    for values, arrival in zip(expected, arrivals, strict=True):
        with arrival as arrived:
            assert arrived.dtype == np.float16
            np.testing.assert_array_equal(arrived, values)


def test_strided_values_arrive_in_order():
    values = torch.arange(24.0).reshape(2, 3, 4).transpose(1, 2)
    with Offload(torch.device("cpu")).start(values) as arrived:
        assert arrived.flags.c_contiguous
        np.testing.assert_array_equal(arrived, values.numpy())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned buffers belong to CUDA")
def test_buffers_are_used_again():
    offload = Offload(torch.device("cuda"))
    seen = set()
    for _ in range(5):
        with offload.start(torch.ones((8, 8), device="cuda")) as arrived:
            seen.add(arrived.ctypes.data)
    assert len(seen) == 1
    (free,) = offload.free.values()
    assert len(free) == 1
    assert free[0].is_pinned()
