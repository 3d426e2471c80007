"""Sizes and sites of a model, determined from its configuration files alone.

The tests, and every load of a model, compare them with the modules of the network itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from probing.diffusion.families.registry import Family
from probing.diffusion.sites import (
    ATTENTION,
    KINDS,
    SiteSpec,
    attention_sites,
    block_of,
    conv_sites,
    unet_sites,
    vae_sites,
)

Config = Mapping[str, Any]


@dataclass(frozen=True)
class ModelLayout:
    """Sizes and sites of a model."""

    latent: tuple[int, int, int]
    """(channels, height, width) of a latent"""
    image: tuple[int, int]
    """(height, width) of an image in pixels"""
    recordable: tuple[SiteSpec, ...]
    """sites of all KINDS in order of execution; those of attention are recorded by default"""
    additional: dict[str, tuple[SiteSpec, ...]]
    """sites that are read by running the network again: `conv` and `vae`"""

    @property
    def families(self) -> dict[str, tuple[SiteSpec, ...]]:
        """Sites of each site family in order of execution."""
        return {k: tuple(s for s in self.recordable if s.family == k) for k in KINDS} | self.additional


@dataclass(frozen=True)
class _Output:
    """An output of a transformer's blocks that can be recorded."""

    family: str
    name: str
    """the last part of a site's name"""
    module: str
    """path inside a block"""


SELF = _Output(ATTENTION, "self", "attn1.to_out.0")
JOINT = _Output(ATTENTION, "joint", "attn.to_out.0")
SECOND = _Output(ATTENTION, "self", "attn2.to_out.0")
SINGLE = _Output(ATTENTION, "joint", "attn")
CROSS = _Output("cross", "cross", "attn2.to_out.0")
MLP = _Output("mlp", "mlp", "ff")
RESIDUAL = _Output("residual", "residual", "")


@dataclass(frozen=True)
class _Stack:
    """A list of transformer blocks."""

    path: str
    name: str
    outputs: tuple[tuple[_Output, ...], ...]
    """of each block"""


def _sites(stacks: tuple[_Stack, ...], channels: int, grid: tuple[int, int]) -> tuple[SiteSpec, ...]:
    """The sites of all stacks. A site's side is the third of the network that its block is in."""
    rows = [
        (output, f"{stack.name}.{i}.{output.name}", f"{stack.path}.{i}.{output.module}".rstrip("."))
        for stack in stacks
        for i, outputs in enumerate(stack.outputs)
        for output in outputs
    ]
    blocks = list(dict.fromkeys(block_of(name) for _, name, _ in rows))
    thirds = {block: ("early", "middle", "late")[3 * i // len(blocks)] for i, block in enumerate(blocks)}
    return tuple(
        SiteSpec(name, module, channels, *grid, thirds[block_of(name)], output.family) for output, name, module in rows
    )


def _number(config: Config, field: str, default: int | None = None) -> int:
    value = config.get(field, default)
    if type(value) is not int or value < 1:
        raise ValueError(
            f"transformer/config.json: {field}={value!r} is not supported; supported: a whole number from 1"
        )
    return value


Stacks = tuple[_Stack, ...]


def _plain(config: Config, layers: int, *outputs: _Output) -> Stacks:
    """One list of equal blocks; layers: the default."""
    return (_Stack("transformer_blocks", "block", (outputs,) * _number(config, "num_layers", layers)),)


def _sd3(config: Config) -> Stacks:
    dual = set(config.get("dual_attention_layers") or ())
    layers = range(_number(config, "num_layers", 18))
    outputs = tuple((JOINT, *((SECOND,) if i in dual else ()), MLP, RESIDUAL) for i in layers)
    return (_Stack("transformer_blocks", "block", outputs),)


def _flux(config: Config) -> Stacks:
    double = _Stack("transformer_blocks", "block", ((JOINT, MLP, RESIDUAL),) * _number(config, "num_layers", 19))
    # a single block projects attention and feed-forward layer together, so that the latter has no output of its own
    return double, _Stack(
        "single_transformer_blocks", "single", ((SINGLE, RESIDUAL),) * _number(config, "num_single_layers", 38)
    )


@dataclass(frozen=True)
class _Transformer:
    """How a family's configuration tells its sizes; numbers are the defaults of fields that it may leave out."""

    stacks: Callable[[Config], Stacks]
    heads: tuple[int, int]
    """number and size"""
    channels: int
    """`in_channels`"""
    side: int
    """of a latent"""
    patch: int = 2


TRANSFORMERS = {
    "PixArt": _Transformer(lambda c: _plain(c, 28, SELF, CROSS, MLP, RESIDUAL), (16, 72), 4, 128),
    "DiT": _Transformer(lambda c: _plain(c, 28, SELF, MLP, RESIDUAL), (16, 72), 4, 32),
    "Sana": _Transformer(lambda c: _plain(c, 20, SELF, CROSS, MLP, RESIDUAL), (70, 32), 32, 32, 1),
    "Stable Diffusion 3": _Transformer(_sd3, (18, 64), 16, 128),
    "FLUX": _Transformer(_flux, (24, 128), 64, 128),
}


def _transformer(name: str, config: Config, side: int) -> tuple[int, int, tuple[SiteSpec, ...]]:
    """Channels and side of a latent, and the sites; side: the one that is asked for, or 0."""
    family = TRANSFORMERS[name]
    width = _number(config, "num_attention_heads", family.heads[0]) * _number(
        config, "attention_head_dim", family.heads[1]
    )
    channels, patch = _number(config, "in_channels", family.channels), _number(config, "patch_size", family.patch)
    if name == "FLUX":  # the pipeline makes patches of 2 x 2 before the network, and has a default size of its own
        channels, patch, side = channels // 4, 2, side or family.side
    side = side or _number(config, "sample_size", family.side)
    if side % patch:
        raise ValueError(f"{side} latent pixels a side are no multiple of the patch of {patch}")
    return channels, side, _sites(family.stacks(config), width, (side // patch, side // patch))


def shrinking(vae: Config) -> int:
    """Pixels of an image per latent pixel, along each side."""
    blocks = vae.get("encoder_block_out_channels") or vae.get("block_out_channels") or [64]
    return 2 ** (len(blocks) - 1)


def layout(family: Family, network: Config, vae: Config, size: int = 0) -> ModelLayout:
    """Sizes and sites of a model from the configurations of its network and its autoencoder.

    size: side of an image in pixels (`model.size`), or 0 for the model's own. Raises ValueError if a size is not given
    or does not fit, or the network has no sites.
    """
    factor = shrinking(vae)
    if size % factor:
        raise ValueError(f"model.size={size}: must be a multiple of {factor}, by which the autoencoder shrinks images")
    if family.network == "unet":
        own = network["sample_size"]
        height, width = (own, own) if isinstance(own, int) else own
        channels, latent = network["in_channels"], (size // factor, size // factor) if size else (height, width)
        attention_sites(network, latent)  # raises if there are none
        sites, convolutions = unet_sites(network, latent), conv_sites(network, latent)
    else:
        channels, side, sites = _transformer(family.name, network, size // factor)
        latent, convolutions = (side, side), ()
    kl = vae.get("_class_name", "AutoencoderKL") == "AutoencoderKL"
    additional = {"conv": convolutions, "vae": vae_sites(vae, latent) if kl else ()}
    return ModelLayout((channels, *latent), (latent[0] * factor, latent[1] * factor), sites, additional)
