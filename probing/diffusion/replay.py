"""Runs the network again on a recorded trajectory, to read sites that the sampling pass did not record.

A network call is a pure function of the latent that entered it, the prompt and the step, so the output of any module
can be computed later without sampling again.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from probing.diffusion.capture import checked
from probing.diffusion.families.base import Conditions, LatentDiffusion
from probing.diffusion.hooks import Sink, record
from probing.diffusion.sampling import autocast, scaled_input, schedule
from probing.diffusion.sites import SiteSpec

Write = Callable[[str, np.ndarray], None]
"""(site, float16 (n, tokens, channels)) -> None"""


def _writing(write: Write, step: int) -> Sink:
    return lambda site, output: write(site.name, checked(site.name, step, output.half().cpu().numpy()))


@torch.inference_mode()
def replay_network(
    model: LatentDiffusion,
    conditioning: Conditions,
    latents: Tensor,
    step: int,
    steps: int,
    sites: tuple[SiteSpec, ...],
    write: Write,
) -> None:
    """Write the outputs of the network's sites at one step, for the conditional half alone.

    conditioning: `model.conditions(prompts, guidance, conditional_only=True)`. latents: (n, C, h, w) that enter the
    step. steps: of sampling. Raises NonFiniteActivation naming site and step.
    """
    scheduler = schedule(model, steps)
    # a call may share its time with another one, so that the time alone does not tell which it is
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(step - 1)
    time = scheduler.timesteps[step - 1]
    with record(model.network, sites, _writing(write, step)), autocast(model):
        model.predict(scaled_input(scheduler, latents.to(model.device), time), time, conditioning)


@torch.inference_mode()
def replay_vae(model: LatentDiffusion, latents: Tensor, step: int, site: SiteSpec, write: Write) -> None:
    """Write the output of the VAE decoder's self-attention for the latents (n, C, h, w) after a step.

    As in section 4.2, the noisy latents are decoded as they are, with only the autoencoder's own scale undone. The
    decoder runs up to its mid block. Raises NonFiniteActivation naming site and step.
    """
    vae = model.vae
    raw = model.unscaled(latents.to(model.device))
    if vae.post_quant_conv is not None:
        raw = vae.post_quant_conv(raw)
    with record(vae, (site,), _writing(write, step)):
        vae.decoder.mid_block(vae.decoder.conv_in(raw))
