"""Finds the recorded places of a diffusion UNet by rule, from its configuration alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any


@dataclass(frozen=True)
class SiteSpec:
    """One recorded place: where it is in the network and what it holds (paper, table 2)."""

    name: str
    """`down.0.0` ... `mid.0` ... `up.3.2`; `conv.*` and `vae.*` for the further families"""
    module: str
    """path of the module whose output is recorded"""
    channels: int
    height: int
    """cells from top to bottom"""
    width: int
    """cells from left to right"""
    side: str
    """`encoder`, `bottleneck` or `decoder`"""
    family: str
    """`attention`, `conv` or `vae`"""

    @property
    def tokens(self) -> int:
        """Number of cells."""
        return self.height * self.width

    @property
    def values(self) -> int:
        """Numbers per image and step."""
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


def _listed(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] * count


def _blocks(config: Mapping[str, Any], latent: tuple[int, int]) -> Iterator[_Block]:
    channels = list(config["block_out_channels"])
    count = len(channels)
    layers = _listed(config.get("layers_per_block", 2), count)
    depth = _listed(config.get("transformer_layers_per_block", 1), count)
    height, width = latent
    sizes = [(-(-height // 2**level), -(-width // 2**level)) for level in range(count)]
    for i, kind in enumerate(config["down_block_types"]):
        yield _Block(f"down.{i}", f"down_blocks.{i}", kind, channels[i], *sizes[i], "encoder", layers[i], depth[i])
    mid = config.get("mid_block_type", "UNetMidBlock2DCrossAttn") or "none"
    yield _Block("mid", "mid_block", mid, channels[-1], *sizes[-1], "bottleneck", 1, depth[-1])
    for i, kind in enumerate(config["up_block_types"]):
        level = count - 1 - i
        yield _Block(
            f"up.{i}", f"up_blocks.{i}", kind, channels[level], *sizes[level], "decoder",
            layers[level] + 1, depth[level],
        )  # fmt: skip


def _attentions(block: _Block) -> Iterator[SiteSpec]:
    for j in range(block.layers):
        for k in range(block.depth):
            yield SiteSpec(
                name=f"{block.name}.{j}" + (f".{k}" if block.depth > 1 else ""),
                module=f"{block.path}.attentions.{j}.transformer_blocks.{k}.attn1.to_out.0",
                channels=block.channels,
                height=block.height,
                width=block.width,
                side=block.side,
                family="attention",
            )


def _convolutions(block: _Block) -> Iterator[SiteSpec]:
    for j in range(2 if block.name == "mid" else block.layers):
        yield SiteSpec(
            name=f"conv.{block.name}.{j}",
            module=f"{block.path}.resnets.{j}.conv2",
            channels=block.channels,
            height=block.height,
            width=block.width,
            side=block.side,
            family="conv",
        )


def attention_sites(config: Mapping[str, Any], latent: tuple[int, int]) -> tuple[SiteSpec, ...]:
    """The self-attention output projections in order of execution (section 3.2, appendix B).

    `config` is a UNet2DConditionModel configuration, `latent` the latent's (height, width).
    """
    found = [s for b in _blocks(config, latent) if "CrossAttn" in b.kind for s in _attentions(b)]
    if not found:
        raise ValueError("model: its UNet has no blocks with cross-attention, so no sites; use another")
    return tuple(found)


def conv_sites(config: Mapping[str, Any], latent: tuple[int, int]) -> tuple[SiteSpec, ...]:
    """Outputs of `resnets.J.conv2`, before the residual, in the blocks with attention (appendix A)."""
    return tuple(s for b in _blocks(config, latent) if "CrossAttn" in b.kind for s in _convolutions(b))


def vae_site(config: Mapping[str, Any], latent: tuple[int, int]) -> SiteSpec:
    """The self-attention of the VAE decoder's mid block (section 4.2); `config` is the VAE's."""
    return SiteSpec(
        name="vae.mid",
        module="decoder.mid_block.attentions.0.to_out.0",
        channels=list(config["block_out_channels"])[-1],
        height=latent[0],
        width=latent[1],
        side="decoder",
        family="vae",
    )


def choose(sites: Sequence[SiteSpec], names: Sequence[str]) -> tuple[SiteSpec, ...]:
    """The sites of the given names, in order of execution; `all` stands for every one."""
    known = {site.name: site for site in sites}
    wanted = set(known) if "all" in names else set(names)
    for name in sorted(wanted - set(known)):
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise ValueError(f"sites: no site {name!r} in this model; {hint}")
    return tuple(site for site in sites if site.name in wanted)
