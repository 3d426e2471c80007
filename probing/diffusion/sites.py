"""The recorded sites of a diffusion model, determined from its configuration alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

ATTENTION = "attention"
KINDS = (ATTENTION, "cross", "mlp", "residual")
"""kinds of sites that sampling can record: outputs of self- or joint attention, of cross-attention to the text, of the
feed-forward layer, and of the whole transformer block, which is the residual stream after these three"""
ALL = "all"


def block_of(name: str) -> str:
    """The block of a site: `up.2` for `up.2.1` and `up.2.1.mlp`, `block.7` for `block.7.self` and `block.7.mlp`."""
    parts = name.split(".")
    # a number of a UNet's site is its place in the block, that of a transformer's is the block's
    if parts[-1] in KINDS and parts[0] not in ("block", "single"):
        parts.pop()
    return ".".join(parts[:-1])


@dataclass(frozen=True)
class SiteSpec:
    """One recorded place in the network, and the shape of its output (paper, table 2)."""

    name: str
    """`down.0.0` ... `mid.0` ... `up.3.2` for self-attention and `up.3.2.mlp` for other kinds, or `block.7.self` in
    transformers; `conv.*` and `vae.*` for the additional site families"""
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
        return block_of(self.name)

    @property
    def index(self) -> int:
        """The number of the site in its block, 0 where a block has one site of its kind, such as `block.3.self`."""
        number = self.name.removeprefix(f"{self.block}.").partition(".")[0]
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


def unet_blocks(config: Mapping[str, Any], latent: tuple[int, int]) -> Iterator[UNetBlock]:
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
            site = SiteSpec(name, path, channels[level], height, width, side, ATTENTION)
            yield UNetBlock(site, depths[:number], only_cross)


MODULES = {ATTENTION: ".attn1.to_out.0", "cross": ".attn2.to_out.0", "mlp": ".ff", "residual": ""}
"""kind -> module inside a transformer block of a UNet"""


def unet_sites(config: Mapping[str, Any], latent: tuple[int, int]) -> tuple[SiteSpec, ...]:
    """The sites of all KINDS in order of execution; those of self-attention have no kind in their names.

    config: a UNet2DConditionModel configuration. latent: (height, width) of a latent.
    """
    found = []
    for block in unet_blocks(config, latent):
        for j, depth in enumerate(block.depths):
            for k in range(depth):
                name = f"{block.site.name}.{j}" + (f".{k}" if max(block.depths) > 1 else "")
                path = f"{block.site.module}.attentions.{j}.transformer_blocks.{k}"
                for kind in KINDS[1:] if block.only_cross else KINDS:
                    own = name if kind == ATTENTION else f"{name}.{kind}"
                    found.append(replace(block.site, name=own, module=path + MODULES[kind], family=kind))
    return tuple(found)


def attention_sites(config: Mapping[str, Any], latent: tuple[int, int]) -> tuple[SiteSpec, ...]:
    """The self-attention output projections (section 3.2, appendix B); arguments as of `unet_sites`.

    Raises ValueError if there are none.
    """
    sites = tuple(site for site in unet_sites(config, latent) if site.family == ATTENTION)
    if not sites:
        raise ValueError("model: its UNet has no blocks with cross-attention, so no sites; use another model")
    return sites


def conv_sites(config: Mapping[str, Any], latent: tuple[int, int]) -> tuple[SiteSpec, ...]:
    """Outputs of `resnets.J.conv2`, before the residual, in the blocks with attention (appendix A)."""
    return tuple(
        replace(
            block.site,
            name=f"conv.{block.site.name}.{j}",
            module=f"{block.site.module}.resnets.{j}.conv2",
            family="conv",
        )
        for block in unet_blocks(config, latent)
        for j in range(2 if block.site.name == "mid" else len(block.depths))
    )


def vae_sites(config: Mapping[str, Any], latent: tuple[int, int]) -> tuple[SiteSpec, ...]:
    """The self-attention of the VAE decoder's mid block, if it has one (section 4.2); `config` is the VAE's."""
    if not config.get("mid_block_add_attention", True):
        return ()
    module = "decoder.mid_block.attentions.0.to_out.0"
    return (SiteSpec("vae.mid", module, config["block_out_channels"][-1], *latent, "decoder", "vae"),)


def choose(sites: Sequence[SiteSpec], names: Sequence[str], key: str = "sampling.sites") -> tuple[SiteSpec, ...]:
    """The sites with the given names, or of the given KINDS, in order of execution; `all` means every site.

    Raises ValueError, naming the setting `key`, for an unknown name, or a kind of which there is no site.
    """
    names_of = {site.name: {site.name, site.family, ALL} for site in sites}
    for name in sorted(set(names) - {ALL}.union(*names_of.values())):
        kinds = tuple(dict.fromkeys(site.family for site in sites))
        near = get_close_matches(name, [*kinds, *names_of], 1)
        listed = f"known: {', '.join(kinds)}, and single sites, which `scenesweep sites --family all` lists"
        hint = f"did you mean {near[0]!r}?" if near else listed
        raise ValueError(f"{key}: no site {name!r} in this model; {hint}")
    return tuple(site for site in sites if not names_of[site.name].isdisjoint(names))


def whole_kinds(names: Sequence[str]) -> tuple[str, ...]:
    """The KINDS that `sampling.sites` names as a whole; attention if none, or for `all`."""
    return tuple(kind for kind in KINDS if kind in names or kind == ATTENTION and ALL in names) or (ATTENTION,)


def recorded(sites: Sequence[SiteSpec], names: Sequence[str]) -> tuple[SiteSpec, ...]:
    """The sites that `sampling.sites` chooses among all of a model; `all` stands for those of attention.

    Raises ValueError for an unknown name.
    """
    return choose(sites, [ATTENTION if name == ALL else name for name in names])
