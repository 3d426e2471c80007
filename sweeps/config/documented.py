"""All settings with types, defaults, units and meanings: the fields of the dataclasses and their docstrings."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from sweeps.config.load import default_values
from sweeps.config.schema import Config

TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false"}
UNITS = {
    "model.size": "pixels",
    "sampling.shard": "samples",
    "sampling.steps": "denoising steps",
    "sampling.threads": "threads",
    "sampling.retries": "attempts",
    "prompts.count": "prompts",
    "curation.train": "samples, or a share below 1",
    "curation.val": "samples, or a share below 1",
    "curation.test": "samples, or a share below 1",
    "curation.min_foreground": "share of the image",
    "curation.max_foreground": "share of the image",
    "labels.threshold": "of 255",
    "probe.epochs": "epochs",
    "probe.batch": "samples",
    "probe.val_every": "epochs",
    "probe.hidden": "units",
    "probe.huber_delta": "standard deviations of depth",
    "sweep.steps": "denoising steps",
    "sweep.surface_rgb_steps": "denoising steps",
    "experiments.emergence_images": "images",
    "experiments.emergence_shown": "images",
    "interventions.images": "images",
    "interventions.moves": "moves per image",
    "interventions.iterations": "steps of Adam",
    "interventions.depth_span": "standard deviations of depth",
    "interventions.saliency_gain": "of `interventions.scale`",
    "interventions.depth_gain": "of `interventions.scale`",
    "interventions.gains": "of `interventions.scale`",
    "interventions.lr": "of `interventions.lr_units`",
    "interventions.ablation_images": "images",
    "interventions.dose": "steps of Adam",
    "interventions.step_counts": "denoising steps",
    "interventions.second_objects": "images",
    "interventions.transplants": "images",
    "interventions.frames": "frames",
    "interventions.rows": "images",
    "interventions.keep_images": "images",
    "ray.num_cpus": "CPUs",
    "ray.sampling_actors": "workers",
    "ray.sampling_gpus": "GPUs per worker",
    "ray.label_gpus": "GPUs per worker",
    "ray.probe_gpus": "GPUs per trial",
}
"""of settings that have one; keys that end in `_steps` count denoising steps"""


@dataclass(frozen=True)
class Setting:
    """One setting of a run."""

    key: str
    type: str
    default: str
    unit: str
    meaning: str


def settings() -> list[Setting]:
    """All settings, in the order of the configuration."""
    return list(_settings(Config, default_values(), ""))


def _settings(group: type, defaults: dict[str, Any], prefix: str) -> Iterator[Setting]:
    meanings = _docstrings(group)
    for name, kind in get_type_hints(group).items():
        if dataclasses.is_dataclass(kind):
            yield from _settings(kind, defaults[name], f"{prefix}{name}.")  # type: ignore[arg-type]
            continue
        key, default = f"{prefix}{name}", defaults[name]
        shown = default if isinstance(default, str) else json.dumps(default).replace('"', "")
        unit = UNITS.get(key, "denoising steps" if name.endswith("_steps") else "")
        yield Setting(key, _type(kind), shown, unit, meanings.get(name, ""))


def _type(kind: Any) -> str:
    """What a setting takes, in words."""
    container = get_origin(kind)
    if container in (list, tuple):
        return f"list of {TYPES[get_args(kind)[0]]}s".replace("true or falses", "true or false")
    if container is UnionType:
        return f"{TYPES[get_args(kind)[0]]} or null"
    return TYPES[kind]


def _docstrings(group: type) -> dict[str, str]:
    """The string that follows each field of a dataclass, on one line."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(group))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        match field, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def page() -> str:
    """The page of all settings, in Markdown."""
    lines = [
        "# Settings",
        "",
        "Every setting is a key of a preset, of your own YAML file, or of a `key=value` pair on the command line. "
        "`scenesweep config PRESET` shows the values of a preset and where each comes from.",
        "",
        "This page is generated: `scenesweep settings > SETTINGS.md`.",
    ]
    section = None
    for one in settings():
        group = one.key.rpartition(".")[0]
        if group != section:
            head = ["| key | type | default | unit | meaning |", "|---|---|---|---|---|"]
            lines += ["", f"## {group or 'The run'}", "", *head]
            section = group
        meaning = one.meaning.replace("|", "\\|")
        default = f"`{one.default}`" if one.default else "empty"
        lines.append(f"| `{one.key}` | {one.type} | {default} | {one.unit} | {meaning} |")
    return "\n".join(lines) + "\n"
