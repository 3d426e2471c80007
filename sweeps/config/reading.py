"""YAML and `key=value` pairs as nested dictionaries whose scalars are still text.

A reader of YAML guesses types: it makes the number 20261126 of the folder 2026_11_26, infinity of the commit 5e10234,
5349 of 0012345 and "a" of 'a #1'. Here a scalar stays what was written, and `load.build` reads it by the type of its
setting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

REFERENCE = re.compile(r"\$\{\.*[A-Za-z_][\w.]*\}")
"""a reference to another setting, such as ${name}: the only kind of interpolation that is resolved"""


class _TextLoader(yaml.SafeLoader):
    """Reads numbers, booleans and dates as text. A key that is there twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        written = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        mapping = super().construct_mapping(node, deep)
        if twice := sorted({key for key in written if written.count(key) > 1}):
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is there twice", node.start_mark)
        return mapping


for _tag in ("int", "float", "bool", "timestamp", "value"):
    _TextLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", yaml.SafeLoader.construct_scalar)


def parse(text: str | bytes, source: str) -> Any:
    """YAML as dictionaries and lists of text; null is None.

    Raises ValueError that names the source and the line.
    """
    try:
        return yaml.load(text, _TextLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise ValueError(f"{source}{line}: not readable YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{source}: not readable YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise ValueError(f"{source}: not readable YAML: nested too deeply") from error


def read(path: Path) -> dict[str, Any]:
    """The settings in a YAML file. Raises ValueError that names the file, and the line if it is not YAML."""
    try:
        document = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    return keys_of(parse(document, str(path)), str(path))


def keys_of(values: object, source: str) -> dict[str, Any]:
    """What was read, if it is a dictionary. Raises ValueError otherwise."""
    if not isinstance(values, dict):
        raise ValueError(f"{source} holds no keys; write `key: value` lines")
    return {str(key): value for key, value in values.items()}


def pairs(words: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `key=value` pairs. Text keys take their value as it is, and others may have `[a, b]`.

    Raises ValueError for anything else than pairs.
    """
    settings: dict[str, Any] = {}
    for word in words:
        path, equals, value = word.partition("=")
        *groups, key = path.split(".")
        if not (equals and key):
            raise ValueError(f"argument {word!r}: write key=value, such as sampling.shard=16")
        default: Any = defaults
        group = settings
        for name in groups:
            default = default.get(name) if isinstance(default, Mapping) else None
            inner = group.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ValueError(f"argument {word!r}: {name} was given a value before")
            group = inner
        default = default.get(key) if isinstance(default, Mapping) else None
        structured = value.lstrip()[:1] in ("[", "{") and not isinstance(default, str)
        parsed = parse(value, path) if structured else value
        if isinstance(parsed, dict) and isinstance(group.get(key), dict):
            group[key] |= parsed
        else:
            group[key] = parsed
    return settings


def resolved(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings in which references such as ${name} are replaced by the values of the settings that they name.

    Raises ValueError for any other interpolation: OmegaConf would put the environment into ${oc.env:NAME}, and so a
    secret into config.yaml, logs and W&B.
    """
    try:
        if not check_references(settings, REFERENCE):
            return settings
    except RecursionError as error:
        raise ValueError("configuration: nested too deeply") from error
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return keys_of(OmegaConf.to_container(OmegaConf.create(settings), resolve=True), "configuration")
    except (OmegaConfBaseException, RecursionError) as error:
        raise ValueError(f"configuration: {(str(error) or type(error).__name__).splitlines()[0]}") from error


def check_references(values: object, allowed: re.Pattern[str] | None = None, path: str = "") -> bool:
    """Whether there is any reference. Raises ValueError for an interpolation that is not `allowed`."""
    if isinstance(values, Mapping):
        return any([check_references(value, allowed, f"{path}.{key}".lstrip(".")) for key, value in values.items()])
    if isinstance(values, list | tuple):
        return any([check_references(value, allowed, path) for value in values])
    if not isinstance(values, str) or "${" not in values:
        return False
    if allowed is None or "${" in allowed.sub("", values):
        raise ValueError(f"{path}={values}: only another setting can be referred to, as in ${{name}}, no environment")
    return True
