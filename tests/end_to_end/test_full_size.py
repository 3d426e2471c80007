"""Stable Diffusion v1.4's UNet at full size with random weights: site table, command line, capture and store.

PAPER_SIZED=1 adds a shard with two samples and guidance: about 6e12 multiplications, minutes on two cores and 8 GiB.
"""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import storage
from probing.diffusion.capture import capture
from probing.diffusion.families.base import LatentDiffusion
from probing.diffusion.sites import attention_sites
from probing.scenes import text, vae
from probing.scenes.denoisers import diffusion
from storage import Layout, SiteShape, Store
from support import tiny_families
from sweeps.cli.main import main

PARAMETERS = 859_520_964
"""of the UNet of Stable Diffusion v1.4"""
NEED = 11e9
"""bytes of memory: two UNets in float32 and their intermediate values"""
TABLE = {
    "down.0": (2, 64, 320, 2_621_440), "down.1": (2, 32, 640, 1_310_720), "down.2": (2, 16, 1280, 655_360),
    "mid": (1, 8, 1280, 163_840),
    "up.1": (3, 16, 1280, 655_360), "up.2": (3, 32, 640, 1_310_720), "up.3": (3, 64, 320, 2_621_440),
}  # fmt: skip
"""Block: sites, cells a side, channels, bytes per image and step in float16."""
VALUES = 11_550_720
"""activations of all sites per image and step"""
CHECKSUM_BYTES = 4


def random_network(kind, config, **more) -> torch.nn.Module:
    """A network with small uniform random weights, without the time of an initialisation; scales of norms near 1."""
    with torch.device("meta"):
        network = kind(**config, **more)
    network = network.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.uniform_(-0.02, 0.02, generator=generator)
            if "norm" in name and name.endswith("weight"):
                value.add_(1)
    return network


def save(folder: Path) -> int:
    """Write a pipeline directory in float16 with a narrow autoencoder; the UNet's number of parameters."""
    tokenizer = text.build_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
        num_attention_heads=12, max_position_embeddings=tokenizer.model_max_length,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    unet = random_network(UNet2DConditionModel, tiny_families.V14).half()
    # At full width, decoding an image costs three times as much as a call of the UNet.
    narrow = tiny_families.V14_VAE | {"block_out_channels": [16, 16, 32, 32], "norm_num_groups": 8}
    StableDiffusionPipeline(
        vae=random_network(AutoencoderKL, narrow).half(), text_encoder=CLIPTextModel(config).half(),
        tokenizer=tokenizer, unet=unet, scheduler=tiny_families.scheduler("epsilon"), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return sum(p.numel() for p in unet.parameters())


def test_the_sites_of_the_configuration_are_the_papers():
    sites = attention_sites(tiny_families.V14, (64, 64))
    assert sum(site.values for site in sites) == VALUES
    for site in sites:
        block = site.name.rpartition(".")[0]
        count, side, channels, size = TABLE[block]
        assert (site.height, site.width, site.channels, 2 * site.values) == (side, side, channels, size)
        assert sum(other.name.startswith(f"{block}.") for other in sites) == count


@pytest.mark.slow
def test_full_size_random_weights_give_a_store_that_verifies(tmp_path, monkeypatch, capsys):
    if psutil.virtual_memory().available < NEED or shutil.disk_usage(tmp_path).free < 4e9:
        pytest.skip("needs 11 GB of memory and 4 GB of disk")
    assert save(tmp_path / "model") == PARAMETERS
    (tmp_path / "one.txt").write_text("a large red sphere on a green floor under a sky\n")
    words = [
        "sample", "paper", f"model.name={tmp_path / 'model'}", "model.autocast=", "model.device=cpu",
        f"prompts.source={tmp_path / 'one.txt'}", "prompts.test=", "sampling.preview=false", "sampling.shard=1",
        "sampling.variants=[trained,random]", "sampling.guidance=1", "sampling.threads=2", "sampling.steps=1",
        f"output={tmp_path / 'run'}", "ray.address=none", "ray.sampling_gpus=0",
        "interventions.saliency_steps=[1]", "interventions.depth_steps=[1]",
        "tracking.mode=disabled",
    ]  # fmt: skip
    try:
        assert main(words) == 0
    finally:
        shutil.rmtree(tmp_path / "model")
    store = storage.open(str(tmp_path / "run"))
    assert store.layout.steps == 1
    assert len(store.layout.sites) == 16
    total = 0
    for variant in ("trained", "random"):
        for site in store.layout.sites:
            array = tmp_path / "run" / store.layout.activations(variant, site.name)
            sizes = [p.stat().st_size for p in (array / "c").rglob("*") if p.is_file()]
            assert sizes == [TABLE[site.name.rpartition(".")[0]][3] + CHECKSUM_BYTES], site.name
            total += sum(sizes) - CHECKSUM_BYTES
            values = store.read_activations(variant, site.name, 1)
            assert np.isfinite(values).all()
            assert values.std() > 0
    assert total == 2 * 2 * VALUES
    assert store.read_images("trained").shape == (1, 512, 512, 3)
    first, second = (store.read_activations(v, "up.3.2", 1) for v in ("trained", "random"))
    assert not np.array_equal(first, second)
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "run"), "--recompute", "0"]) == 0
    assert "0 disagreements" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("PAPER_SIZED") != "1", reason="takes minutes and 8 GiB: set PAPER_SIZED=1")
def test_a_shard_with_guidance_at_full_size_is_recorded_completely(tmp_path: Path):
    samples, steps = 2, 2
    torch.manual_seed(0)
    model = LatentDiffusion(
        random_network(UNet2DConditionModel, tiny_families.V14),
        vae.build((8, 16, 16, 16)).eval().requires_grad_(False),
        text.build_encoder(768, layers=1, heads=12).eval().requires_grad_(False),
        text.build_tokenizer(), dict(diffusion.build_scheduler().config), torch.device("cpu"), embedded=True,
    )  # fmt: skip
    sites = model.sites()
    shapes = tuple(SiteShape(site.name, site.tokens, site.channels) for site in sites)
    layout = Layout(samples, samples, ("trained",), shapes, steps, (512, 512), (4, 64, 64))
    store = Store.create(str(tmp_path / "out"), layout)
    captured = capture(
        model, ["a red box", "a blue sphere"], [1, 2], sites,
        lambda site, step, values: store.write_activation("trained", site, step, 0, values),
        lambda step, after, clean: store.write_latents("trained", 0, step, after, clean),
        steps=steps, guidance=7.5,
    )  # fmt: skip
    store.write_images("trained", 0, captured.images.numpy())
    record = store.complete("sample", "trained", 0)

    assert captured.images.shape == (samples, 512, 512, 3)
    total = 0
    for site in sites:
        _, side, channels, size = TABLE[site.name.rpartition(".")[0]]
        for step in (1, 2):
            path = store.array(layout.activations("trained", site.name)).key(0, step).path
            assert record.chunks[path][0] == samples * size + CHECKSUM_BYTES
            total += record.chunks[path][0] - CHECKSUM_BYTES
            values = store.read_activations("trained", site.name, step)
            assert values.shape == (samples, side * side, channels)
            assert values.dtype == np.float16
            assert 0 < np.abs(values.astype(np.float32)).max() < 6e4
    assert total == samples * steps * 2 * VALUES
    assert storage.audit.verify(store) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 24 * 2**30
