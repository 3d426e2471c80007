"""Strict reading of foreign checkpoints: code in them is never run, and every error is one line."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from storage.backends import local_path

State = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """Where weights come from, for error messages."""

    key: str
    """the setting that names the weights"""
    path: str
    """the value of that setting"""
    origin: str
    """where to get the official weights"""

    @property
    def file(self) -> Path:
        return local_path(self.path, self.key)

    def error(self, problem: str) -> ValueError:
        """A ValueError of one line: setting, value, and what is wrong with it."""
        return ValueError(" ".join(f"{self.key}: {self.path or 'not set'}: {problem}".split()))


def read(source: Source) -> State:
    """The tensors of a .pth, .pt or .safetensors file, floats as float32, without the prefix `module.`.

    Pickles are read with `weights_only=True`: objects and calls in them are refused, not run.
    Raises ValueError if the file is missing, damaged or unsafe, or no state dict.
    """
    if not source.path:
        raise source.error(f"needs a checkpoint; download {source.origin} and give its path")
    if not source.file.is_file():
        raise source.error(f"no such file; the official weights are at {source.origin}")
    try:
        if source.file.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(source.file)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(source.file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many types, and the user can fix the cause of each
        raise source.error(unreadable(error, source.origin)) from error
    state = _state_dict(content, source)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def unreadable(error: Exception, origin: str) -> str:
    """Why a file could not be read: code in a pickle, or damage."""
    match = re.search(r"GLOBAL (\S+)", str(error))
    if match:
        return (
            f"contains more than tensors ({match.group(1)}), which was refused and not run; "
            f"use the official weights from {origin}"
        )
    return f"not a readable checkpoint: truncated, damaged or another kind of file; download {origin} again"


def _state_dict(content: object, source: Source) -> State:
    # training scripts often save the state dict under a name, beside the optimiser's
    for name in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not content:
        raise source.error(f"contains a {type(content).__name__}, not a state dict; see {source.origin}")
    wrong = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if wrong:
        raise source.error(f"entry {wrong[0]!r} is no tensor, so this is no state dict; see {source.origin}")
    return {str(name): value for name, value in content.items()}


def fill(network: nn.Module, state: State, source: Source) -> None:
    """Load every tensor into a network (made on the meta device) strictly: same names, same shapes.

    Raises ValueError with the number and one name of the tensors that are missing, unknown, misshapen or not finite.
    """
    expected = network.state_dict()
    common = expected.keys() & state.keys()
    faults = {
        "missing": expected.keys() - state.keys(),
        "unknown": state.keys() - expected.keys(),
        "of another shape": {name for name in common if expected[name].shape != state[name].shape},
        "not finite": {name for name in common if not bool(state[name].isfinite().all())},
    }
    refuse(faults, source)
    network.load_state_dict(state, strict=True, assign=True)


def refuse(faults: Mapping[str, Iterable[str]], source: Source) -> None:
    """Raise ValueError if any kind of fault has names, with their number and the first of them."""
    sorted_faults = {kind: sorted(names) for kind, names in faults.items()}
    problems = [f"{len(names)} tensors {kind} ({names[0]})" for kind, names in sorted_faults.items() if names]
    if problems:
        raise source.error(f"does not fit: {', '.join(problems)}; use {source.origin}")


def digest(files: Iterable[Path]) -> str:
    """`sha256:` and 16 hex digits: of the file itself, or of all digests if there are several files."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    combined = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return f"sha256:{combined[:16]}"
