"""The model under study: a Stable Diffusion pipeline as plain parts, and its randomised variants."""

from __future__ import annotations

import copy
import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probing.diffusion import memory, pretrained
from probing.diffusion.conditioning import SecondText, tokens
from probing.diffusion.sites import SiteSpec, attention_sites, conv_sites, vae_site
from probing.diffusion.variants import OTHER_SEED, VARIANTS, kind, own_seed

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

SCENES = "scenes"
DTYPES = ("float32", "float16", "bfloat16")
"""name of the embedded model"""
DECODED = 16
"""latents that are decoded together, at most"""
DECODED_PIXELS = 1 << 20
"""pixels that are decoded together, at most (a single larger image goes alone)"""


@dataclass(frozen=True)
class ModelConfig:
    """Which pipeline is studied, and how it runs."""

    name: str = SCENES
    """`scenes`, a local directory of a pipeline (Stable Diffusion 1.x, 2.x or XL), or a hub id"""
    revision: str = ""
    """commit of a hub id; required for hub ids, so that a run can be repeated"""
    dtype: str = "float32"
    """dtype of the weights: float32, float16 or bfloat16"""
    autocast: str = ""
    """dtype that the UNet computes in on CUDA (the paper: float16); empty is off"""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: CUDA where there is one"""
    random_seed: int = 100
    """seed of the weights of variants `random`, `random_forced` and `reinit`; `random@101` has its own"""

    def __post_init__(self) -> None:
        for name in ("dtype", "autocast"):
            value = getattr(self, name)
            if value not in DTYPES and (value or name == "dtype"):
                raise ValueError(f"model.{name}={value!r}: use {', '.join(DTYPES)}")


@dataclass(frozen=True)
class LatentDiffusion:
    """The parts of a latent diffusion model that the experiment uses."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: nn.Module
    tokenizer: Any
    scheduler_config: dict[str, Any]
    device: torch.device
    autocast: torch.dtype | None = None
    embedded: bool = False
    """whether this is the scenes model, whose tokenizer knows the grammar's words only"""
    second: SecondText | None = None
    """the second text encoder that XL has"""

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
        """Text states (n, positions, width) of prompts."""
        if self.embedded:
            _check_words(self.tokenizer, prompts)
        return self.text_encoder(tokens(self.tokenizer, prompts).to(self.device))[0]

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Images uint8 (n, H, W, 3) on the CPU from scaled latents (n, C, h, w); memory is bounded."""
        batch = min(DECODED, max(1, DECODED_PIXELS // (self.image_size[0] * self.image_size[1])))
        raw = latents.to(self.vae.dtype) / self.vae.config["scaling_factor"]
        parts = [self.vae.decode(raw[i : i + batch]).sample for i in range(0, len(raw), batch)]
        images = torch.cat(parts).float().div(2).add(0.5).clamp(0, 1).mul(255).round()
        return images.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def _check_words(tokenizer: Any, prompts: Sequence[str]) -> None:
    known = set(tokenizer.get_vocab())
    for prompt in prompts:
        for word in prompt.lower().split():
            if word not in known:
                words = " ".join(sorted(w for w in known if not w.startswith("<")))
                raise ValueError(f"prompt {prompt!r}: the scenes model does not know {word!r}; its words: {words}")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps the progress bars and notices of diffusers and transformers off the terminal."""
    import diffusers
    import transformers

    levels = [logging.getLogger(name).level for name in ("diffusers", "transformers")]
    tools = [kit.utils.logging for kit in (transformers, diffusers)]
    shown = [kit for kit in tools if kit.is_progress_bar_enabled()]
    for kit in shown:
        kit.disable_progress_bar()
    try:
        for name in ("diffusers", "transformers"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for name, level in zip(("diffusers", "transformers"), levels, strict=True):
            logging.getLogger(name).setLevel(level)
        for kit in shown:
            kit.enable_progress_bar()


def scenes_path() -> Path:
    """Directory of the embedded pipeline."""
    return Path(str(files("probing.scenes") / "weights"))


def model_path(config: ModelConfig) -> Path | str:
    """Where the pipeline is: a local directory, or the hub id as it stands."""
    if config.name == SCENES:
        return scenes_path() / "pipeline"
    if Path(config.name).is_dir():
        if not (Path(config.name) / "model_index.json").exists():
            raise ValueError(f"model.name: {config.name} holds no model_index.json; give a pipeline's directory")
        return Path(config.name)
    if config.name.count("/") != 1 or config.name.startswith(("/", ".")):
        raise ValueError(f"model.name: no directory {config.name}; give 'scenes', a pipeline's directory or OWNER/NAME")
    if not config.revision:
        raise ValueError(f"model.revision: {config.name} is a hub id; pin the commit to load")
    return config.name


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"model.device: {name!r} is no device; use cpu, cuda or auto") from error


def load(config: ModelConfig, variants: int = 1) -> LatentDiffusion:
    """Loads the trained model; `variants` is how many copies of the UNet will be wanted.

    Raises ValueError where there is no such pipeline, no access to it, or no memory for it.
    """
    path, device, dtype = model_path(config), pick_device(config.device), getattr(torch, config.dtype)
    if isinstance(path, Path):
        with pretrained.one_line(config.name):
            sizes = pretrained.weight_bytes(path, dtype)
        memory.check(sizes, device, variants, config.name)
    with quiet_libraries():
        parts = pretrained.load(path, config.revision, dtype, config.name)
    with pretrained.one_line(config.name):
        for part in (parts.unet, parts.vae, *parts.encoders):
            part.to(device=device)
    # diffusers wraps `to`, which hides its `self`
    parts.unet.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    parts.vae.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    autocast = getattr(torch, config.autocast) if config.autocast and device.type == "cuda" else None
    second = None
    if len(parts.encoders) > 1:
        second = SecondText(parts.encoders[1], parts.tokenizers[1], parts.empty_is_zero)
    return LatentDiffusion(
        parts.unet, parts.vae, parts.encoders[0], parts.tokenizers[0],
        parts.scheduler, device, autocast, config.name == SCENES, second,
    )  # fmt: skip


@torch.no_grad()
def permute_weights(network: nn.Module, seed: int) -> None:
    """Permutes every module's `weight` elementwise, biases stay (section 3.3, the random control)."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor):
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            shuffled = weight.detach().contiguous().flatten()[order].view(weight.shape)
            weight.copy_(shuffled)


def variant(model: LatentDiffusion, name: str, seed: int) -> LatentDiffusion:
    """The model with its UNet as the variant asks, by a name's own seed or else `seed`; the rest is shared."""
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
        assert not isinstance(fresh, tuple)  # that is only where unused settings are asked for
        torch.set_rng_state(state)
        # diffusers wraps `to`, which hides its `self`
        fresh.to(device=model.device, dtype=model.unet.dtype, memory_format=torch.channels_last)  # type: ignore[call-arg]
        return replace(model, unet=fresh.eval().requires_grad_(False))
    raise ValueError(f"variants: no variant {name!r}; use {', '.join(VARIANTS)}")


def config_folder(config: ModelConfig) -> Path:
    """A local folder with the pipeline's configuration files; hub ids are looked up, no weights."""
    path = model_path(config)
    if isinstance(path, Path):
        if not (path / "unet" / "config.json").exists():
            raise ValueError(f"model.name: {path} holds no unet/config.json; it is no Stable Diffusion pipeline")
        return path
    from huggingface_hub import snapshot_download

    with pretrained.one_line(config.name):
        return Path(snapshot_download(path, revision=config.revision, allow_patterns=["*.json"]))


def config_at_hand(config: ModelConfig) -> Path | None:
    """The same where it is on this machine already, without any look-up; None where it is not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = model_path(config)
        if isinstance(path, Path):
            return config_folder(config)
        folder = Path(snapshot_download(path, revision=config.revision, local_files_only=True))
    except (ValueError, LocalEntryNotFoundError):
        return None
    return folder if all((folder / part / "config.json").exists() for part in ("unet", "vae")) else None


def revision(config: ModelConfig) -> str:
    """What names the exact weights: the pinned commit, or a checksum of the local files' sizes
    and of their first megabyte."""
    path = model_path(config)
    if not isinstance(path, Path):
        return config.revision
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.safetensors")):
        with file.open("rb") as handle:
            digest.update(f"{file.relative_to(path)} {file.stat().st_size}".encode())
            digest.update(handle.read(1 << 20))
    return digest.hexdigest()[:16]
