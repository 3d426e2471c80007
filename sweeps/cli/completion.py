"""What the shell can complete: names of presets, keys of settings."""

from __future__ import annotations

from typing import Any


def preset(prefix: str, **_: Any) -> list[str]:
    """Presets and YAML files; also keys, since a pair may take the preset's place."""
    from argcomplete.completers import FilesCompleter

    from sweeps.config.load import presets

    return [*presets(), *FilesCompleter(["yaml", "yml"])(prefix), *pair(prefix)]


def pair(prefix: str, **_: Any) -> list[str]:
    """The keys of all settings, each with its equals sign."""
    from sweeps.config.load import flat, to_dict
    from sweeps.config.schema import Config

    return [] if "=" in prefix else [f"{key}=" for key in flat(to_dict(Config()))]
