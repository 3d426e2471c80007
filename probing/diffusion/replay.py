"""Runs the network again on a recorded trajectory, to read places that the sampling pass left out.

A denoising step is a pure function of the latent that entered it, the prompt and the step, so what any
module gives there can be had later without sampling again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probing.diffusion.capture import checked
from probing.diffusion.hooks import record
from probing.diffusion.model import LatentDiffusion
from probing.diffusion.sampling import initial_noise, schedule
from probing.diffusion.sites import SiteSpec

Write = Callable[[str, np.ndarray], None]
"""(site, float16 (n, tokens, channels)) -> None"""


def entering(model: LatentDiffusion, seeds: Sequence[int], steps: int) -> Tensor:
    """The latents (n, C, h, w) that enter step 1: each seed's noise at the schedule's first sigma."""
    return initial_noise(model, seeds) * schedule(model, steps).init_noise_sigma


@torch.inference_mode()
def replay_unet(
    model: LatentDiffusion,
    told: Mapping[str, Any],
    latents: Tensor,
    step: int,
    steps: int,
    sites: Sequence[SiteSpec],
    write: Write,
) -> None:
    """Hands on what UNet sites give at one step, for the conditional half alone.

    told: what `conditions` gives for the prompts, unguided. latents: (n, C, h, w) that enter the step.
    Raises NonFiniteActivation naming site and step.
    """
    scheduler = schedule(model, steps)
    time = scheduler.timesteps[step - 1]
    batch = scheduler.scale_model_input(latents.to(model.device), time).to(model.unet.dtype)

    def sink(site: SiteSpec, output: Tensor) -> None:
        write(site.name, checked(site.name, step, output.half().cpu().numpy()))

    mixed = torch.autocast(model.device.type, model.autocast, enabled=model.autocast is not None)
    with record(model.unet, sites, sink), mixed:
        model.unet(batch, time.to(model.device), **told)


@torch.inference_mode()
def replay_vae(model: LatentDiffusion, latents: Tensor, step: int, site: SiteSpec, write: Write) -> None:
    """Hands on what the VAE decoder's self-attention gives for raw latents (n, C, h, w) after a step.

    As in section 4.2: the noisy latent as it is, only divided by the latent scale. The decoder runs as far
    as its mid block. Raises NonFiniteActivation naming site and step.
    """
    vae = model.vae
    raw = latents.to(model.device, vae.dtype) / vae.config["scaling_factor"]

    def sink(_: SiteSpec, output: Tensor) -> None:
        write(site.name, checked(site.name, step, output.half().cpu().numpy()))

    if vae.post_quant_conv is not None:
        raw = vae.post_quant_conv(raw)
    with record(vae, [site], sink):
        vae.decoder.mid_block(vae.decoder.conv_in(raw))
