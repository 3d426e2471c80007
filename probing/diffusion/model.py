"""The model under study: a Stable Diffusion pipeline as plain parts, and its randomised variants."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from probing.diffusion import devices, metadata, parts
from probing.diffusion.config import SCENES, ModelConfig
from probing.diffusion.sites import SiteSpec, attention_sites, conv_sites, vae_sites
from probing.diffusion.variants import OTHER_SEED, VARIANTS, kind, own_seed
from probing.libraries import loading_errors, quiet_libraries

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import PreTrainedTokenizerBase

Network = TypeVar("Network", bound=nn.Module)
DECODED = 16
"""maximal number of latents that are decoded together"""
DECODED_PIXELS = 1 << 20
"""maximal number of pixels that are decoded together (a single larger image is decoded alone)"""


@dataclass(frozen=True)
class SecondText:
    """XL's second text encoder, whose pooled output conditions the UNet too."""

    encoder: nn.Module
    tokenizer: PreTrainedTokenizerBase
    empty_is_zero: bool
    """whether zeros replace the encoded empty prompt in the unconditional half"""


@dataclass(frozen=True)
class LatentDiffusion:
    """The parts of a latent diffusion model that the experiment uses."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: nn.Module
    tokenizer: PreTrainedTokenizerBase
    scheduler_config: dict[str, Any]
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
            return vae_sites(self.vae.config, latent)
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
    """Load the trained model, with weights from safetensors alone and no tensor missing.

    variants: how many variants of the UNet will be used.
    Raises ValueError if there is no such pipeline, no access to it, or not enough memory for it.
    """
    path, device = metadata.model_path(config), devices.pick_device(config.device)
    with loading_errors(config.name):
        sizes = metadata.weight_bytes(path, config.dtype) if isinstance(path, Path) else {}
    devices.check_memory(sizes, str(device), variants, config.name)
    with quiet_libraries(), loading_errors(config.name):
        model = _load_parts(path, config, device)
        second = [model.second.encoder] if model.second else []
        for network in (model.unet, model.vae, model.text_encoder, *second):
            network.to(device=device)
    # diffusers wraps `to`, which hides its `self`
    model.unet.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    model.vae.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    return model


class _Origin(TypedDict):
    """Keyword arguments of the libraries' loaders."""

    revision: str | None
    local_files_only: bool


def _load_parts(path: Path | str, config: ModelConfig, device: torch.device) -> LatentDiffusion:
    """The model on the CPU. Raises ValueError if the pipeline is of another class or lacks tensors."""
    # diffusers takes seconds to import
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    origin: _Origin = {"revision": config.revision or None, "local_files_only": isinstance(path, Path)}
    dtype = getattr(torch, config.dtype)
    folder = metadata.config_folder(config)
    parts.check(folder)
    index, encoders = parts.read_index(folder)
    text_encoder, tokenizer = _load_text(index, path, "", origin, dtype)
    second = None
    if encoders == 2:
        empty_is_zero = bool(index.get("force_zeros_for_empty_prompt", True))
        second = SecondText(*_load_text(index, path, "_2", origin, dtype), empty_is_zero)
    return LatentDiffusion(
        unet=_load_network(UNet2DConditionModel, path, "unet", origin, dtype),
        vae=_load_network(AutoencoderKL, path, "vae", origin, dtype),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler_config=parts.read_scheduler(folder),
        device=device,
        autocast=getattr(torch, config.autocast) if config.autocast and device.type == "cuda" else None,
        embedded=config.name == SCENES,
        second=second,
    )


def _load_text(
    index: Mapping[str, Any], path: Path | str, suffix: str, origin: _Origin, dtype: torch.dtype
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """A text encoder and its tokenizer; `suffix` is empty or `_2`."""
    import transformers

    part = f"text_encoder{suffix}"
    encoder = _load_network(getattr(transformers, index[part][1]), path, part, origin, dtype)
    tokenizer_class = (index.get(f"tokenizer{suffix}") or [None, "AutoTokenizer"])[1]
    loader = getattr(transformers, tokenizer_class, transformers.AutoTokenizer)
    tokenizer = loader.from_pretrained(str(path), subfolder=f"tokenizer{suffix}", **origin)
    # a tokenizer whose file names no length would pad to more positions than there are
    tokenizer.model_max_length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    return encoder, tokenizer


def _load_network(
    network_class: type[Network], path: Path | str, part: str, origin: _Origin, dtype: torch.dtype
) -> Network:
    """A network with every tensor from the file."""
    loader: Any = network_class  # the loaders of diffusers and transformers share no base class
    if part == "vae" and dtype == torch.float16:
        # autoencoders marked so (XL's) overflow in float16
        if loader.load_config(str(path), subfolder=part, **origin).get("force_upcast"):
            dtype = torch.float32
    dtype_key = "dtype" if network_class.__module__.startswith("transformers") else "torch_dtype"
    options = {dtype_key: dtype, **origin}
    network, report = loader.from_pretrained(
        str(path), subfolder=part, use_safetensors=True, output_loading_info=True, **options
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"its {part} lacks {len(missing)} tensors ({missing[0]}); download the weights again")
    return network.eval().requires_grad_(False)


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
