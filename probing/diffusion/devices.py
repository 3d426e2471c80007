"""Choice of the device, its free memory, whether a model fits, and advice on the shard size."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from probing.diffusion.sites import SiteSpec

if TYPE_CHECKING:
    import torch

MARGIN = 1.1
"""factor on counted bytes, for what the libraries themselves need"""
ALIVE = 24
"""arrays of the widest block's size that a UNet call holds at once, counted in its layers"""
GPU_NODES = ("nvidia*", "nvhost*", "kfd", "dxg")
"""device files in /dev, at least one of which a GPU that torch can use needs (NVIDIA, Tegra, AMD, WSL)"""


def pick_device(name: str) -> torch.device:
    """The device of setting `model.device`; `auto` is CUDA if there is a GPU.

    Raises ValueError for another name, or a GPU that this machine does not have.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"model.device: {name!r} is no device; use cpu, cuda or auto") from error
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"model.device={name}: torch sees {count} GPUs on this machine; use model.device=auto or cpu")
    return device


def device_name(name: str) -> str:
    """The same as text. Imports torch only if there could be a GPU, so that a plan is quick on other machines."""
    if name == "auto" and not any(True for pattern in GPU_NODES for _ in Path("/dev").glob(pattern)):
        name = "cpu"
    return name if name == "cpu" else str(pick_device(name))


def free_memory(device: str) -> int:
    """Bytes that can still be allocated on a device."""
    if not device.startswith("cuda"):
        return _available()
    import torch

    return torch.cuda.mem_get_info(device)[0]


def _available() -> int:
    """Memory of this machine available to programs, within the limit of the control group."""
    candidates = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        candidates = [next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))]
    except (OSError, StopIteration, ValueError):
        pass
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        candidates.append(max(0, limit - used))
    except (OSError, ValueError):
        pass
    return min(candidates)


def check_memory(weights: Mapping[str, int], device: str, variants: int, name: str) -> None:
    """Raise ValueError if a model's weights exceed free memory.

    weights: bytes of each part. The `network` counts once for each variant, but at most twice: the trained one and the
    variant in use.
    """
    networks = min(variants, 2) * weights.get("network", 0)
    needed = int(MARGIN * (networks + sum(size for part, size in weights.items() if part != "network")))
    free = free_memory(device)
    if needed > free:
        raise ValueError(
            f"model.name: {name} needs {needed / 1e9:.1f} GB of {device} memory, {free / 1e9:.1f} GB are free; "
            "try model.dtype=float16, model.device=cpu or a machine with more"
        )


def sample_bytes(sites: Sequence[SiteSpec], guided: bool, itemsize: int) -> int:
    """Estimated bytes that one more sample of a shard takes on the device.

    About 24 arrays as large as the widest recorded one are alive at once in both halves of guidance: 6 skips,
    12 of a feed-forward layer and 6 of a ResNet. Attention needs no matrix (SDPA), and the autoencoder decodes few
    pixels at a time.
    """
    return ALIVE * (2 if guided else 1) * max(site.values for site in sites) * itemsize


def shard_advice(shard: int, weights: int, sample: int, device: str) -> str:
    """One line about the shard size: the memory it needs, and how many samples fit.

    weights, sample: bytes. It is advice only, because the shard size is part of the sampling hash.
    """
    free = free_memory(device)
    most = max(0, int((free - MARGIN * weights) / (MARGIN * sample)))
    needed = MARGIN * (weights + shard * sample)
    known = f"{weights / 1e9:.2g} of weights" if weights else "weights not on this machine and not counted"
    fix = "" if shard <= most else "; lower sampling.shard, or run on a device with more free memory"
    return (
        f"about {needed / 1e9:.2g} GB on the device, estimated ({known}, {sample / 1e9:.2g} a sample); "
        f"{free / 1e9:.3g} GB are free on this {device.partition(':')[0]}, enough for {most} samples at once{fix}"
    )
