"""Stable Diffusion v1.4 at full size with random weights, through the command line, into a store that verifies."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import storage
from probing.scenes import text
from support import tiny_families
from sweeps.cli.main import main

PARAMETERS = 859_520_964
"""of the UNet of Stable Diffusion v1.4"""
NEED = 11e9
"""bytes of memory: two UNets in float32 and what they compute"""
BYTES = {
    "down.0": 2_621_440, "down.1": 1_310_720, "down.2": 655_360, "mid": 163_840,
    "up.1": 655_360, "up.2": 1_310_720, "up.3": 2_621_440,
}  # fmt: skip
"""of a site's activations per image and step, by block (the protocol's table)"""


def network(kind, config, **more) -> torch.nn.Module:
    """Random weights without the time of an initialisation: each tensor a small uniform draw."""
    with torch.device("meta"):
        made = kind(**config, **more)
    made = made.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, value in made.state_dict().items():
        if value.is_floating_point():
            value.uniform_(-0.02, 0.02, generator=generator)
            if "norm" in name and name.endswith("weight"):
                value.add_(1)
    return made.half()


def save(folder: Path) -> int:
    """A pipeline directory in float16; the UNet's number of parameters."""
    tokenizer = text.build_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
        num_attention_heads=12, max_position_embeddings=tokenizer.model_max_length,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    unet = network(UNet2DConditionModel, tiny_families.V14)
    StableDiffusionPipeline(
        vae=network(AutoencoderKL, tiny_families.V14_VAE), text_encoder=CLIPTextModel(config).half(),
        tokenizer=tokenizer, unet=unet, scheduler=tiny_families.scheduler("epsilon"), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return sum(p.numel() for p in unet.parameters())


@pytest.mark.slow
def test_full_size_random_weights_reach_a_store_that_verifies(tmp_path, monkeypatch, capsys):
    if psutil.virtual_memory().available < NEED or shutil.disk_usage(tmp_path).free < 4e9:
        pytest.skip("needs 11 GB of memory and 4 GB of disk")
    assert save(tmp_path / "model") == PARAMETERS
    for module in ("sweeps.stages.sample", "sweeps.runtime.run", "sweeps.config.schema"):
        monkeypatch.setattr(f"{module}.STEPS", 2)
    (tmp_path / "one.txt").write_text("a large red sphere on a green floor under a sky\n")
    words = [
        "sample", "paper", f"model.name={tmp_path / 'model'}", "model.autocast=", "model.device=cpu",
        f"prompts.source={tmp_path / 'one.txt'}", "prompts.test=", "sampling.preview=false", "sampling.shard=1",
        "sampling.variants=[trained,random]", "sampling.guidance=1", "sampling.threads=2", "sweep.steps=[1,2]",
        f"output={tmp_path / 'run'}", "ray.address=none", "ray.sampling_gpus=0",
        "interventions.saliency_steps=[1,2]", "interventions.depth_steps=[1,2]",
        "tracking.mode=disabled",
    ]  # fmt: skip
    try:
        assert main(words) == 0
    finally:
        shutil.rmtree(tmp_path / "model")
    store = storage.open(str(tmp_path / "run"))
    assert store.layout.steps == 2
    assert len(store.layout.sites) == 16
    total = 0
    for variant in ("trained", "random"):
        for site in store.layout.sites:
            files = [p for p in (tmp_path / "run" / "activations.zarr" / variant / site.name).rglob("*") if p.is_file()]
            sizes = [p.stat().st_size for p in files if p.name != "zarr.json"]
            assert sizes == [BYTES[site.name.rsplit(".", 1)[0]] + 4] * 2, site.name  # 4 of the checksum
            total += sum(sizes) - 8
            values = store.read_activations(variant, site.name, 2)
            assert np.isfinite(values).all()
            assert values.std() > 0
    assert total == 2 * 2 * 2 * 11_550_720
    assert store.read_images("trained").shape == (1, 512, 512, 3)
    first, second = (store.read_activations(v, "up.3.2", 1) for v in ("trained", "random"))
    assert not np.array_equal(first, second)
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "run"), "--recompute", "0"]) == 0
    assert "0 disagreements" in capsys.readouterr().out
