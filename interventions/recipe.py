"""An intervention as a YAML file that replays to the same pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import yaml

from interventions.config import EditSpec
from interventions.counterfactual import Goal, goal_from, goal_values, sealed

HEAD = "scenesweep-intervention"
VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """One batch of edits: everything that its pixels depend on beside weights and labels."""

    prompt: str
    """what is drawn"""
    seed: int
    """of the initial noise"""
    guidance: float
    """guidance scale while editing"""
    spec: EditSpec
    """where, when and how strongly"""
    goals: tuple[Goal, ...]
    """the wanted scenes; they share batches, so all of them are needed to get the same last bits"""
    controls: tuple[str, ...] = ()
    """comparisons made in the same batches"""
    rows: int = 32
    """most images in one batch"""
    draw_seed: int = 0
    """of random directions"""
    draw_sample: int = 0
    """sample number that random directions are drawn for"""
    sample: int | None = None
    """sample of the run whose stored labels are the original's; null labels a fresh image"""
    model: str = ""
    """name and revision of the model that it was made with"""
    probes: str = ""
    """where the probes came from"""

    def to_yaml(self) -> str:
        """The file's text. Files with a user's own labels are named with their checksums."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["spec"] = {k: _plain(v) for k, v in asdict(self.spec).items()}
        values["goals"] = [goal_values(sealed(goal)) for goal in self.goals]
        values["controls"] = list(self.controls)
        return yaml.safe_dump({"kind": HEAD, "version": VERSION, **values}, sort_keys=False)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def from_yaml(text: str) -> Recipe:
    """Reads a recipe. Raises ValueError naming the key that is wrong."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"intervention file: not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, Mapping) or values.get("kind") != HEAD:
        raise ValueError(f"intervention file: its first line must be `kind: {HEAD}`")
    if values.get("version") != VERSION:
        raise ValueError(f"intervention file: version {values.get('version')}, this program reads {VERSION}")
    given = {name: value for name, value in values.items() if name not in ("kind", "version")}
    _check_keys(Recipe, given, "")
    _check_keys(EditSpec, given["spec"], "spec.")
    spec: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given["spec"].items()}
    goals = tuple(goal_from(goal) for goal in given["goals"])
    if not goals:
        raise ValueError("intervention file: goals is empty; give at least one move")
    controls = tuple(given.get("controls", ()))
    return Recipe(**{**given, "spec": EditSpec(**spec), "goals": goals, "controls": controls})


def _check_keys(kind: type, values: Any, prefix: str) -> None:
    names = [f.name for f in fields(kind)]
    if not isinstance(values, Mapping):
        raise ValueError(f"intervention file: {prefix[:-1]} must be a group of keys: {', '.join(names)}")
    for name in values:
        if name not in names:
            raise ValueError(f"intervention file: unknown key {prefix}{name}; keys: {', '.join(names)}")
    optional = {f.name for f in fields(kind) if f.default is not MISSING}
    for name in set(names) - set(values) - optional:
        raise ValueError(f"intervention file: {prefix}{name} is missing")
