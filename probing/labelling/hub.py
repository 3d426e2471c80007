"""Models in Hugging Face form: a directory, or a hub id with its commit, loaded strictly and without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from probing.labelling import checkpoints, registry
from probing.labelling.checkpoints import Source
from probing.libraries import quiet_libraries
from storage.backends import local_path

SHAPE = ("hidden_size", "num_hidden_layers", "neck_hidden_sizes", "backbone_out_indices", "is_hybrid")
"""settings in which a directory must agree with the requested model, if that has them"""


class _Refused(Exception):
    """The model is readable, but not the requested one."""


def names_model(weights: str) -> bool:
    """True for a directory or a hub id, not for a file."""
    if not weights:
        return False
    path = local_path(weights, "weights")
    return path.is_dir() or (registry.is_hub_id(weights) and not path.is_file())


def load(kind: type[PreTrainedModel], source: Source, config: PreTrainedConfig | None = None) -> tuple[Any, str]:
    """A model of class `kind` in float32, ready to run, and a text that identifies its weights.

    config: the expected configuration. A directory with another shape is refused; settings that do not affect the
    shape (an epsilon) are taken from here. Pickled weights are read with `weights_only`.
    Raises ValueError if anything is missing, damaged or unsafe, or if it is another model.
    """
    folder = source.file
    is_folder = folder.is_dir()
    name, _, revision = (str(folder), "", "") if is_folder else source.path.partition("@")
    if not is_folder:
        registry.check_pinned(source.path, source.key)
    loader: Any = kind  # the annotated return type of `from_pretrained` omits the report
    try:
        with quiet_libraries():
            _check_shape(kind, name, revision or None, config, source)
            model, report = loader.from_pretrained(
                name,
                config=config,
                revision=revision or None,
                dtype=torch.float32,
                weights_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except _Refused as error:
        raise source.error(str(error)) from error
    except Exception as error:  # transformers raises many types, and the user can fix the cause of each
        if not is_folder:
            reason = f"no such directory, and not available from the hub ({type(error).__name__}); see {source.origin}"
        elif _weight_files(folder):
            reason = checkpoints.unreadable(error, source.origin)
        else:
            reason = f"not a model directory: no model.safetensors or pytorch_model.bin; see {source.origin}"
        raise source.error(reason) from error
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    checkpoints.refuse({"missing": report["missing_keys"], "of another shape": mismatched}, source)
    identity = checkpoints.digest(_weight_files(folder)) if is_folder else f"{name}@{model.config._commit_hash}"
    return model.eval().requires_grad_(False), identity


def _check_shape(
    kind: type[PreTrainedModel], name: str, revision: str | None, expected: PreTrainedConfig | None, source: Source
) -> None:
    config_class = kind.config_class
    assert config_class is not None
    stored, _ = config_class.get_config_dict(name, revision=revision)
    if stored.get("model_type") not in (None, config_class.model_type):
        raise _Refused(f"is a {stored['model_type']} model, not {config_class.model_type}")
    actual = config_class.from_dict(stored)
    for setting in SHAPE:
        value, required = getattr(actual, setting, None), getattr(expected, setting, None)
        if required is not None and value != required:
            raise _Refused(f"is another model: expected {setting} {required}, got {value}; see {source.origin}")


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold a directory's tensors; pickles only if there are no safetensors."""
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
