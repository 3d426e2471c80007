"""The import contracts of pyproject.toml hold, every module has a docstring, and `sweeps` is this project's."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]
PACKAGES = ("storage", "probing", "interventions", "cluster", "sweeps")
MODULES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def test_import_contracts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    broken = lint_imports(no_cache=True)
    assert not broken, capsys.readouterr().out


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_sweeps_is_not_the_package_of_wandb() -> None:
    """The extra wandb[sweeps] installs a package of the same name."""
    import sweeps

    assert Path(sweeps.__file__ or "").parent == ROOT / "sweeps"
