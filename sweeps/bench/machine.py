"""ModelInfo of this machine that a measured number depends on; nothing that names it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "numpy", "ray", "zarr", "diffusers")


def facts() -> dict[str, Any]:
    """Processor, cores that may be used, GiB of memory, GPU, system and versions of libraries."""
    import torch

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in LIBRARIES},
    }


def processor() -> str:
    """Model name of the processor, as far as the system tells."""
    with suppress(OSError):
        for told in Path("/proc/cpuinfo").read_text().splitlines():
            if told.startswith("model name"):
                return told.partition(":")[2].strip()
    return platform.processor() or platform.machine()
