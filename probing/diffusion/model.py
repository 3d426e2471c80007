"""The model under study: a Stable Diffusion pipeline as plain parts, and its randomised variants."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from probing.diffusion import devices, metadata
from probing.diffusion.config import SCENES, ModelConfig
from probing.diffusion.sites import SiteSpec, attention_sites, conv_sites, vae_site
from probing.diffusion.variants import OTHER_SEED, VARIANTS, kind, own_seed
from probing.libraries import loading_errors, quiet_libraries

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import PreTrainedTokenizerBase

    from probing.diffusion.pretrained import SecondText

DECODED = 16
"""maximal number of latents that are decoded together"""
DECODED_PIXELS = 1 << 20
"""maximal number of pixels that are decoded together (a single larger image is decoded alone)"""


@dataclass(frozen=True)
class LatentDiffusion:
    """The parts of a latent diffusion model that the experiment uses."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: nn.Module
    tokenizer: PreTrainedTokenizerBase
    scheduler_config: dict[str, object]
    device: torch.device
    autocast: torch.dtype | None = None
    embedded: bool = False
    """whether this is the scenes model, whose tokenizer knows only the grammar's words"""
    second: SecondText | None = None
    """the second text encoder of XL"""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a latent."""
        size = self.unet.config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config["in_channels"], height, width

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of an image in pixels."""
        factor = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        return self.latent_shape[1] * factor, self.latent_shape[2] * factor

    def sites(self, family: str = "attention") -> tuple[SiteSpec, ...]:
        """Sites of a family: `attention`, `conv` or `vae`."""
        latent = self.latent_shape[1:]
        if family == "vae":
            return (vae_site(self.vae.config, latent),)
        return (attention_sites if family == "attention" else conv_sites)(self.unet.config, latent)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Hidden states (n, positions, width) of the text encoder.

        Raises ValueError if the scenes model does not know a word.
        """
        if self.embedded:
            _check_words(self.tokenizer, prompts)
        return self.text_encoder(tokenize(self.tokenizer, prompts).to(self.device))[0]

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Images uint8 (n, H, W, 3) on the CPU from scaled latents (n, C, h, w); memory is bounded."""
        batch = min(DECODED, max(1, DECODED_PIXELS // (self.image_size[0] * self.image_size[1])))
        raw = latents.to(self.vae.dtype) / self.vae.config["scaling_factor"]
        parts = [self.vae.decode(raw[i : i + batch]).sample for i in range(0, len(raw), batch)]
        images = torch.cat(parts).float().div(2).add(0.5).clamp(0, 1).mul(255).round()
        return images.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> Tensor:
    """Token ids (n, positions), padded and truncated to the encoder's length."""
    return tokenizer(
        list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids


def _check_words(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> None:
    known = set(tokenizer.get_vocab())
    for prompt in prompts:
        for word in prompt.lower().split():
            if word not in known:
                words = " ".join(sorted(w for w in known if not w.startswith("<")))
                raise ValueError(f"prompt {prompt!r}: the scenes model does not know {word!r}; its words: {words}")


def load(config: ModelConfig, variants: int = 1) -> LatentDiffusion:
    """Load the trained model; `variants` is how many variants of the UNet will be used.

    Raises ValueError if there is no such pipeline, no access to it, or not enough memory for it.
    """
    path, device = metadata.model_path(config), devices.pick_device(config.device)
    if isinstance(path, Path):
        with loading_errors(config.name):
            sizes = metadata.weight_bytes(path, config.dtype)
        devices.check_memory(sizes, str(device), variants, config.name)
    with quiet_libraries(), loading_errors(config.name):
        from probing.diffusion import pretrained  # diffusers and transformers take seconds to import

        parts = pretrained.load(path, config.revision, getattr(torch, config.dtype))
    with loading_errors(config.name):
        for network in parts.networks:
            network.to(device=device)
    # diffusers wraps `to`, which hides its `self`
    parts.unet.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    parts.vae.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    return LatentDiffusion(
        unet=parts.unet,
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        scheduler_config=parts.scheduler,
        device=device,
        autocast=getattr(torch, config.autocast) if config.autocast and device.type == "cuda" else None,
        embedded=config.name == SCENES,
        second=parts.second,
    )


@torch.no_grad()
def permute_weights(network: nn.Module, seed: int) -> None:
    """Permute every module's `weight` elementwise; biases stay (section 3.3, the random control)."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor):
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            shuffled = weight.detach().contiguous().flatten()[order].view(weight.shape)
            weight.copy_(shuffled)


def variant(model: LatentDiffusion, name: str, seed: int) -> LatentDiffusion:
    """The model with the UNet of a variant; all other parts are shared.

    The UNet's seed is the one in the name (`random@101`), or else `seed`. Raises ValueError for an unknown variant.
    """
    if name in ("trained", OTHER_SEED):
        return model
    if kind(name) in ("random", "random_forced"):
        unet = copy.deepcopy(model.unet)
        permute_weights(unet, own_seed(name, seed))
        return replace(model, unet=unet)
    if kind(name) == "reinit":
        state = torch.get_rng_state()
        torch.manual_seed(own_seed(name, seed))
        fresh = type(model.unet).from_config(model.unet.config)
        assert not isinstance(fresh, tuple)  # from_config returns a tuple only if asked for unused settings
        torch.set_rng_state(state)
        # diffusers wraps `to`, which hides its `self`
        fresh.to(device=model.device, dtype=model.unet.dtype, memory_format=torch.channels_last)  # type: ignore[call-arg]
        return replace(model, unet=fresh.eval().requires_grad_(False))
    raise ValueError(f"variants: no variant {name!r}; use {', '.join(VARIANTS)}")
