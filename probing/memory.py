"""Free memory of this machine or its GPU, whether a model fits in it, and the shard size it allows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from probing.sites import SiteSpec

MARGIN = 1.1
"""weights and buffers are counted; what the libraries themselves take is this much more"""
IN_FLIGHT = 2
"""steps of a shard that wait to be written"""


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


def shard_bytes(sites: Sequence[SiteSpec], latent: tuple[int, int, int], guided: bool, itemsize: int) -> tuple[int, int]:
    """Bytes that one sample of a shard takes: (on the device, of the host's buffers for writing).

    On the device, by counting: the widest block's activations of both halves, of which about 24 are alive at
    once (skips, ResNet and attention intermediates), and no attention matrix, since SDPA makes none. On the
    host: the recorded float16 activations of the steps that wait to be written.
    """
    halves = 2 if guided else 1
    widest = max(site.values for site in sites)
    host = IN_FLIGHT * 2 * sum(site.values for site in sites)
    return 24 * halves * widest * itemsize + latent[0] * latent[1] * latent[2] * 4, host


def shard_advice(
    free_device: int, weights: int, per_sample: tuple[int, int], free_host: int, shard: int, where: str
) -> str:
    """A line about the shard size: what fits beside the weights; it never changes the setting."""
    device, host = per_sample
    room = max(0, free_device - int(MARGIN * weights)) // max(1, int(MARGIN * device))
    most = min(room, free_host // max(1, int(MARGIN * host)))
    verdict = "fits" if shard <= most else "does NOT fit, lower sampling.shard"
    return f"shard             {shard} {verdict}: by estimate at most {most} samples go together on this machine's {where}"
