"""Packages import only from those to their left; the names are ours; modules keep to the style."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ("storage", "probing", "interventions", "cluster", "sweeps")
MODULES = sorted(path for name in ORDER for path in (ROOT / name).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names


def layer(path: Path) -> int:
    return ORDER.index(path.relative_to(ROOT).parts[0])


def test_every_package_is_there():
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_left(path: Path):
    right = set(ORDER[layer(path) + 1 :])
    assert not imported(path) & right


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("storage", {"torch", "diffusers", "transformers", "ray", "wandb", "omegaconf"}),
        ("probing", {"ray", "wandb", "omegaconf"}),
        ("interventions", {"ray", "wandb", "omegaconf"}),
        ("cluster", {"diffusers", "transformers", "wandb", "omegaconf"}),
    ],
)
def test_heavy_libraries_stay_with_their_owner(package: str, forbidden: set[str]):
    for path in (ROOT / package).rglob("*.py"):
        assert not imported(path) & forbidden, path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_for(path: Path):
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_this_sweeps_is_ours():
    import sweeps

    assert Path(sweeps.__file__).parent == ROOT / "sweeps"
