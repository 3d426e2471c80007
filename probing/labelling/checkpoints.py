"""Reading other people's checkpoints: never running code in them, and one clear line when they don't fit."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """Where weights come from, in the words of an error message."""

    key: str
    """the setting that names the weights"""
    path: str
    """the value of that setting"""
    origin: str
    """where the official weights can be had"""

    @property
    def file(self) -> Path:
        return Path(self.path).expanduser()

    def error(self, what: str) -> ValueError:
        """A one-line ValueError: setting, value, and what is wrong with it."""
        return ValueError(" ".join(f"{self.key}: {self.path or 'not set'}: {what}".split()))


def read(source: Source) -> State:
    """The tensors of a .pth, .pt or .safetensors file, floats as float32, without the prefix `module.`.

    Pickles are read with `weights_only=True`: objects and calls in them are refused, not run.
    Raises ValueError where the file is missing, damaged, unsafe, or no state dict.
    """
    if not source.path:
        raise source.error(f"needs a checkpoint; download {source.origin} and give its path")
    if not source.file.is_file():
        raise source.error(f"no such file; the official weights are at {source.origin}")
    state = _tensors(_load(source), source)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return {n: v.float() if v.is_floating_point() else v for n, v in state.items()}


def _load(source: Source) -> Any:
    try:
        if source.file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(source.file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(source.file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files fail in many ways, all of them the user's to mend
        raise source.error(unreadable(error, source.origin)) from error


def unreadable(error: Exception, origin: str) -> str:
    """What to tell about a file that could not be read."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    if found:
        return (
            f"holds more than tensors ({found.group(1)}), which was refused and not run; "
            f"use the official weights from {origin}"
        )
    return f"not a readable checkpoint: cut short, damaged or of another kind; get {origin} again"


def _tensors(loaded: Any, source: Source) -> State:
    """The state dict itself, also where it is kept under a name beside an optimiser's."""
    for name in ("model", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping) or not loaded:
        raise source.error(f"holds a {type(loaded).__name__}, not a state dict; see {source.origin}")
    wrong = [name for name, value in loaded.items() if not isinstance(value, Tensor)]
    if wrong:
        raise source.error(f"entry {wrong[0]!r} is no tensor, so this is no state dict; see {source.origin}")
    return {str(name): value for name, value in loaded.items()}


def fill(network: nn.Module, state: State, source: Source) -> None:
    """Puts every tensor into a network (made on the meta device) strictly: same names, same shapes.

    Raises ValueError that counts and names what is missing, unknown, misshapen or not finite.
    """
    wanted = network.state_dict()
    both = wanted.keys() & state.keys()
    faults = {
        "missing": wanted.keys() - state.keys(),
        "unknown": state.keys() - wanted.keys(),
        "of another shape": {n for n in both if wanted[n].shape != state[n].shape},
        "not finite": {n for n in both if not bool(state[n].isfinite().all())},
    }
    refuse(faults, source)
    network.load_state_dict(state, strict=True, assign=True)


def refuse(faults: Mapping[str, Iterable[str]], source: Source) -> None:
    """Raises ValueError where any kind of fault has names, with their number and the first of them."""
    listed = {kind: sorted(names) for kind, names in faults.items()}
    said = [f"{len(names)} tensors {kind} ({names[0]})" for kind, names in listed.items() if names]
    if said:
        raise source.error(f"does not fit: {', '.join(said)}; use {source.origin}")


def digest(files: Iterable[Path]) -> str:
    """`sha256:` and 16 hex digits: of the file itself, or of all digests where there are several."""
    found = []
    for path in files:
        with path.open("rb") as file:
            found.append(hashlib.file_digest(file, "sha256").hexdigest())
    whole = found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()
    return f"sha256:{whole[:16]}"
