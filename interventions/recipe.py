"""An intervention as a YAML file that replays to the same pixels (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields

import yaml

from interventions.config import EditSpec
from interventions.counterfactual import TargetSpec, sealed, target_from_values, target_values

HEAD = "scenesweep-intervention"
VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """One batch of edits: everything that its pixels depend on except weights and labels."""

    prompt: str
    seed: int
    """of the initial noise"""
    guidance: float
    """guidance scale while editing"""
    spec: EditSpec
    """where, when and how strongly activations are edited"""
    goals: tuple[TargetSpec, ...]
    """the targets; they share batches, so all of them are needed to reproduce the last bits"""
    controls: tuple[str, ...] = ()
    """comparisons in the same batches"""
    rows: int = 32
    """largest batch"""
    draw_seed: int = 0
    """of random directions"""
    draw_sample: int = 0
    """sample number that random directions are drawn for"""
    sample: int | None = None
    """sample of the run whose stored labels are the original's; null labels a fresh image"""
    model: str = ""
    """name and revision of the model"""
    probes: str = ""
    """origin of the probes: a run's output, or the folder of the authors' probes"""

    def to_yaml(self) -> str:
        """The file's text. Target labels from files are named with their checksums.

        Raises ValueError if such a file cannot be read.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        # YAML knows no tuples
        values["spec"] = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.spec).items()}
        values["goals"] = [target_values(sealed(target)) for target in self.goals]
        values["controls"] = list(self.controls)
        return yaml.safe_dump({"kind": HEAD, "version": VERSION, **values}, sort_keys=False)


def from_yaml(text: str) -> Recipe:
    """Read a recipe. Raises ValueError naming the wrong key."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"intervention file: not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, Mapping) or values.get("kind") != HEAD:
        raise ValueError(f"intervention file: its first line must be `kind: {HEAD}`")
    if values.get("version") != VERSION:
        raise ValueError(f"intervention file: version={values.get('version')}; this program reads version {VERSION}")
    values = {name: value for name, value in values.items() if name not in ("kind", "version")}
    _check_keys(Recipe, values, "")
    _check_keys(EditSpec, values["spec"], "spec.")
    targets = tuple(target_from_values(target) for target in values["goals"])
    if not targets:
        raise ValueError("intervention file: goals is empty; give at least one move")
    values["spec"] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["spec"].items()}
    return Recipe(
        **{
            **values,
            "spec": EditSpec(**values["spec"]),
            "goals": targets,
            "controls": tuple(values.get("controls", ())),
        }
    )


def _check_keys(kind: type[Recipe] | type[EditSpec], values: object, prefix: str) -> None:
    names = [field.name for field in fields(kind)]
    if not isinstance(values, Mapping):
        raise ValueError(f"intervention file: {prefix[:-1]} must be a group of keys: {', '.join(names)}")
    for name in values:
        if name not in names:
            raise ValueError(f"intervention file: unknown key {prefix}{name}; keys: {', '.join(names)}")
    optional = {field.name for field in fields(kind) if field.default is not MISSING}
    for name in set(names) - set(values) - optional:
        raise ValueError(f"intervention file: {prefix}{name} is missing")
