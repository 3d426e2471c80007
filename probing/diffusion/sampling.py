"""The denoising loop: text to image with guidance, a callback per step, and a context around each UNet call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler
from torch import Tensor

from probing.diffusion.conditioning import conditions
from probing.diffusion.model import LatentDiffusion
from probing.diffusion.parts import lms_settings


@dataclass(frozen=True)
class StepEvent:
    """The state after a denoising step, passed to the callback."""

    step: int
    """1 to the number of steps"""
    sigma: float
    """noise level that enters the UNet"""
    before: Tensor
    """latents that enter the UNet, (n, C, h, w), not yet divided by sqrt(sigma^2 + 1)"""
    latents: Tensor
    """latents after the step"""
    clean: Tensor
    """the guided estimate of the clean latents, x - sigma * eps"""


@dataclass(frozen=True)
class Samples:
    """Finished samples."""

    latents: Tensor
    """(n, C, h, w), scaled"""
    images: Tensor
    """uint8 (n, H, W, 3) on the CPU"""


Around = Callable[[int], AbstractContextManager[None]]
OnStep = Callable[[StepEvent], None]


def initial_noise(model: LatentDiffusion, seeds: Sequence[int]) -> Tensor:
    """Noise (n, C, h, w): one CPU draw per sample from a generator with the sample's own seed."""
    draws = [torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    return torch.stack(draws).to(model.device)


def schedule(model: LatentDiffusion, steps: int) -> LMSDiscreteScheduler:
    """A new linear multistep scheduler (see `lms_settings`). It keeps state, so each batch needs its own."""
    scheduler = LMSDiscreteScheduler(**lms_settings(model.scheduler_config))
    scheduler.set_timesteps(steps)
    return scheduler


def autocast(model: LatentDiffusion) -> AbstractContextManager[None]:
    """The context of a UNet call: mixed precision if the model is configured for it."""
    return torch.autocast(model.device.type, model.autocast) if model.autocast else nullcontext()


@torch.inference_mode()
def sample(
    model: LatentDiffusion,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 15,
    guidance: float = 7.5,
    on_step: OnStep | None = None,
    around: Around | None = None,
    forced: Sequence[Tensor] | None = None,
    decode: bool = True,
) -> Samples:
    """Sample images (section 3.1: 15 LMS steps; the batch is [unconditional, conditional]).

    around: `around(step)` is entered around the step's UNet call.
    forced: latents (n, C, h, w) that enter the UNet at each step (of another trajectory) instead of its own.
    guidance: with 1 or less only the conditional half runs.
    """
    guided = guidance > 1
    conditioning = conditions(model, prompts, guided)
    scheduler = schedule(model, steps)
    latents = initial_noise(model, seeds) * scheduler.init_noise_sigma
    for index, time in enumerate(scheduler.timesteps):
        before = latents if forced is None else forced[index].to(latents)
        sigma = float(scheduler.sigmas[index])
        batch = torch.cat([before, before]) if guided else before
        batch = scheduler.scale_model_input(batch, time).to(model.unet.dtype)
        with around(index + 1) if around else nullcontext(), autocast(model):
            output = model.unet(batch, time.to(model.device), **conditioning).sample.float()
        if guided:
            unconditional, conditional = output.chunk(2)
            output = unconditional + guidance * (conditional - unconditional)
        result = scheduler.step(output, time, before)
        assert not isinstance(result, tuple)
        assert result.pred_original_sample is not None
        latents = result.prev_sample
        if on_step:
            on_step(StepEvent(index + 1, sigma, before, latents, result.pred_original_sample))
    images = model.decode(latents) if decode else torch.empty(0, dtype=torch.uint8)
    return Samples(latents, images)
