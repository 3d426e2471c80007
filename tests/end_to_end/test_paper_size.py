"""One shard at the paper's size: Stable Diffusion v1.4's own UNet, random weights, through capture into the store.

About 6e12 multiplications: minutes on two cores and 8 GiB, so it runs where PAPER_SIZED=1 is set.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

import storage
from probing.diffusion import sites as site_rules
from probing.diffusion.capture import capture
from probing.diffusion.model import LatentDiffusion
from probing.scenes import diffusion, text, vae
from storage import Layout, SiteShape, Store

# unet/config.json of CompVis/stable-diffusion-v1-4
UNET = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280], "attention_head_dim": 8, "cross_attention_dim": 768,
    "norm_num_groups": 32, "norm_eps": 1e-05, "act_fn": "silu", "downsample_padding": 1,
    "mid_block_scale_factor": 1, "center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0,
}  # fmt: skip
TABLE = {
    "down.0": (2, 64, 320, 2_621_440), "down.1": (2, 32, 640, 1_310_720), "down.2": (2, 16, 1280, 655_360),
    "mid": (1, 8, 1280, 163_840),
    "up.1": (3, 16, 1280, 655_360), "up.2": (3, 32, 640, 1_310_720), "up.3": (3, 64, 320, 2_621_440),
}  # fmt: skip
"""Block: sites, cells a side, channels, bytes per image and step in fp16."""
SAMPLES, STEPS = 2, 2


def random_unet() -> torch.nn.Module:
    """The network with small random weights; normalisations as they start."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET)
    unet = unet.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in unet.named_parameters():
        if parameter.ndim > 1:
            parameter.uniform_(-0.02, 0.02, generator=generator)
        else:
            parameter.fill_(float(name.endswith("weight")))
    return unet


def random_model() -> LatentDiffusion:
    torch.manual_seed(0)
    decoder = vae.build((8, 16, 16, 16)).eval().requires_grad_(False)
    encoder = text.build_encoder(768, layers=1, heads=12).eval().requires_grad_(False)
    scheduler = dict(diffusion.build_scheduler().config)
    return LatentDiffusion(
        random_unet(), decoder, encoder, text.build_tokenizer(), scheduler, torch.device("cpu"), embedded=True
    )


def test_the_sites_of_the_configuration_are_the_papers():
    found = site_rules.attention_sites(UNET, (64, 64))
    assert sum(site.values for site in found) == 11_550_720
    for site in found:
        sites, side, channels, size = TABLE[site.name.rpartition(".")[0]]
        assert (site.height, site.width, site.channels, 2 * site.values) == (side, side, channels, size)
        assert sum(other.name.startswith(site.name.rpartition(".")[0] + ".") for other in found) == sites


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("PAPER_SIZED") != "1", reason="takes minutes and 8 GiB: set PAPER_SIZED=1")
def test_a_shard_of_the_papers_size_is_recorded_whole(tmp_path: Path):
    model = random_model()
    assert sum(parameter.numel() for parameter in model.unet.parameters()) == 859_520_964
    sites = model.sites()
    shapes = tuple(SiteShape(site.name, site.tokens, site.channels) for site in sites)
    layout = Layout(SAMPLES, SAMPLES, ("trained",), shapes, STEPS, (512, 512), (4, 64, 64))
    store = Store.create(str(tmp_path / "out"), layout)
    samples = capture(
        model, ["a red box", "a blue sphere"], [1, 2], sites,
        lambda site, step, values: store.write_activation("trained", site, step, 0, values),
        lambda step, after, clean: store.write_latents("trained", 0, step, after, clean),
        steps=STEPS, guidance=7.5,
    )  # fmt: skip
    store.write_images("trained", 0, samples.images.numpy())
    record = store.complete("sample", "trained", 0)

    assert samples.images.shape == (SAMPLES, 512, 512, 3)
    total = 0
    for site in sites:
        _, side, channels, size = TABLE[site.name.rpartition(".")[0]]
        for step in (1, 2):
            path = store.array(f"activations.zarr/trained/{site.name}").key(0, step).path
            assert record.chunks[path][0] == SAMPLES * size + 4
            total += record.chunks[path][0] - 4
            values = store.read_activations("trained", site.name, step)
            assert values.shape == (SAMPLES, side * side, channels)
            assert values.dtype == np.float16
            assert 0 < np.abs(values.astype(np.float32)).max() < 6e4
    assert total == SAMPLES * STEPS * 2 * 11_550_720
    assert storage.audit.verify(store) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 24 * 2**30
