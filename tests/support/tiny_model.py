"""A narrow random pipeline with the real site names, for tests that need no quality."""

from __future__ import annotations

from pathlib import Path

import torch

from probing.diffusion.families.registry import family_of
from probing.diffusion.families.unet import StableDiffusion, TextEncoder
from probing.scenes import text, training, vae
from probing.scenes.denoisers import diffusion


def parts(seed: int = 0) -> tuple[torch.nn.Module, torch.nn.Module, diffusion.Denoiser]:
    """UNet of 16 to 32 channels, autoencoder of 8 to 16, text encoder as it ships."""
    torch.manual_seed(seed)
    network = diffusion.Denoiser()
    network.unet = diffusion.build_unet((16, 16, 32, 32), 128)
    for module in (network,):
        module.eval().requires_grad_(False)
    return network.unet, vae.build((8, 16, 16, 16)).eval().requires_grad_(False), network


def model(seed: int = 0) -> StableDiffusion:
    """The tiny model in memory."""
    unet, autoencoder, network = parts(seed)
    return StableDiffusion(
        family_of("StableDiffusionPipeline"), unet, autoencoder, dict(diffusion.build_scheduler().config),
        torch.device("cpu"), text=(TextEncoder(network.text_encoder, text.build_tokenizer()),), embedded=True,
    )  # fmt: skip


def save(folder: Path) -> Path:
    """The tiny model as a pipeline directory."""
    _, autoencoder, network = parts()
    training.save_pipeline(folder / "pipeline", autoencoder, network)
    return folder / "pipeline"
