"""The recorded sites of a diffusion model, determined from its configuration alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any


@dataclass(frozen=True)
class SiteSpec:
    """One recorded place in the network, and the shape of its output (paper, table 2)."""

    name: str
    """`down.0.0` ... `mid.0` ... `up.3.2`; `conv.*` and `vae.*` for the additional site families"""
    module: str
    """path of the module whose output is recorded"""
    channels: int
    height: int
    """patches from top to bottom"""
    width: int
    """patches from left to right"""
    side: str
    """`encoder`, `bottleneck` or `decoder`"""
    family: str
    """`attention`, `conv` or `vae`"""

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


@dataclass(frozen=True)
class _Block:
    name: str
    path: str
    kind: str
    channels: int
    height: int
    width: int
    side: str
    layers: int
    depth: int
    """transformer layers of each attention"""

    def site(self, family: str, name: str, module: str) -> SiteSpec:
        return SiteSpec(name, f"{self.path}.{module}", self.channels, self.height, self.width, self.side, family)


def _per_block(value: int | Sequence[int], count: int) -> list[int]:
    return [value] * count if isinstance(value, int) else list(value)


def _blocks_with_attention(config: Mapping[str, Any], latent: tuple[int, int]) -> list[_Block]:
    """The UNet's blocks that have cross-attention, and so transformers with self-attention too."""
    channels = config["block_out_channels"]
    count = len(channels)
    layers = _per_block(config.get("layers_per_block", 2), count)
    depth = _per_block(config.get("transformer_layers_per_block", 1), count)
    # each level halves the side, rounded up
    sizes = [(-(-latent[0] // 2**level), -(-latent[1] // 2**level)) for level in range(count)]
    blocks = [
        _Block(f"down.{i}", f"down_blocks.{i}", kind, channels[i], *sizes[i], "encoder", layers[i], depth[i])
        for i, kind in enumerate(config["down_block_types"])
    ]
    mid = config.get("mid_block_type", "UNetMidBlock2DCrossAttn") or "none"
    blocks.append(_Block("mid", "mid_block", mid, channels[-1], *sizes[-1], "bottleneck", 1, depth[-1]))
    for i, kind in enumerate(config["up_block_types"]):
        k = count - 1 - i
        # decoder blocks have one layer more than encoder blocks
        blocks.append(
            _Block(f"up.{i}", f"up_blocks.{i}", kind, channels[k], *sizes[k], "decoder", layers[k] + 1, depth[k])
        )
    return [block for block in blocks if "CrossAttn" in block.kind]


def _attentions(block: _Block) -> Iterator[SiteSpec]:
    for j in range(block.layers):
        for k in range(block.depth):
            name = f"{block.name}.{j}" + (f".{k}" if block.depth > 1 else "")
            yield block.site("attention", name, f"attentions.{j}.transformer_blocks.{k}.attn1.to_out.0")


def attention_sites(config: Mapping[str, Any], latent: tuple[int, int]) -> tuple[SiteSpec, ...]:
    """The self-attention output projections in order of execution (section 3.2, appendix B).

    config: a UNet2DConditionModel configuration. latent: (height, width) of a latent.
    Raises ValueError if there are none.
    """
    sites = tuple(site for block in _blocks_with_attention(config, latent) for site in _attentions(block))
    if not sites:
        raise ValueError("model: its UNet has no blocks with cross-attention, so no sites; use another model")
    return sites


def conv_sites(config: Mapping[str, Any], latent: tuple[int, int]) -> tuple[SiteSpec, ...]:
    """Outputs of `resnets.J.conv2`, before the residual, in the blocks with attention (appendix A)."""
    return tuple(
        block.site("conv", f"conv.{block.name}.{j}", f"resnets.{j}.conv2")
        for block in _blocks_with_attention(config, latent)
        for j in range(2 if block.name == "mid" else block.layers)
    )


def vae_site(config: Mapping[str, Any], latent: tuple[int, int]) -> SiteSpec:
    """The self-attention of the VAE decoder's mid block (section 4.2); `config` is the VAE's."""
    module = "decoder.mid_block.attentions.0.to_out.0"
    return SiteSpec("vae.mid", module, config["block_out_channels"][-1], *latent, "decoder", "vae")


def choose(sites: Sequence[SiteSpec], names: Sequence[str]) -> tuple[SiteSpec, ...]:
    """The sites with the given names, in order of execution; `all` means every site.

    Raises ValueError for an unknown name.
    """
    known = {site.name: site for site in sites}
    requested = set(known) if "all" in names else set(names)
    for name in sorted(requested - set(known)):
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise ValueError(f"sites: no site {name!r} in this model; {hint}")
    return tuple(site for site in sites if site.name in requested)
