"""The denoising loop: images from prompts, a callback per network call, and a context around each of them.

A step is one call of the network; samplers such as Heun's make more calls than the steps they are asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probing.diffusion import metadata, schedules
from probing.diffusion.config import PAPER_STEPS, ModelConfig
from probing.diffusion.families.base import LatentDiffusion, adapter_of
from probing.diffusion.parts.noise import lms_settings, read_scheduler
from probing.diffusion.parts.reading import read_index
from probing.diffusion.schedules import Level


@dataclass(frozen=True)
class StepEvent:
    """The state after a denoising step, passed to the callback."""

    step: int
    """1 to the number of network calls"""
    level: Level
    """noise level of the network's input"""
    before: Tensor
    """latents that enter the step, (n, C, h, w), in the scheduler's own scale"""
    latents: Tensor
    """latents after the step"""
    clean: Tensor
    """the guided estimate of the clean latents"""


@dataclass(frozen=True)
class Samples:
    """Finished samples."""

    latents: Tensor
    """(n, C, h, w), scaled"""
    images: Tensor
    """uint8 (n, H, W, 3) on the CPU"""


Around = Callable[[int], AbstractContextManager[None]]
OnStep = Callable[[StepEvent], None]


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """A CPU generator of its own for each sample, so that a sample does not depend on the rest of its batch."""
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def initial_noise(model: LatentDiffusion, draws: Sequence[torch.Generator]) -> Tensor:
    """Noise (n, C, h, w): one draw from each generator."""
    return torch.stack([torch.randn(model.latent_shape, generator=draw) for draw in draws]).to(model.device)


def entering(model: LatentDiffusion, seeds: Sequence[int], steps: int) -> Tensor:
    """The latents (n, C, h, w) that enter step 1: each seed's noise at the schedule's first noise level."""
    return initial_noise(model, generators(seeds)) * getattr(schedule(model, steps), "init_noise_sigma", 1.0)


def schedule(model: LatentDiffusion, steps: int) -> Any:
    """A new scheduler of diffusers for a number of steps. It keeps state, so each batch needs its own.

    `lms` is the paper's sampler, a linear multistep method (see `lms_settings`); otherwise that of the model's file, or
    the class that is asked for with the settings of that file.
    """
    return _schedule(model.sampler, model.scheduler_config, steps, type(model), model.sites()[0].tokens)


def _schedule(sampler: str, config: dict[str, Any], steps: int, adapter: type[LatentDiffusion], tokens: int) -> Any:
    if sampler == schedules.LMS:
        from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler

        scheduler: Any = LMSDiscreteScheduler(**lms_settings(config))
        scheduler.set_timesteps(steps)
        return scheduler
    import diffusers

    scheduler = getattr(diffusers, schedules.kind_of(sampler, config) + schedules.SUFFIX).from_config(config)
    scheduler.set_timesteps(steps, **adapter.timesteps(scheduler, steps, tokens))
    return scheduler


def noise_levels(config: ModelConfig, sampler: str, steps: int) -> list[Level]:
    """The noise level of each network call of a sample, from the model's configuration files alone.

    Raises ValueError if they cannot be read.
    """
    folder = metadata.config_folder(config)
    tokens = metadata.read_model_info(config, folder).sites[0].tokens
    family = read_index(folder)[1]
    return schedules.levels(_schedule(sampler, read_scheduler(folder, sampler), steps, adapter_of(family), tokens))


def calls(model: LatentDiffusion, steps: int) -> int:
    """Network calls of a sample, which the results call its steps."""
    return schedules.calls(model.sampler, steps, model.scheduler_config)


def scaled_input(scheduler: Any, latents: Tensor, time: Tensor) -> Tensor:
    """Latents as the network takes them; schedulers of flow matching have no scale of their own."""
    return scheduler.scale_model_input(latents, time) if hasattr(scheduler, "scale_model_input") else latents


def autocast(model: LatentDiffusion) -> AbstractContextManager[None]:
    """The context of a network call: mixed precision if the model is configured for it."""
    return torch.autocast(model.device.type, model.autocast) if model.autocast else nullcontext()


@torch.inference_mode()
def sample(
    model: LatentDiffusion,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = PAPER_STEPS,
    guidance: float = 7.5,
    on_step: OnStep | None = None,
    around: Around | None = None,
    forced: Sequence[Tensor] | None = None,
    decode: bool = True,
) -> Samples:
    """Sample images (section 3.1: 15 LMS steps); a batch with guidance is [unconditional, conditional].

    around: `around(step)` is entered around the step's network call.
    forced: latents (n, C, h, w) that enter each step (of another trajectory) instead of its own.
    guidance: with 1 or less only the conditional half runs.
    """
    conditioning = model.conditions(prompts, guidance)
    doubled = model.doubles(guidance)
    scheduler = schedule(model, steps)
    levels, draws = schedules.levels(scheduler), generators(seeds)
    # samplers that add noise draw it from each sample's own generator
    noisy = "generator" in inspect.signature(scheduler.step).parameters
    options: dict[str, Any] = {"generator": draws} if noisy else {}
    latents = initial_noise(model, draws) * getattr(scheduler, "init_noise_sigma", 1.0)
    for index, time in enumerate(scheduler.timesteps):
        before = latents if forced is None else forced[index].to(latents)
        inputs = scaled_input(scheduler, before, time)
        with around(index + 1) if around else nullcontext(), autocast(model):
            output = model.predict(torch.cat([inputs, inputs]) if doubled else inputs, time, conditioning)
        if doubled:
            unconditional, conditional = output.chunk(2)
            output = unconditional + guidance * (conditional - unconditional)
        clean = schedules.clean_estimate(scheduler, index, levels[index], before, inputs, output) if on_step else None
        latents = scheduler.step(output, time, before, **options).prev_sample
        if on_step and clean is not None:
            on_step(StepEvent(index + 1, levels[index], before, latents, clean))
    images = model.decode(latents) if decode else torch.empty(0, dtype=torch.uint8)
    return Samples(latents, images)
