"""The transformer of the `scenes-dit` model (PixArt's, small) and its training by flow matching.

Self-attention is the only operation that mixes places. Nothing but the diffusion loss shapes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from transformers import CLIPTextModel

from probing.scenes import text
from probing.scenes.denoisers.captioned import Captioned, spread
from probing.scenes.denoisers.speed import COMPILED, EAGER, Training, faster
from probing.scenes.optimise import Loop, Schedule

WIDTH, LAYERS, HEADS = 192, 8, 4
TIMES = 1000
"""the network's time is this often the share of noise"""
SHIFT = 0.5
"""noise levels are drawn with a median sigma / alpha of this: less than the 1 of evenly spread times, because an object
covers few pixels of a latent of 16 x 16, so that it is soon lost in noise"""


def build() -> PixArtTransformer2DModel:
    """A transformer over the 256 places of a latent, with random weights as in DiT (Peebles and Xie, 2023).

    The branches of a block begin near zero, and so does the output.
    """
    network = PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=4,
        out_channels=4,
        num_layers=LAYERS,
        cross_attention_dim=128,
        sample_size=16,
        patch_size=1,
        interpolation_scale=1,
        use_additional_conditions=False,
    )
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    embedder = network.adaln_single.emb.timestep_embedder
    for layer in (embedder.linear_1, embedder.linear_2, network.adaln_single.linear):
        nn.init.normal_(layer.weight, std=0.02)
    for block in network.transformer_blocks:
        nn.init.zeros_(block.attn2.to_out[0].weight)
    nn.init.zeros_(network.proj_out.weight)
    return network


def build_scheduler() -> DPMSolverMultistepScheduler:
    """Flow matching, sampled with noise levels that are spread like those of the training."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=TIMES, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
    )


def flow_loss(
    network: Callable[..., Any], latents: Tensor, states: Tensor, mask: Tensor, generator: torch.Generator
) -> Tensor:
    """Squared error of the velocity from clean latents to noise, at shares of noise spread by SHIFT.

    latents: (n, 4, h, w), scaled; states, mask: (n, positions, width) and (n, positions) of the captions.
    """
    even = spread(len(latents), generator)
    share = SHIFT * even / (1 + (SHIFT - 1) * even)
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    weight = share[:, None, None, None]
    with torch.autocast(latents.device.type, torch.bfloat16):
        noisy = (1 - weight) * latents + weight * noise
        output = network(noisy, states, share * TIMES, encoder_attention_mask=mask).sample
    return mse_loss(output.float(), noise - latents)


class Velocity(nn.Module):
    """The transformer with tensors in and a tensor out, as CUDA graphs take it."""

    def __init__(self, network: PixArtTransformer2DModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, noisy: Tensor, states: Tensor, times: Tensor, mask: Tensor) -> Tensor:
        """Velocity (n, 4, h, w) of noisy latents at times (n,)."""
        return self.network(noisy, states, times, encoder_attention_mask=mask).sample


def prepare(
    latents: Tensor,
    captions: Sequence[str],
    encoder: CLIPTextModel,
    folder: Path,
    schedule: Schedule,
    batch: int = 16,
    seed: int = 2,
    start: dict[str, Tensor] | None = None,
    device: str = "cpu",
    way: str = EAGER,
) -> Training[PixArtTransformer2DModel]:
    """A training on scaled latents (N, 4, h, w), resumed from its checkpoint in `folder` if there is one.

    The text encoder stays as it is. start: weights to begin with, instead of random ones. way: one of `speed.WAYS`.
    """
    torch.manual_seed(seed)
    # the libraries wrap `to`, which hides its `self`
    network = build().to(device)  # type: ignore[arg-type]
    encoder = encoder.to(device).eval()  # type: ignore[arg-type]
    data = Captioned.of(latents, captions, device)
    if device == "cpu":
        # the fused kernel's backward pass is slow on CPU
        network.set_attn_processor(AttnProcessor())
    if start:
        network.load_state_dict(start)
    loop = Loop(network, schedule, folder, seed)
    loop.resume()

    def drawn(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Clean latents, states of their captions, and the mask of these."""
        clean, tokens = data.draw(batch, generator)
        mask = (tokens != text.PAD).long()
        with torch.no_grad():
            return clean, encoder(tokens, attention_mask=mask).last_hidden_state, mask

    def sample() -> tuple[Tensor, ...]:
        clean, states, mask = drawn(loop.generator(0))
        return clean, states, torch.full((batch,), TIMES / 2, device=clean.device), mask

    fast = faster(Velocity(network.train()), way, sample)

    def called(noisy: Tensor, states: Tensor, times: Tensor, encoder_attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=fast(noisy, states, times, encoder_attention_mask))

    def loss(step: int, generator: torch.Generator) -> Tensor:
        return flow_loss(called, *drawn(generator), generator)

    return Training(network, loop, loss)


def train(
    latents: Tensor,
    captions: Sequence[str],
    encoder: CLIPTextModel,
    folder: Path,
    schedule: Schedule,
    progress: Callable[[str], None],
    batch: int = 16,
    seed: int = 2,
    device: str = "cpu",
    compiled: bool = False,
) -> PixArtTransformer2DModel:
    """Train to the end of a schedule, see `prepare`; returns the averaged weights.

    compiled: fuse the network's operations, which needs a C++ compiler, and a minute at the start.
    """
    way = COMPILED if compiled else EAGER
    training = prepare(latents, captions, encoder, folder, schedule, batch, seed, None, device, way)
    training.loop.run(training.loss, progress)
    training.network.load_state_dict(training.loop.averaged)
    return training.network.eval()
