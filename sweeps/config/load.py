"""Reading and writing configurations: presets, files and `key=value` pairs, checked against the schema."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweeps.config.schema import Config, hint


def presets() -> dict[str, Path]:
    """Names and files of the presets that ship with the package."""
    folder = Path(str(files("sweeps.config") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load(preset: str, overrides: Sequence[str]) -> Config:
    """The configuration of a preset or YAML file, overridden by `key=value` pairs.

    Raises ValueError with one line that names key, value and fix.
    """
    defaults = OmegaConf.create(to_dict(Config()))
    settings = _read(preset)
    settings.merge_with(_pairs(overrides))
    try:
        _refuse_unknown(defaults, settings, "")
        merged = OmegaConf.merge(defaults, settings)
        config = build(container(merged, "configuration", resolve=True))
    except OmegaConfBaseException as error:
        raise ValueError(f"configuration: {_first_line(error)}") from error
    _check_selection(config)
    return config


def build(values: Mapping[str, Any]) -> Config:
    """A Config from nested dictionaries; keys that are no settings (any more) are ignored.

    Raises ValueError that names key and value if a value does not have its setting's type.
    """
    schema = OmegaConf.structured(Config)
    settings = _plain_settings(Config(), values, "")
    try:
        config = OmegaConf.to_object(OmegaConf.merge(schema, settings))
    except OmegaConfBaseException as error:
        value = OmegaConf.select(OmegaConf.create(settings), error.full_key or "")
        raise ValueError(f"{error.full_key}={value!r}: {_first_line(error)}") from error
    assert isinstance(config, Config)
    return config


def container(settings: object, source: str, resolve: bool) -> dict[str, Any]:
    """What OmegaConf read, as plain dictionaries and lists. Raises ValueError if it has no keys."""
    values = OmegaConf.to_container(settings, resolve=resolve)
    if not isinstance(values, dict):
        raise ValueError(f"{source} holds no keys; write `key: value` lines")
    return {str(key): value for key, value in values.items()}


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested plain dictionaries and lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_yaml(config: Config) -> str:
    """The configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def _read(preset: str) -> DictConfig:
    known = presets()
    path = known.get(preset, Path(preset))
    if preset not in known and not path.is_file():
        raise ValueError(f"preset {preset!r}: no such preset or file; {hint(preset, known)}")
    try:
        settings = OmegaConf.load(path)
    except Exception as error:  # the YAML reader raises several kinds
        raise ValueError(f"{path}: not readable YAML: {_first_line(error)}") from error
    if not isinstance(settings, DictConfig):
        raise ValueError(f"{path}: holds no keys; write `key: value` lines")
    base = settings.pop("preset", None)
    if base:
        inherited = _read(base)
        inherited.merge_with(settings)
        return inherited
    return settings


def _pairs(overrides: Sequence[str]) -> DictConfig:
    for text in overrides:
        if "=" not in text or text.startswith("="):
            raise ValueError(f"argument {text!r}: write key=value, such as sampling.shard=16")
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except Exception as error:  # the YAML reader raises several kinds
        raise ValueError(f"arguments: {_first_line(error)}") from error


def _refuse_unknown(defaults: DictConfig, settings: DictConfig, prefix: str) -> None:
    for key in map(str, settings):
        path = prefix + key
        if key not in defaults:
            raise ValueError(f"{path}: unknown key; {hint(key, map(str, defaults), prefix)}")
        group, value = defaults[key], settings[key]
        if isinstance(group, DictConfig) and isinstance(value, DictConfig):
            _refuse_unknown(group, value, f"{path}.")
        elif isinstance(group, DictConfig):
            raise ValueError(f"{path}={value}: a group of keys; set one of them, {path}.KEY=VALUE")
        elif isinstance(value, DictConfig):
            raise ValueError(f"{path}={value}: needs a value, not keys")


def _plain_settings(default: Any, values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The values of known keys; those that OmegaConf reads otherwise than a command line needs are converted.

    A single value for a list is a list of one, a missing text is empty, 3.0 is a whole number, and 1 is no boolean.
    """
    settings: dict[str, Any] = {}
    for name, default_value in vars(default).items():
        if name not in values:
            continue
        value = values[name]
        if dataclasses.is_dataclass(default_value):
            value = _plain_settings(default_value, value, f"{prefix}{name}.")
        elif isinstance(default_value, list | tuple) and not isinstance(value, list | tuple):
            value = [value]
        elif isinstance(default_value, str) and value is None:
            value = ""
        elif isinstance(default_value, bool) and not isinstance(value, bool):
            raise ValueError(f"{prefix}{name}={value!r}: needs true or false")
        elif isinstance(default_value, int) and isinstance(value, float) and value.is_integer():
            value = int(value)
        settings[name] = value
    return settings


def _check_selection(config: Config) -> None:
    """Raises ValueError if epochs are to be selected on validation images and there will be none.

    Checked here and not in the dataclasses, so that a finished run with such settings can still be read.
    """
    if config.probe.selection != "val":
        return
    if config.prompts.test:
        reason = f"prompts.test={config.prompts.test} makes a split of two files without any"
    elif config.curation.val <= 0:
        reason = f"curation.val={config.curation.val:g} leaves none"
    else:
        return
    raise ValueError(f"probe.selection=val: needs validation images, and {reason}; set probe.selection=last")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
