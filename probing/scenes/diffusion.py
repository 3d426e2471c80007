"""The UNet of the scenes model (Stable Diffusion's topology, narrow) and its training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler
from torch import Tensor, nn

from probing.diffusion.sites import SiteSpec, attention_sites
from probing.scenes import text
from probing.scenes.optimise import Loop, Schedule

CHANNELS = (64, 128, 160, 160)
CAPTION_DROPOUT = 0.1
"""share of the captions replaced by the empty one, for guidance"""
SNR_LIMIT = 5.0
"""a step's loss in x0 weighs as much as its signal-to-noise ratio, but no more than this"""
LEAST_WEIGHT = 0.25
"""least weight of a velocity: otherwise the almost clean steps, the last of sampling, would hardly be learnt"""
FOCUS = 3.0
"""initial attention logit of a token with itself, as a multiple of the logarithm of the number of tokens"""
VISITED = 15
"""denoising steps of sampling; half of the training uses exactly their noise levels"""
SHIFT = 4.0
"""noise levels are those of Stable Diffusion divided by this, the ratio of its latents' side (64) to ours (16): what
covers as many latent pixels is averaged as often (the resolution shift of simple diffusion, Hoogeboom et al. 2023)"""
ATTENTION_RATE = 0.1
"""learning rate of queries and keys of self-attention, as a share of that of all other weights"""


def build_unet(channels: Sequence[int] = CHANNELS, text_width: int = 128) -> UNet2DConditionModel:
    """Stable Diffusion's block types and order, hence its 16 self-attention sites."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=tuple(channels),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=16,
    ).to(memory_format=torch.channels_last)


def shifted_betas() -> list[float]:
    """Betas (1000) of Stable Diffusion's noise schedule with every noise level sigma divided by SHIFT."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    signal = np.cumprod(1 - betas)
    shifted = 1 / (1 + (1 - signal) / signal / SHIFT**2)
    return [float(f"{beta:.9g}") for beta in 1 - shifted / np.concatenate([[1.0], shifted[:-1]])]


def build_scheduler() -> LMSDiscreteScheduler:
    """Stable Diffusion's noise schedule, shifted to the size of the latents; the network predicts velocity."""
    return LMSDiscreteScheduler(
        # diffusers annotates an array, and writes a list to the scheduler's file
        trained_betas=shifted_betas(),  # type: ignore[arg-type]
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        steps_offset=1,
    )


def self_attentions(unet: UNet2DConditionModel) -> list[tuple[SiteSpec, Attention]]:
    """Every self-attention site of a UNet with its attention module, in order of execution."""
    size = unet.config["sample_size"]
    sites = attention_sites(unet.config, (size, size))
    return [(site, cast(Attention, unet.get_submodule(site.module.removesuffix(".to_out.0")))) for site in sites]


def focus_attention(unet: UNet2DConditionModel, seed: int) -> None:
    """Initialise every self-attention so that a token attends to tokens like itself.

    Queries and keys of a head become one random orthonormal projection of the token, so that a token's logit with
    itself is the largest (as in the mimetic initialisation of Trockman and Kolter, 2023). From the usual start the
    attention of a network this small stays near-uniform (an entropy of 0.97 of the largest possible at the outer
    sites after 2,500 steps), and then each token gets the same sum: self-attention has almost no effect.
    """
    generator = torch.Generator().manual_seed(seed)
    for site, attention in self_attentions(unet):
        heads, width = attention.heads, attention.to_q.in_features
        # tokens are normalised, so a head's projection has a squared length of about its own width
        agreement = FOCUS * math.log(max(2, site.tokens)) * (heads / width) ** 0.5
        basis = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
        with torch.no_grad():
            for part in (attention.to_q, attention.to_k):
                part.weight.copy_(basis * agreement**0.5)


def learning_rate(name: str) -> float:
    """Learning rate of a parameter of `Denoiser` as a multiple of the schedule's.

    Queries and keys of self-attention learn slowly: at the full rate, attention drifts back to near-uniform."""
    return ATTENTION_RATE if ".attn1.to_q." in name or ".attn1.to_k." in name else 1.0


class Denoiser(nn.Module):
    """Text encoder and UNet, trained together."""

    def __init__(self, vocabulary: int | None = None) -> None:
        super().__init__()
        self.text_encoder = text.build_encoder()
        self.unet = build_unet()

    def forward(self, noisy: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        """Velocity (n, 4, h, w) of noisy latents at integer times (n,)."""
        states = self.text_encoder(tokens).last_hidden_state
        return self.unet(noisy, times, states).sample


def training_times(count: int, generator: torch.Generator) -> Tensor:
    """Times (count,) in 0..999: half spread evenly over all, half over those of the sampling steps."""
    anywhere = _spread(count - count // 2, generator) * 1000
    visited = torch.linspace(0, 999, VISITED, device=generator.device).round()
    steps = (_spread(count // 2, generator) * VISITED).long().clamp_max(VISITED - 1)
    return torch.cat([anywhere.long().clamp_max(999), visited[steps].long()])


def _spread(count: int, generator: torch.Generator) -> Tensor:
    """One number from each of `count` equal parts of 0 to 1, so that each batch has all noise levels."""
    device = generator.device
    return (torch.arange(count, device=device) + torch.rand(count, generator=generator, device=device)) / max(1, count)


def velocity_loss(
    model: Callable[[Tensor, Tensor, Tensor], Tensor],
    latents: Tensor,
    tokens: Tensor,
    signal: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Squared error of the velocity, weighted by max(min(SNR, SNR_LIMIT) / (SNR + 1), LEAST_WEIGHT).

    latents: (n, 4, h, w), scaled; tokens: (n, positions); signal: the schedule's cumulative alpha product (1000,).
    All of them are on the generator's device.
    """
    times = training_times(len(latents), generator)
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    alpha = signal[times].sqrt()[:, None, None, None]
    sigma = (1 - signal[times]).sqrt()[:, None, None, None]
    target = alpha * noise - sigma * latents
    with torch.autocast(latents.device.type, torch.bfloat16):
        output = model(alpha * latents + sigma * noise, times, tokens)
    error = (output.float() - target).square().mean((1, 2, 3))
    ratio = signal[times] / (1 - signal[times])
    weight = (ratio.clamp_max(SNR_LIMIT) / (ratio + 1)).clamp_min(LEAST_WEIGHT)
    return (error * weight).mean()


def train(
    latents: Tensor,
    captions: Sequence[str],
    folder: Path,
    schedule: Schedule,
    progress: Callable[[str], None],
    batch: int = 32,
    seed: int = 2,
    start: dict[str, Tensor] | None = None,
    device: str = "cpu",
) -> Denoiser:
    """Train on scaled latents (N, 4, h, w); returns the averaged weights.

    start: weights to begin with, instead of random ones with `focus_attention`."""
    torch.manual_seed(seed)
    model = Denoiser().to(device)
    tokenizer = text.build_tokenizer()
    tokens = text.tokenize(tokenizer, captions).to(device)
    empty = text.tokenize(tokenizer, [""]).to(device)
    signal = build_scheduler().alphas_cumprod.to(device)
    latents = latents.to(device)
    if device == "cpu":
        # with heads this narrow the fused kernel's backward pass takes a third of a step on CPU
        model.unet.set_attn_processor(AttnProcessor())
    if start:
        model.load_state_dict(start)
    else:
        focus_attention(model.unet, seed)
    loop = Loop(model, schedule, folder, seed, learning_rate)
    loop.resume()

    def loss(step: int, generator: torch.Generator) -> Tensor:
        which = torch.randint(len(latents), (batch,), generator=generator, device=device)
        dropped = torch.rand(batch, generator=generator, device=device) < CAPTION_DROPOUT
        words = torch.where(dropped[:, None], empty, tokens[which])
        clean = latents[which].contiguous(memory_format=torch.channels_last)
        return velocity_loss(model, clean, words, signal, generator)

    loop.run(loss, progress)
    model.load_state_dict(loop.averaged)
    return model.eval()
