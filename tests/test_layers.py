"""The import contracts of pyproject.toml hold, every module has a docstring, and `sweeps` is this project's."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("storage", "probing", "interventions", "cluster", "sweeps")
MODULES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def test_import_contracts() -> None:
    # in a process of its own, because import-linter disables the loggers that later tests read
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_sweeps_is_not_the_package_of_wandb() -> None:
    """The extra wandb[sweeps] installs a package of the same name."""
    import sweeps

    assert Path(sweeps.__file__ or "").parent == ROOT / "sweeps"
