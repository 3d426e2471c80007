"""Runs the network again on a recorded trajectory, to read sites that the sampling pass did not record.

A denoising step is a pure function of the latent that entered it, the prompt and the step, so the output of any
module can be computed later without sampling again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from probing.diffusion.capture import checked
from probing.diffusion.conditioning import Conditions
from probing.diffusion.hooks import Sink, record
from probing.diffusion.model import LatentDiffusion
from probing.diffusion.sampling import autocast, initial_noise, schedule
from probing.diffusion.sites import SiteSpec

Write = Callable[[str, np.ndarray], None]
"""(site, float16 (n, tokens, channels)) -> None"""


def entering(model: LatentDiffusion, seeds: Sequence[int], steps: int) -> Tensor:
    """The latents (n, C, h, w) that enter step 1: each seed's noise at the schedule's first sigma."""
    return initial_noise(model, seeds) * schedule(model, steps).init_noise_sigma


def _writing(write: Write, step: int) -> Sink:
    return lambda site, output: write(site.name, checked(site.name, step, output.half().cpu().numpy()))


@torch.inference_mode()
def replay_unet(
    model: LatentDiffusion,
    conditioning: Conditions,
    latents: Tensor,
    step: int,
    steps: int,
    sites: Sequence[SiteSpec],
    write: Write,
) -> None:
    """Write the outputs of UNet sites at one step, for the conditional half alone.

    conditioning: `conditions(model, prompts, guided=False)`. latents: (n, C, h, w) that enter the step.
    Raises NonFiniteActivation naming site and step.
    """
    scheduler = schedule(model, steps)
    time = scheduler.timesteps[step - 1]
    batch = scheduler.scale_model_input(latents.to(model.device), time).to(model.unet.dtype)
    with record(model.unet, sites, _writing(write, step)), autocast(model):
        model.unet(batch, time.to(model.device), **conditioning)


@torch.inference_mode()
def replay_vae(model: LatentDiffusion, latents: Tensor, step: int, site: SiteSpec, write: Write) -> None:
    """Write the output of the VAE decoder's self-attention for the latents (n, C, h, w) after a step.

    As in section 4.2, the noisy latents are decoded as they are, divided only by the latent scale. The decoder runs
    up to its mid block. Raises NonFiniteActivation naming site and step.
    """
    vae = model.vae
    raw = latents.to(model.device, vae.dtype) / vae.config["scaling_factor"]
    if vae.post_quant_conv is not None:
        raw = vae.post_quant_conv(raw)
    with record(vae, [site], _writing(write, step)):
        vae.decoder.mid_block(vae.decoder.conv_in(raw))
