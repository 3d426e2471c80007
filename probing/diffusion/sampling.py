"""The denoising loop: text to image with guidance, a callback per step, hooks around the UNet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler
from torch import Tensor

from probing.diffusion.conditioning import conditions
from probing.diffusion.model import LatentDiffusion, ModelConfig, model_path


@dataclass(frozen=True)
class StepEvent:
    """What a callback sees after a denoising step."""

    step: int
    """1 to the number of steps"""
    sigma: float
    """noise level that the UNet saw"""
    before: Tensor
    """latents that the UNet saw, (n, C, h, w), in units of sigma"""
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
    """One CPU draw per sample from a generator seeded with the sample's own seed."""
    draws = [torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    return torch.stack(draws).to(model.device)


def schedule(model: LatentDiffusion, steps: int) -> LMSDiscreteScheduler:
    """A fresh linear multistep scheduler (section 3.1); it keeps state, so one for each batch."""
    return _schedule(model.scheduler_config, steps)


def noise_levels(config: ModelConfig, steps: int = 15) -> tuple[float, ...]:
    """The sigma that the UNet sees at each step, from the scheduler's file alone, without weights.

    Empty where the model is not on this machine: nothing is fetched."""
    try:
        path = model_path(config)
        where = {} if isinstance(path, Path) else {"revision": config.revision, "local_files_only": True}
        found = LMSDiscreteScheduler.load_config(str(path), subfolder="scheduler", **where)
    except (ValueError, OSError):
        return ()
    return tuple(float(sigma) for sigma in _schedule(dict(found), steps).sigmas[:steps])


def _schedule(config: Mapping[str, Any], steps: int) -> LMSDiscreteScheduler:
    names = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type")
    known = {name: config[name] for name in names if name in config}
    scheduler = LMSDiscreteScheduler(**known, steps_offset=1)
    scheduler.set_timesteps(steps)
    return scheduler


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
    """Samples images (section 3.1; `protocol`: 15 LMS steps, the batch is [uncond, cond]).

    `around(step)` is entered around the step's UNet call. `forced` gives the latents that the
    UNet sees at each step (a foreign trajectory) in place of its own. Guidance 1 or less runs
    the conditional half alone.
    """
    guided = guidance > 1
    told = conditions(model, prompts, guided)
    scheduler = schedule(model, steps)
    latents = initial_noise(model, seeds) * scheduler.init_noise_sigma
    for index, time in enumerate(scheduler.timesteps):
        seen = latents if forced is None else forced[index].to(latents)
        sigma = float(scheduler.sigmas[index])
        batch = torch.cat([seen, seen]) if guided else seen
        batch = scheduler.scale_model_input(batch, time).to(model.unet.dtype)
        with around(index + 1) if around else nullcontext(), _autocast(model):
            output = model.unet(batch, time.to(model.device), **told).sample.float()
        if guided:
            without, with_text = output.chunk(2)
            output = without + guidance * (with_text - without)
        moved = scheduler.step(output, time, seen)
        assert not isinstance(moved, tuple)
        assert moved.pred_original_sample is not None
        latents = moved.prev_sample
        if on_step:
            event = StepEvent(index + 1, sigma, seen, latents, moved.pred_original_sample)
            on_step(event)
    images = model.decode(latents) if decode else torch.empty(0, dtype=torch.uint8)
    return Samples(latents, images)


def _autocast(model: LatentDiffusion) -> AbstractContextManager[None]:
    if model.autocast is None:
        return nullcontext()
    return torch.autocast(model.device.type, model.autocast)
