"""Verbs that neither sample nor fit start fast: they load no library of models, clusters or tracking."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
HEAVY = {"torch", "diffusers", "transformers", "ray", "wandb"}
VERB = "from sweeps.cli.main import main; main(sys.argv[1:])"
REPORT = """
import storage
from sweeps.config.load import to_dict
from sweeps.report import build
from sweeps.runtime.run import stored_config
build.build(storage.open(sys.argv[1]), to_dict(stored_config(sys.argv[1])))
"""


def loaded(script: str, *words: str) -> set[str]:
    """Modules that a script with these arguments has loaded when it ends."""
    code = f"import atexit, sys\natexit.register(lambda: print('loaded', *sys.modules))\n{script}"
    ran = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(ran.stdout.splitlines()[-1].split())


def test_help_loads_no_library() -> None:
    assert not loaded(VERB, "--help") & (HEAVY | {"numpy", "pyarrow", "omegaconf"})


def test_plan(tmp_path: Path) -> None:
    assert not loaded(VERB, "plan", "scenes", f"output={tmp_path / 'out'}") & HEAVY


def test_status(sampled: Path) -> None:
    assert not loaded(VERB, "status", str(sampled)) & HEAVY


def test_report(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    assert not loaded(REPORT, str(tmp_path / "run")) & HEAVY
