"""Models in Hugging Face form: a directory or a hub id, loaded without code and without gaps."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.utils import logging as progress

from probing.labelling import checkpoints
from probing.labelling.checkpoints import Source

SHAPE = ("hidden_size", "num_hidden_layers", "neck_hidden_sizes", "backbone_out_indices", "is_hybrid")
"""settings in which a directory must agree with the model that was asked for, where that has them"""


def names_model(weights: str) -> bool:
    """True for a directory or a hub id ("owner/name", "owner/name@revision"), not for a file."""
    path = Path(weights).expanduser()
    if not weights or path.is_file():
        return False
    return path.is_dir() or (path.suffix not in (".pt", ".pth", ".safetensors") and _is_id(weights))


def _is_id(weights: str) -> bool:
    return weights.count("/") == 1 and weights[0] not in "/.~"


def load(kind: Any, source: Source, config: PreTrainedConfig | None = None) -> tuple[Any, str]:
    """A model of class `kind` and what names its weights, in float32, ready to run.

    config: what the model must be; a directory that is another shape is refused, and settings that are
    no matter of shape (an epsilon) are taken from here. Pickled weights are read with `weights_only`.
    Raises ValueError where anything is missing, damaged, unsafe, or another model.
    """
    name, revision = split_revision(source.path)
    try:
        with quiet("transformers", "huggingface_hub"), no_progress_bars():
            _check_shape(kind, name, revision, config, source)
            model, report = kind.from_pretrained(
                name,
                config=config,
                revision=revision,
                dtype=torch.float32,
                weights_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except _Refused as error:
        raise source.error(str(error)) from error
    except Exception as error:  # transformers raises many kinds, all of them the user's to mend
        raise source.error(_why(error, name, source)) from error
    misshapen = {name for name, *_ in report["mismatched_keys"]}
    checkpoints.refuse({"missing": report["missing_keys"], "of another shape": misshapen}, source)
    return model.eval().requires_grad_(False), _names_weights(model, name)


class _Refused(Exception):
    """A model that can be read and is not what was asked for."""


def split_revision(path: str) -> tuple[str, str | None]:
    """A directory as it is; a hub id and the revision after its @."""
    if Path(path).expanduser().is_dir():
        return str(Path(path).expanduser()), None
    name, _, revision = path.partition("@")
    return name, revision or None


def _check_shape(kind: Any, name: str, revision: str | None, wanted: PreTrainedConfig | None, source: Source) -> None:
    given, _ = kind.config_class.get_config_dict(name, revision=revision)
    if given.get("model_type") not in (None, kind.config_class.model_type):
        raise _Refused(f"is a {given['model_type']} model, not {kind.config_class.model_type}")
    there = kind.config_class.from_dict(given)
    for setting in SHAPE:
        have, want = getattr(there, setting, None), getattr(wanted, setting, None)
        if want is not None and have != want:
            raise _Refused(f"is another model: {setting} is {have}, not {want}; see {source.origin}")


def _why(error: Exception, name: str, source: Source) -> str:
    folder = Path(name)
    if not folder.is_dir():
        return f"no such directory, nor to be had from the hub ({type(error).__name__}); see {source.origin}"
    if _weights(folder):
        return checkpoints.unreadable(error, source.origin)
    return f"not a model directory: no model.safetensors or pytorch_model.bin; see {source.origin}"


def _weights(folder: Path) -> list[Path]:
    """The files that hold a directory's tensors; pickles only where there is nothing better."""
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _names_weights(model: Any, name: str) -> str:
    if not Path(name).is_dir():
        return f"{name}@{model.config._commit_hash}"
    return checkpoints.digest(_weights(Path(name)))


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Holds back what libraries log below errors: what matters is raised or recorded instead."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keeps transformers from drawing bars while it loads."""
    shown = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            progress.enable_progress_bar()
