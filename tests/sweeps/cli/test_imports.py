"""Verbs that neither sample nor fit start fast: they load no library of models, clusters or tracking."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HEAVY = {"torch", "diffusers", "transformers", "ray", "wandb"}
SCRIPT = """
import sys
from sweeps.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print("loaded", *sys.modules)
"""


def loaded(*words: str) -> set[str]:
    """Modules that a command has loaded when it ends."""
    ran = subprocess.run([sys.executable, "-c", SCRIPT, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(ran.stdout.splitlines()[-1].split())


def test_help_loads_no_library() -> None:
    assert not loaded("--help") & (HEAVY | {"numpy", "pyarrow", "omegaconf"})


def test_plan(tmp_path: Path) -> None:
    assert not loaded("plan", "scenes", f"output={tmp_path / 'out'}") & HEAVY


@pytest.mark.parametrize("verb", ["status", "report"])
def test_verbs_on_a_finished_run(verb: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    assert not loaded(verb, str(tmp_path / "run")) & HEAVY
