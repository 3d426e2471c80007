"""Reading and writing configurations: presets, files and `key=value` pairs, checked against the schema."""

from __future__ import annotations

import dataclasses
import json
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from storage.backends import local_path
from sweeps.config import reading
from sweeps.config.schema import Config, hint

NULLS = (None, "", "null", "Null", "NULL", "~")
"""no value, as YAML writes it"""
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")
T = TypeVar("T")


def presets() -> dict[str, Path]:
    """Names and files of the presets that ship with the package."""
    folder = Path(str(files("sweeps.config") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load(preset: str, overrides: Sequence[str]) -> Config:
    """The configuration of a preset or YAML file, overridden by `key=value` pairs.

    Raises ValueError with one line that names key, value and fix.
    """
    defaults = default_values()
    settings: dict[str, Any] = {}
    for _, layer in _layers(preset, overrides, defaults):
        settings = _merged(_without_foreign_revision(settings, layer), layer)
    config = build(reading.resolved(_merged(defaults, settings)))
    _check_selection(config)
    return config


def sources(preset: str, overrides: Sequence[str]) -> dict[str, str]:
    """Where the value of each dotted key comes from: default, `preset NAME`, a file's path or command line.

    Raises ValueError as `load` does for what cannot be read, and for unknown keys.
    """
    defaults = to_dict(Config())
    settings: dict[str, Any] = {}
    found: dict[str, str] = {}
    for source, layer in _layers(preset, overrides, defaults):
        settings = _merged(_without_foreign_revision(settings, layer), layer)
        found |= dict.fromkeys(flat(layer), source)
    given = flat(settings)
    return {key: found[key] if key in given else "default" for key in flat(defaults)}


def flat(group: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one with dotted keys."""
    result: dict[str, Any] = {}
    for name, value in group.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return result


def _layers(preset: str, overrides: Sequence[str], defaults: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (source, settings) from the bottom up, whose keys are all known."""
    for source, layer in (*_read(preset), ("command line", reading.pairs(overrides, defaults))):
        _refuse_unknown(defaults, layer, "")
        yield source, layer


def default_values() -> dict[str, Any]:
    """The default of every setting, as nested plain dictionaries and lists.

    Of the groups by themselves: a whole Config replaces steps that count from the end by their numbers.
    """
    plain: dict[str, Any] = {}
    for one in dataclasses.fields(Config):
        value: Any = one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
        plain[one.name] = value if isinstance(value, str) else dataclasses.asdict(value)
    return json.loads(json.dumps(plain))


def build(values: Mapping[str, Any]) -> Config:
    """A Config from nested dictionaries of values or their text; keys that are no settings (any more) are ignored.

    Raises ValueError that names key and value if a value does not have its setting's type.
    """
    return _group(Config, values, "")


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested plain dictionaries and lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_yaml(config: Config) -> str:
    """The configuration as YAML."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def from_yaml(document: bytes, source: str) -> dict[str, Any]:
    """The values of a `to_yaml` document, for `build`. Raises ValueError that names the source."""
    return reading.keys_of(reading.parse(document, source), source)


def _without_foreign_revision(settings: dict[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """The settings below a layer without the commit of a model that the layer replaces by another one."""
    model = layer.get("model", {})
    if "name" not in model or "revision" in model:
        return settings
    return {**settings, "model": {k: v for k, v in settings.get("model", {}).items() if k != "revision"}}


def _read(preset: str, inside: Path | None = None, chain: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """(source, settings) of a preset or file, after those of the preset or file that it stands on.

    inside: the file that names it; a relative path is one from that file's folder.
    """
    known = presets()
    path = known.get(preset)
    if path is None:
        path = local_path(preset, "preset")
        path = inside.parent / path if inside else path
        if not path.is_file():
            where = f"{inside}: " if inside else ""
            raise ValueError(f"{where}preset {preset!r}: no such preset or file; {hint(preset, known)}")
    if path.resolve() in chain:
        raise ValueError(f"{inside}: preset {preset!r} stands on itself; leave `preset` out of one of the files")
    settings = reading.read(path)
    own = (f"preset {preset}" if preset in known else str(path), settings)
    base = settings.pop("preset", None)
    if base is None:
        return [own]
    if not isinstance(base, str):
        raise ValueError(f"{path}: preset={base}: give the name of a preset, or a file")
    return [*_read(base, path, (*chain, path.resolve())), own]


def _refuse_unknown(defaults: Mapping[str, Any], settings: Mapping[str, Any], prefix: str) -> None:
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if key not in defaults:
            raise ValueError(f"{path}: unknown key; {_near_keys(str(key), defaults, prefix)}")
        group = defaults[key]
        if isinstance(group, Mapping) and isinstance(value, Mapping):
            _refuse_unknown(group, value, f"{path}.")
        elif isinstance(group, Mapping):
            raise ValueError(f"{path}={value}: a group of keys; set one of them, {path}.KEY=VALUE")
        elif isinstance(value, Mapping):
            raise ValueError(f"{path}={value}: needs a value, not keys")


def _near_keys(key: str, group: Mapping[str, Any], prefix: str) -> str:
    """What an unknown key may have meant: a key of its group, the same key of other groups, or all of the group."""
    whole = prefix + key
    known = list(flat(to_dict(Config())))
    by_name: dict[str, list[str]] = {}
    for path in known:
        by_name.setdefault(path.rpartition(".")[2], []).append(path)
    if not get_close_matches(key, group, 1):
        # a key without its section, or in another one
        names = [key] if key in by_name else get_close_matches(key, by_name, 1)
        if found := [path for name in names for path in by_name[name]]:
            return f"did you mean {' or '.join(map(repr, found[:4]))}?"
        if near := get_close_matches(whole, known, 1):
            return f"did you mean {near[0]!r}?"
    return hint(key, group, prefix)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _group(kind: type[T], values: object, prefix: str) -> T:
    """A dataclass of settings, each read by the type of its field."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix[:-1]}={values}: a group of keys; set one of them, {prefix}KEY=VALUE")
    given = {}
    for name, field_type in get_type_hints(kind).items():
        if name in values:
            is_group = dataclasses.is_dataclass(field_type)
            path = f"{prefix}{name}"
            given[name] = (_group if is_group else _value)(field_type, values[name], f"{path}." if is_group else path)
    return kind(**given)


def _value(kind: Any, value: Any, path: str) -> Any:
    """One value of a setting; a single value for a list is a list of one.

    Raises ValueError that names key, value and what is needed.
    """
    container = get_origin(kind)
    if container in (list, tuple):
        if value in NULLS:
            raise ValueError(f"{path}={value or ''}: needs values; write [] for none")
        items = value if isinstance(value, list | tuple) else [value]
        return container(_value(get_args(kind)[0], item, f"{path}[{i}]") for i, item in enumerate(items))
    if container is UnionType:
        if value in NULLS:
            return None
        kind = get_args(kind)[0]
    reading.check_references(value, None, path)  # resolved by now: what is left, another person put into an output
    read, needed = READERS[kind]
    try:
        return read(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}={value}: needs {needed}") from error


def _text(value: object) -> str:
    if isinstance(value, Mapping | list | tuple):
        raise TypeError
    return "" if value is None else str(value)


def _whole(value: Any) -> int:
    """A whole number, also written 4.0 or 1e3."""
    try:
        return int(value, 10) if isinstance(value, str) else operator.index(value)
    except (ValueError, TypeError):
        number = float(value)
        if not number.is_integer():
            raise
        return int(number)


def _truth(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if word not in (*TRUE, *FALSE):
        raise ValueError
    return word in TRUE


READERS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    str: (_text, "a text"),
    int: (_whole, "a whole number"),
    float: (float, "a number"),
    bool: (_truth, "true or false"),
}
"""type of a setting -> function that reads it, and what to call it"""


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
