"""Sites follow from the configuration; hooks run once per call and are removed afterwards."""

from __future__ import annotations

import pytest
import torch

from probing.diffusion import hooks
from probing.diffusion.sites import (
    KINDS,
    SiteSpec,
    attention_sites,
    block_of,
    choose,
    conv_sites,
    recorded,
    unet_sites,
    vae_sites,
    whole_kinds,
)
from probing.scenes.denoisers import diffusion

V14 = {
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
XL = {
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}


def test_stable_diffusion_has_the_papers_sixteen_sites():
    sites = attention_sites(V14, (64, 64))
    assert [s.name for s in sites] == (
        "down.0.0 down.0.1 down.1.0 down.1.1 down.2.0 down.2.1 mid.0 "
        "up.1.0 up.1.1 up.1.2 up.2.0 up.2.1 up.2.2 up.3.0 up.3.1 up.3.2"
    ).split()
    assert [(s.tokens, s.channels) for s in sites[::3]] == [
        (4096, 320), (1024, 640), (64, 1280), (256, 1280), (1024, 640), (4096, 320)
    ]  # fmt: skip
    assert sum(s.values for s in sites) == 11_550_720
    assert 2 * sites[0].values == 2_621_440


def test_other_kinds_stand_beside_self_attention_in_order_of_execution():
    sites = unet_sites(V14, (64, 64))
    assert [s.name for s in sites][:5] == [
        "down.0.0", "down.0.0.cross", "down.0.0.mlp", "down.0.0.residual", "down.0.1"
    ]  # fmt: skip
    assert {kind: sum(s.family == kind for s in sites) for kind in KINDS} == dict.fromkeys(KINDS, 16)
    assert {(s.block, s.index) for s in sites if s.name.startswith("up.2.1")} == {("up.2", 1)}
    deep = {s.name: s for s in unet_sites(XL, (128, 128))}
    assert (deep["up.0.1.9.residual"].block, deep["up.0.1.9.residual"].index) == ("up.0.1", 9)
    assert [*map(block_of, ("mid.0.mlp", "block.7.mlp", "single.7.joint", "conv.up.2.1", "vae.mid"))] == [
        "mid", "block.7", "single.7", "conv.up.2", "vae"
    ]  # fmt: skip


def test_kinds_and_single_sites_are_recorded_and_all_is_attention():
    sites = unet_sites(V14, (64, 64))
    assert recorded(sites, ["all"]) == attention_sites(V14, (64, 64))
    assert [s.name for s in recorded(sites, ["up.2.1.mlp", "down.0.0"])] == ["down.0.0", "up.2.1.mlp"]
    assert {s.family for s in recorded(sites, ["cross", "residual"])} == {"cross", "residual"}
    assert [whole_kinds(names) for names in (["all"], ["up.2.1.mlp"], ["mlp", "up.2.1"])] == [
        ("attention",), ("attention",), ("mlp",)
    ]  # fmt: skip


def test_conv_sites_are_seventeen():
    sites = conv_sites(V14, (64, 64))
    assert len(sites) == 17
    assert sites[6].module == "mid_block.resnets.0.conv2"


def test_another_family_is_found_by_the_same_rule():
    sites = attention_sites(XL, (128, 128))
    assert len(sites) == 2 * 2 + 2 * 10 + 10 + 3 * 10 + 3 * 2
    assert sites[0].name == "down.1.0.0"
    assert sites[0].tokens == 64 * 64


def test_vae_sites():
    config = {"block_out_channels": [128, 256, 512, 512]}
    assert [site.channels for site in vae_sites(config, (64, 64))] == [512]
    assert vae_sites(config | {"mid_block_add_attention": False}, (64, 64)) == ()


def test_unknown_sites_are_named_with_a_suggestion():
    with pytest.raises(ValueError, match=r"no site 'up.3.9'.*did you mean 'up.3"):
        choose(attention_sites(V14, (64, 64)), ["up.3.9"])


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return diffusion.build_unet((16, 16, 32, 32), 16).eval()


@pytest.fixture(scope="module")
def sites(unet):
    return attention_sites(unet.config, (16, 16))


def call(unet, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 4, 16, 16, generator=generator)
    states = torch.randn(batch, 5, 16, generator=generator)
    with torch.inference_mode():
        return unet(x, torch.tensor(500.0), states).sample


def test_rule_and_network_agree(unet, sites):
    seen = []
    with hooks.record(unet, sites, lambda site, x: seen.append((site.name, tuple(x.shape)))):
        call(unet)
    assert seen == [(s.name, (2, s.tokens, s.channels)) for s in sites]


def test_conv_outputs_come_as_tokens(unet):
    found = conv_sites(unet.config, (16, 16))
    seen = {}
    with hooks.record(unet, found, lambda site, x: seen.update({site.name: tuple(x.shape)})):
        call(unet)
    assert seen == {s.name: (2, s.tokens, s.channels) for s in found}


def test_hooks_are_gone_after_an_exception(unet, sites):
    with pytest.raises(RuntimeError, match="stop"), hooks.record(unet, sites, _raise):
        call(unet)
    assert not any(m._forward_hooks for m in unet.modules())


def _raise(site, values):
    raise RuntimeError("stop")


def test_an_unchanged_edit_changes_nothing(unet, sites):
    plain = call(unet)
    with hooks.rewrite(unet, sites, lambda site, x: x):
        assert torch.equal(call(unet), plain)


def test_an_edit_reaches_the_conditional_half_alone(unet, sites):
    plain = call(unet, 4)
    with hooks.rewrite(unet, sites[:1], lambda site, x: x + 1):
        edited = call(unet, 4)
    assert torch.equal(edited[:2], plain[:2])
    assert (edited[2:] - plain[2:]).abs().max() > 1e-4


def test_later_sites_are_computed_from_the_edit(unet, sites):
    seen = {}

    def edit(site, x):
        seen[site.name] = x.clone()
        return x + 1 if site.name == "down.0.0" else x

    with hooks.rewrite(unet, sites[:2], lambda site, x: seen.setdefault(f"plain {site.name}", x)):
        call(unet)
    with hooks.rewrite(unet, sites[:2], edit):
        call(unet)
    assert torch.equal(seen["down.0.0"], seen["plain down.0.0"])
    assert not torch.equal(seen["down.0.1"], seen["plain down.0.1"])


def test_an_edit_of_another_shape_is_refused(unet, sites):
    with pytest.raises(ValueError, match=r"edit of down.0.0: .*shape"):
        with hooks.rewrite(unet, sites[:1], lambda site, x: x[:, :1]):
            call(unet)


@pytest.mark.parametrize(
    ("name", "block", "index"), [("up.2.1", "up.2", 1), ("block.3.self", "block.3", 0), ("vae.mid", "vae", 0)]
)
def test_a_site_has_a_block_and_a_number_in_it(name: str, block: str, index: int) -> None:
    site = SiteSpec(name, "", 1, 1, 1, "decoder", "attention")
    assert (site.block, site.index) == (block, index)
