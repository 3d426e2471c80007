"""The recorded sites of a diffusion model, determined from its configuration alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any


@dataclass(frozen=True)
class SiteSpec:
    """One recorded place in the network, and the shape of its output (paper, table 2)."""

    name: str
    """`down.0.0` ... `mid.0` ... `up.3.2`, or `block.7.self` in transformers; `conv.*` and `vae.*` for the additional
    site families"""
    module: str
    """path of the module whose output is recorded"""
    channels: int
    height: int
    """patches from top to bottom"""
    width: int
    """patches from left to right"""
    side: str
    """`encoder`, `bottleneck` or `decoder` of a UNet; `early`, `middle` or `late` third of a transformer's blocks"""
    family: str
    """`attention` (self or joint), `cross`, `mlp`, `residual`, `conv` or `vae`"""

    @property
    def tokens(self) -> int:
        """Number of patches."""
        return self.height * self.width

    @property
    def values(self) -> int:
        """Number of values per image and step."""
        return self.tokens * self.channels

    @property
    def block(self) -> str:
        """The block of the network, such as `up.3`."""
        return self.name.rsplit(".", 1)[0]

    @property
    def index(self) -> int:
        """The number of the site in its block, 0 where a block has one site of its kind, such as `block.3.self`."""
        number = self.name.rsplit(".", 1)[1]
        return int(number) if number.isdigit() else 0


@dataclass(frozen=True)
class UNetBlock:
    """A block of the UNet with transformers."""

    site: SiteSpec
    """what its sites have in common; name and module are those of the block"""
    depths: tuple[int, ...]
    """transformer layers of each attention"""
    only_cross: bool
    """whether its `attn1` look at the text, as `attn2` do"""


def _by_level(config: Mapping[str, Any], field: str, default: Any) -> list[Any]:
    """A field's value at each level, of which it may have one for all."""
    value = config.get(field, default)
    return list(value) if isinstance(value, list | tuple) else [value] * len(config["block_out_channels"])


def unet_blocks(config: Mapping[str, Any], latent: tuple[int, int], family: str) -> Iterator[UNetBlock]:
    """The blocks with cross-attention, in order of execution; their transformers mostly have self-attention too."""
    channels = config["block_out_channels"]
    layers, depth = (_by_level(config, f, n) for f, n in (("layers_per_block", 2), ("transformer_layers_per_block", 1)))
    crossed = _by_level(config, "only_cross_attention", False)
    last = len(channels) - 1
    up_depth = config.get("reverse_transformer_layers_per_block") or depth[::-1]
    mid = config.get("mid_block_type", "UNetMidBlock2DCrossAttn") or ""
    # name, path, type, level, side, layers, depth; decoder blocks have one layer more than encoder blocks
    rows = [
        *((f"down.{i}", f"down_blocks.{i}", type_, i, "encoder", layers[i], depth[i], crossed[i])
          for i, type_ in enumerate(config["down_block_types"])),
        ("mid", "mid_block", mid, last, "bottleneck", 1, depth[last], False),
        *((f"up.{i}", f"up_blocks.{i}", type_, last - i, "decoder", layers[last - i] + 1, up_depth[i],
           crossed[last - i]) for i, type_ in enumerate(config["up_block_types"])),
    ]  # fmt: skip
    for name, path, type_, level, side, number, deep, only_cross in rows:
        if "CrossAttn" in type_:
            # each level halves the sides, rounded up
            height, width = (-(-edge // 2**level) for edge in latent)
            depths = tuple(deep) if isinstance(deep, list | tuple) else (deep,) * number
            site = SiteSpec(name, path, channels[level], height, width, side, family)
            yield UNetBlock(site, depths[:number], only_cross)


def attention_sites(config: Mapping[str, Any], latent: tuple[int, int]) -> tuple[SiteSpec, ...]:
    """The self-attention output projections in order of execution (section 3.2, appendix B).

    config: a UNet2DConditionModel configuration. latent: (height, width) of a latent.
    Raises ValueError if there are none.
    """
    sites = tuple(
        replace(
            block.site,
            name=f"{block.site.name}.{j}" + (f".{k}" if max(block.depths) > 1 else ""),
            module=f"{block.site.module}.attentions.{j}.transformer_blocks.{k}.attn1.to_out.0",
        )
        for block in unet_blocks(config, latent, "attention")
        if not block.only_cross
        for j, depth in enumerate(block.depths)
        for k in range(depth)
    )
    if not sites:
        raise ValueError("model: its UNet has no blocks with cross-attention, so no sites; use another model")
    return sites


def conv_sites(config: Mapping[str, Any], latent: tuple[int, int]) -> tuple[SiteSpec, ...]:
    """Outputs of `resnets.J.conv2`, before the residual, in the blocks with attention (appendix A)."""
    return tuple(
        replace(block.site, name=f"conv.{block.site.name}.{j}", module=f"{block.site.module}.resnets.{j}.conv2")
        for block in unet_blocks(config, latent, "conv")
        for j in range(2 if block.site.name == "mid" else len(block.depths))
    )


def vae_sites(config: Mapping[str, Any], latent: tuple[int, int]) -> tuple[SiteSpec, ...]:
    """The self-attention of the VAE decoder's mid block, if it has one (section 4.2); `config` is the VAE's."""
    if not config.get("mid_block_add_attention", True):
        return ()
    module = "decoder.mid_block.attentions.0.to_out.0"
    return (SiteSpec("vae.mid", module, config["block_out_channels"][-1], *latent, "decoder", "vae"),)


def choose(sites: Sequence[SiteSpec], names: Sequence[str], key: str = "sampling.sites") -> tuple[SiteSpec, ...]:
    """The sites with the given names, in order of execution; `all` means every site.

    Raises ValueError, naming the setting `key`, for an unknown name.
    """
    known = {site.name: site for site in sites}
    requested = set(known) if "all" in names else set(names)
    for name in sorted(requested - set(known)):
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise ValueError(f"{key}: no site {name!r} in this model; {hint}")
    return tuple(site for site in sites if site.name in requested)
