"""Free memory of this machine or its GPU, whether a model fits in it, and the shard size it allows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from probing.diffusion.sites import SiteSpec

MARGIN = 1.1
"""weights and buffers are counted; what the libraries themselves take is this much more"""
ALIVE = 24
"""arrays of the widest block's size that a UNet call holds at once, counted in its layers"""


def free(device: torch.device) -> int:
    """Bytes that can still be taken on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _available()


def _available() -> int:
    """Memory of this machine that programs can take, within the limit of its control group."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = [next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))]
    except (OSError, StopIteration, ValueError):
        pass
    try:
        most, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        found.append(max(0, most - used))
    except (OSError, ValueError):
        pass
    return min(found)


def check(weights: Mapping[str, int], device: torch.device, variants: int, name: str) -> None:
    """ValueError where a model's weights, with a UNet for each of two variants at most, exceed free memory."""
    unets = min(variants, 2) * weights.get("unet", 0)
    need = int(MARGIN * (unets + sum(size for part, size in weights.items() if part != "unet")))
    if need > free(device):
        raise ValueError(
            f"model.name: {name} needs {need / 1e9:.1f} GB of {device.type} memory, {free(device) / 1e9:.1f} GB are "
            "free; try model.dtype=float16, model.device=cpu or a machine with more"
        )


def sample_bytes(sites: Sequence[SiteSpec], guided: bool, itemsize: int) -> int:
    """Bytes that one more sample of a shard takes on the device, by counting.

    About 24 arrays as large as the widest recorded one are alive at once in both halves of guidance: 6 skips,
    12 of a feed-forward layer and 6 of a ResNet. Attention makes no matrix (SDPA), the autoencoder decodes few
    pixels at a time.
    """
    return ALIVE * (2 if guided else 1) * max(site.values for site in sites) * itemsize


def shard_advice(shard: int, weights: int, sample: int, device: torch.device) -> str:
    """A line about the shard size: what it takes and what fits here; it never changes the setting."""
    room = free(device)
    most = max(0, int((room - MARGIN * weights) / (MARGIN * sample)))
    need = MARGIN * (weights + shard * sample)
    held = f"{weights / 1e9:.2g} of weights" if weights else "weights not here and not counted"
    verdict = "" if shard <= most else "; lower sampling.shard, or run where more is free"
    return (
        f"about {need / 1e9:.2g} GB on the device by estimate ({held}, {sample / 1e9:.2g} a sample); "
        f"{room / 1e9:.3g} GB are free on this {device.type}, enough for {most} together{verdict}"
    )
