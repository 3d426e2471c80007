"""The autoencoder of the scenes model: 128 x 128 RGB to 16 x 16 x 4 latents and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from probing.scenes.dataset import Renders
from probing.scenes.optimise import Loop, Schedule

LATENT_NOISE = 0.05
"""standard deviation of the noise on training latents; it keeps the latent space smooth"""


def build(channels: Sequence[int] = (24, 48, 64, 64)) -> AutoencoderKL:
    """An autoencoder with random weights. With more than 4 norm groups it does not learn colours."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=128,
    ).to(memory_format=torch.channels_last)


def to_signed(images: np.ndarray | Tensor) -> Tensor:
    """uint8 (n, H, W, 3) to float32 (n, 3, H, W) in -1..1."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def _crops(images: Tensor, count: int, size: int, generator: torch.Generator) -> Tensor:
    device = generator.device
    which = torch.randint(len(images), (count,), generator=generator, device=device).tolist()
    high = images.shape[1] - size + 1
    corners = torch.randint(high, (count, 2), generator=generator, device=device).tolist()
    crops = [images[i, r : r + size, c : c + size] for i, (r, c) in zip(which, corners, strict=True)]
    return to_signed(torch.stack(crops)).contiguous(memory_format=torch.channels_last)


def _edges(images: Tensor) -> tuple[Tensor, Tensor]:
    return images.diff(dim=-1), images.diff(dim=-2)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 and squared error on pixels, L1 on their differences.

    Without the squared error, training stalls for hundreds of steps at the median colour.
    """
    sharp = sum(l1_loss(a, b) for a, b in zip(_edges(output), _edges(target), strict=True))
    return l1_loss(output, target) + mse_loss(output, target) + 0.5 * sharp


def train(
    renders: Renders,
    folder: Path,
    schedule: Schedule,
    progress: Callable[[str], None],
    batch: int = 12,
    seed: int = 1,
    device: str = "cpu",
) -> AutoencoderKL:
    """Train on `batch` random crops for 80 % of the steps, then on whole images, 5 for every 12 crops."""
    torch.manual_seed(seed)
    model = build().to(device)  # type: ignore[arg-type]  # diffusers wraps `to`, which hides its `self`
    images = torch.from_numpy(renders.images).to(device)
    loop = Loop(model, schedule, folder, seed)
    loop.resume()

    def loss(step: int, generator: torch.Generator) -> Tensor:
        full_size = step >= 0.8 * schedule.steps
        x = _crops(images, max(1, batch * 5 // 12) if full_size else batch, 128 if full_size else 64, generator)
        mode = model.encode(x).latent_dist.mode()
        noise = LATENT_NOISE * torch.randn(mode.shape, generator=generator, device=device)
        output = model.decode(mode + noise).sample
        return reconstruction_loss(output, x) + 1e-4 * mode.square().mean()

    loop.run(loss, progress)
    model.load_state_dict(loop.averaged)
    return model.eval()


@torch.inference_mode()
def encode(model: AutoencoderKL, images: np.ndarray, batch: int = 50) -> Tensor:
    """Modes of the posterior of images (N, H, W, 3): float32 (N, 4, h, w) on the CPU, not scaled."""
    # converted a part at a time: in float32 all of them take four times the memory
    parts = (to_signed(images[i : i + batch]).to(model.device) for i in range(0, len(images), batch))
    return torch.cat([model.encode(part).latent_dist.mode().cpu() for part in parts])


@torch.inference_mode()
def decode(model: AutoencoderKL, latents: Tensor, batch: int = 50) -> np.ndarray:
    """Decode latents (N, 4, h, w) that are not scaled to uint8 images (N, H, W, 3)."""
    parts = [model.decode(latents[i : i + batch].to(model.device)).sample.cpu() for i in range(0, len(latents), batch)]
    images = torch.cat(parts).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return images.permute(0, 2, 3, 1).contiguous().numpy()


@torch.no_grad()
def calibrate(model: AutoencoderKL, latents: Tensor) -> None:
    """Fold a shift and scale into the 1 x 1 convolutions around the latent.

    Afterwards each channel of `latents` (N, 4, h, w, modes of training images) has mean 0 and standard deviation
    1 / scaling_factor, as with Stable Diffusion, and the posterior's standard deviation is the training noise.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    unit = std * model.config["scaling_factor"]
    count = len(mean)
    before, after = model.quant_conv, model.post_quant_conv
    assert before is not None
    assert before.bias is not None
    assert after is not None
    assert after.bias is not None
    before.weight[:count] /= unit[:, None, None, None]
    before.bias[:count] = (before.bias[:count] - mean) / unit
    before.weight[count:] = 0
    before.bias[count:] = 2 * torch.log(LATENT_NOISE / unit)
    after.bias += (after.weight[:, :, 0, 0] @ mean[:, None])[:, 0]
    after.weight *= unit[None, :, None, None]
