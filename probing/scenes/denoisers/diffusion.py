"""The UNet of the scenes model (Stable Diffusion's topology, narrow) and its training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler
from torch import Tensor, nn

from probing.diffusion.sites import SiteSpec, attention_sites
from probing.scenes import text
from probing.scenes.denoisers.captioned import Captioned, spread
from probing.scenes.denoisers.speed import EAGER, Training, faster
from probing.scenes.optimise import Loop, Schedule

CHANNELS = (64, 128, 160, 160)
SNR_LIMIT = 5.0
"""a step's loss in x0 weighs as much as its signal-to-noise ratio, but no more than this"""
LEAST_WEIGHT = 0.25
"""least weight of a velocity: otherwise the almost clean steps, the last of sampling, would hardly be learnt"""
FOCUS = 3.0
"""initial attention logit of a token with itself, as a multiple of the logarithm of the number of tokens"""
VISITED = 15
"""denoising steps of sampling; half of the training uses exactly their noise levels"""
SHIFT = 4
"""the largest noise level is that of Stable Diffusion divided by this, the ratio of its latents' side (64) to ours
(16), because an object covers fewer latent pixels to average the noise over (the resolution shift of simple diffusion,
Hoogeboom et al. 2023)"""
TIMES = 723
"""training times: the first of Stable Diffusion's 1000, up to the largest noise level divided by SHIFT"""


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


def build_scheduler() -> LMSDiscreteScheduler:
    """Stable Diffusion's noise schedule, shifted to the size of the latents; the network predicts velocity.

    Its first TIMES times keep their noise levels; sampling goes down from the largest in equal ratios, which at the
    early steps are those of Stable Diffusion's own.
    """
    start, end = 0.00085**0.5, 0.012**0.5
    return LMSDiscreteScheduler(
        beta_start=0.00085,
        beta_end=(start + (end - start) * (TIMES - 1) / 999) ** 2,
        beta_schedule="scaled_linear",
        num_train_timesteps=TIMES,
        use_exponential_sigmas=True,
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


def queries_and_keys(model: Denoiser) -> list[str]:
    """Names of the parameters by which every self-attention chooses where to look."""
    return [name for name, _ in model.named_parameters() if ".attn1.to_q." in name or ".attn1.to_k." in name]


class Denoiser(nn.Module):
    """Text encoder and UNet, trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = text.build_encoder()
        self.unet = build_unet()

    def forward(self, noisy: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        """Velocity (n, 4, h, w) of noisy latents at times (n,)."""
        states = self.text_encoder(tokens).last_hidden_state
        return self.unet(noisy, times, states).sample


@dataclass(frozen=True, eq=False)
class NoiseLevels:
    """The noise levels that the network is trained on."""

    schedule: Tensor
    """(TIMES) sigma of every training time"""
    times: Tensor
    """(VISITED) times of the sampling steps, not whole numbers"""
    sigmas: Tensor
    """(VISITED) sigmas of the sampling steps"""

    @staticmethod
    def of(scheduler: LMSDiscreteScheduler, device: str = "cpu") -> NoiseLevels:
        """Those of a scheduler; its number of sampling steps is set to VISITED."""
        scheduler.set_timesteps(VISITED)
        signal = scheduler.alphas_cumprod.double()
        every = ((1 - signal) / signal).sqrt().float()
        tensors = (every, scheduler.timesteps.float(), scheduler.sigmas[:-1].float())
        return NoiseLevels(*(tensor.to(device) for tensor in tensors))

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times and sigmas (count,): half spread evenly over all times, half over those of the sampling steps."""
        anywhere = (spread(count - count // 2, generator) * TIMES).long().clamp_max(TIMES - 1)
        steps = (spread(count // 2, generator) * VISITED).long().clamp_max(VISITED - 1)
        times = torch.cat([anywhere.float(), self.times[steps]])
        return times, torch.cat([self.schedule[anywhere], self.sigmas[steps]])


def velocity_loss(
    model: Callable[[Tensor, Tensor, Tensor], Tensor],
    latents: Tensor,
    tokens: Tensor,
    levels: NoiseLevels,
    generator: torch.Generator,
) -> Tensor:
    """Squared error of the velocity, weighted by max(min(SNR, SNR_LIMIT) / (SNR + 1), LEAST_WEIGHT).

    latents: (n, 4, h, w), scaled; tokens: (n, positions). All of them are on the generator's device.
    """
    times, sigmas = levels.draw(len(latents), generator)
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    signal = 1 / (1 + sigmas.square())
    alpha, sigma = signal.sqrt()[:, None, None, None], (1 - signal).sqrt()[:, None, None, None]
    target = alpha * noise - sigma * latents
    with torch.autocast(latents.device.type, torch.bfloat16):
        output = model(alpha * latents + sigma * noise, times, tokens)
    error = (output.float() - target).square().mean((1, 2, 3))
    weight = (sigmas.pow(-2).clamp_max(SNR_LIMIT) * signal * sigmas.square()).clamp_min(LEAST_WEIGHT)
    return (error * weight).mean()


def prepare(
    latents: Tensor,
    captions: Sequence[str],
    folder: Path,
    schedule: Schedule,
    batch: int = 32,
    seed: int = 2,
    start: dict[str, Tensor] | None = None,
    device: str = "cpu",
    way: str = EAGER,
    attention: float = 0.0,
) -> Training[Denoiser]:
    """A training on scaled latents (N, 4, h, w), resumed from its checkpoint in `folder` if there is one.

    start: weights to begin with, instead of random ones with `focus_attention`. way: one of `speed.WAYS`.
    attention: share of the learning rate for queries and keys of self-attention; 0 keeps them as they are.
    """
    torch.manual_seed(seed)
    model = Denoiser().to(device)
    data = Captioned.of(latents, captions, device)
    levels = NoiseLevels.of(build_scheduler(), device)
    if device == "cpu":
        # with heads this narrow the fused kernel's backward pass takes a third of a step on CPU
        model.unet.set_attn_processor(AttnProcessor())
    if start:
        model.load_state_dict(start)
    else:
        focus_attention(model.unet, seed)
    own = queries_and_keys(model)
    for name in own:
        model.get_parameter(name).requires_grad_(attention > 0)
    loop = Loop(model, schedule, folder, seed, dict.fromkeys(own, attention))
    loop.resume()

    def sample() -> tuple[Tensor, Tensor, Tensor]:
        clean, words = data.draw(batch, loop.generator(0))
        return clean.contiguous(memory_format=torch.channels_last), levels.draw(batch, loop.generator(0))[0], words

    called = faster(model.train(), way, sample)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        clean, words = data.draw(batch, generator)
        clean = clean.contiguous(memory_format=torch.channels_last)
        return velocity_loss(called, clean, words, levels, generator)

    return Training(model, loop, loss)


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
    attention: float = 0.0,
) -> Denoiser:
    """Train to the end of a schedule, see `prepare`; returns the averaged weights."""
    training = prepare(latents, captions, folder, schedule, batch, seed, start, device, attention=attention)
    training.loop.run(training.loss, progress)
    training.network.load_state_dict(training.loop.averaged)
    return training.network.eval()
