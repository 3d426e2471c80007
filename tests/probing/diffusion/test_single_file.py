"""Single-file checkpoints: the same model as the pipeline's directory, and refused unless whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from probing.diffusion import metadata
from probing.diffusion.config import ModelConfig
from probing.diffusion.model import load
from probing.diffusion.sampling import sample
from support import single_file, tiny_families


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`full`, a pipeline; `model.safetensors`, its weights in one file; `config`, its configuration."""
    return written(tiny_families.second(), tmp_path_factory.mktemp("single"))


def written(made: Any, folder: Path) -> Path:
    made.save_pretrained(folder / "full")
    shutil.copytree(folder / "full", folder / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    single_file.save(made, folder / "model.safetensors")
    return folder


def config(folder: Path, name: str = "model.safetensors", settings: str = "config") -> ModelConfig:
    return ModelConfig(name=str(folder / name), config=str(folder / settings) if settings else "", device="cpu")


@pytest.mark.parametrize("build", [tiny_families.second, tiny_families.extra_large])
def test_it_is_the_pipeline_that_it_was_made_of(build: Callable[[], Any], tmp_path: Path) -> None:
    folder = written(build(), tmp_path)
    own, whole = config(folder), config(folder, "full", "")
    metadata.check(own, "own", 3)
    assert metadata.weight_bytes(metadata.model_path(own), own) == metadata.weight_bytes(folder / "full", whole)
    one, other = (
        sample(load(c, sampler="own"), ["a red box"], [3], steps=3, guidance=2.0).latents for c in (own, whole)
    )
    assert torch.equal(one, other)


def test_its_identity_is_that_of_its_content_and_of_its_configuration(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert metadata.revision(config(tmp_path / "copy")) == metadata.revision(config(folder))
    tensors = load_file(folder / "model.safetensors")
    name = next(reversed(sorted(tensors)))
    save_file(tensors | {name: tensors[name] + 1}, tmp_path / "copy/model.safetensors")
    assert metadata.revision(config(tmp_path / "copy")) != metadata.revision(config(folder))
    shutil.copy(folder / "model.safetensors", tmp_path / "copy")
    scheduler = tmp_path / "copy/config/scheduler/scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("scaled_linear", "linear"))
    assert metadata.revision(config(tmp_path / "copy")) != metadata.revision(config(folder))


def test_what_is_not_whole_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    def refusal(settings: ModelConfig) -> str:
        with pytest.raises(ValueError, match=r"^model\.") as caught:
            metadata.check(settings, "own", 3)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "model.config: model.safetensors holds weights alone" in refusal(config(folder, settings=""))
    assert "no file" in refusal(config(folder, "other.safetensors"))
    assert "can run code" in refusal(config(folder, "model.ckpt"))
    assert "has no model_index.json" in refusal(config(folder, settings="nowhere"))
    assert "only for a single" in refusal(config(folder, "full"))
    deeper = tiny_families.second(layers_per_block=1)
    deeper.save_pretrained(tmp_path / "other")
    assert "model.config: unet/config.json states" in refusal(config(folder, settings=str(tmp_path / "other")))
    tensors = load_file(folder / "model.safetensors")
    for prefix, reason in (
        ("cond_stage_model.", "no weights of its text_encoder"),
        ("first_stage_model.enc", "vae/con"),
    ):
        save_file({n: t for n, t in tensors.items() if not n.startswith(prefix)}, tmp_path / "part.safetensors")
        assert reason in refusal(config(folder, str(tmp_path / "part.safetensors")))
    save_file(
        {n: t for n, t in tensors.items() if "text_model.final_layer_norm" not in n}, tmp_path / "part.safetensors"
    )
    with pytest.raises(ValueError, match="its text_encoder lacks 2 tensors"):
        load(config(folder, str(tmp_path / "part.safetensors")))
    tiny_families.save("FLUX", tmp_path / "flux")
    assert "a single file of FLUX is not supported" in refusal(config(folder, settings=str(tmp_path / "flux")))
