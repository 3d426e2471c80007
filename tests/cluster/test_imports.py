"""Commands that only read configuration and tables must start without the heavy libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "diffusers", "transformers", "zarr", "numcodecs", "obstore", "wandb", "matplotlib")


LIGHT = (
    *("storage", "storage.audit", "cluster", "cluster.submit", "cluster.facts"),
    *("cluster.observers.combined", "cluster.process"),
)


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_imports_no_heavy_library(module: str) -> None:
    code = f"import sys, {module}; print(*({set(HEAVY)} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
