"""The labelling network of the scenes world: depth and salient objects of an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probing.scenes.dataset import Renders
from probing.scenes.optimise import Loop, Schedule
from probing.scenes.vae import to_signed

DEPTH_MEAN, DEPTH_STD = 0.87, 0.52
"""mean and standard deviation of relative inverse depth over renders; the depth head predicts standardised depth"""
WIDTHS = (24, 48, 96, 160)
MIXERS = 4
"""transformer layers over the coarsest feature map"""


class Block(nn.Module):
    """Two convolutions with group norm and a residual path."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.one = nn.Conv2d(inner, outer, 3, stride, 1)
        self.two = nn.Conv2d(outer, outer, 3, 1, 1)
        self.norm_one, self.norm_two = nn.GroupNorm(8, outer), nn.GroupNorm(8, outer)
        same = inner == outer and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(inner, outer, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inner, h, w) to (n, outer, h / stride, w / stride)."""
        y = F.silu(self.norm_one(self.one(x)))
        return F.silu(self.skip(x) + self.norm_two(self.two(y)))


class Mixer(nn.Module):
    """One transformer layer over all positions, so that every pixel's depth can depend on the horizon."""

    def __init__(self, width: int, positions: int) -> None:
        super().__init__()
        self.places = nn.Parameter(0.02 * torch.randn(1, positions, width))
        self.layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, h, w), unchanged in shape."""
        flat = self.layer(x.flatten(2).transpose(1, 2) + self.places)
        return flat.transpose(1, 2).reshape(x.shape)


class Teacher(nn.Module):
    """A U-shaped network with two heads."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d = WIDTHS
        self.fine = nn.Conv2d(3, 8, 3, 1, 1)
        self.down = nn.ModuleList([Block(3, a, 2), Block(a, b, 2), Block(b, c, 2), Block(c, d, 2)])
        self.mix = nn.Sequential(*(Mixer(d, 64) for _ in range(MIXERS)))
        self.up = nn.ModuleList([Block(d + c, c), Block(c + b, b), Block(b + a, a)])
        self.last = nn.Sequential(nn.Conv2d(a + 8, 16, 1), nn.SiLU(), nn.Conv2d(16, 2, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (n, 3, 128, 128) in -1..1 to standardised depth and mask logits, each (n, H, W)."""
        skips, x = [], images
        for layer in self.down:
            x = layer(x)
            skips.append(x)
        x = self.mix(skips.pop())
        for layer, skip in zip(self.up, reversed(skips), strict=True):
            x = layer(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], 1))
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        depth, mask = self.last(torch.cat([x, F.silu(self.fine(images))], 1)).unbind(1)
        return depth, mask


@dataclass(frozen=True)
class Labels:
    """True labels of a batch."""

    depth: Tensor
    """(n, H, W), standardised"""
    mask: Tensor
    """(n, H, W) in 0..1"""


def _blur(images: Tensor, sigma: float) -> Tensor:
    reach = torch.arange(-3, 4, device=images.device).float()
    kernel = torch.exp(-0.5 * (reach / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, 7).expand(3, 1, 1, 7)
    padded = F.pad(images, (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def roughen(images: Tensor, generator: torch.Generator) -> Tensor:
    """Degrade images (n, 3, H, W) as generated images are: blur, noise, shifted brightness."""
    device = images.device
    draw = torch.rand(4, generator=generator, device=device).tolist()
    if draw[0] < 0.5:
        half = len(images) // 2
        images = torch.cat([_blur(images[:half], 0.4 + 1.2 * draw[1]), images[half:]])
    scale = 0.06 * torch.rand(len(images), 1, 1, 1, generator=generator, device=device)
    tint = 0.04 * torch.randn(len(images), 3, 1, 1, generator=generator, device=device)
    noise = torch.randn(images.shape, generator=generator, device=device)
    return (images + scale * noise + tint).clamp(-1, 1)


def teacher_loss(model: Teacher, images: Tensor, truth: Labels) -> Tensor:
    """Depth: L1, squared and edge errors; mask: cross-entropy and soft Dice."""
    depth, mask = model(images)
    error = depth - truth.depth
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    depth_loss = error.abs().mean() + error.square().mean() + 0.5 * edges
    share = mask.sigmoid()
    overlap = (share * truth.mask).sum((1, 2)) * 2 + 1
    dice = 1 - (overlap / (share.sum((1, 2)) + truth.mask.sum((1, 2)) + 1)).mean()
    mask_loss = F.binary_cross_entropy_with_logits(mask, truth.mask) + 0.5 * dice
    return depth_loss + mask_loss


def train(
    renders: Renders,
    decoded: np.ndarray,
    folder: Path,
    schedule: Schedule,
    progress: Callable[[str], None],
    batch: int = 16,
    seed: int = 3,
    start: dict[str, Tensor] | None = None,
    device: str = "cpu",
) -> Teacher:
    """Train on renders; `decoded` (n, H, W, 3) are the autoencoder's versions of the first of them."""
    torch.manual_seed(seed)
    model = Teacher().to(device)  # not channels-last: its backward pass crashes in torch 2.13 on CPU
    pixels, reconstructed = (torch.from_numpy(images).to(device) for images in (renders.images, decoded))
    depths, masks = (torch.from_numpy(labels).to(device) for labels in (renders.depths, renders.masks))
    if start:
        model.load_state_dict(start)
    loop = Loop(model, schedule, folder, seed)
    loop.resume()

    def loss(step: int, generator: torch.Generator) -> Tensor:
        plain = torch.randint(len(pixels), (batch - batch // 3,), generator=generator, device=device)
        degraded = torch.randint(len(reconstructed), (batch // 3,), generator=generator, device=device)
        which = torch.cat([plain, degraded])
        truth = Labels((depths[which].float() - DEPTH_MEAN) / DEPTH_STD, masks[which].float() / 255)
        order = torch.randperm(batch, generator=generator, device=device)
        images = to_signed(torch.cat([pixels[plain], reconstructed[degraded]]))
        if torch.rand(1, generator=generator, device=device) < 0.5:
            images, truth = images.flip(-1), Labels(truth.depth.flip(-1), truth.mask.flip(-1))
        truth = Labels(truth.depth[order], truth.mask[order])
        images = roughen(images[order].contiguous(), generator)
        return teacher_loss(model, images, truth)

    loop.run(loss, progress)
    model.load_state_dict(loop.averaged)
    return model.eval()


@torch.inference_mode()
def label(model: Teacher, images: np.ndarray, batch: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Label uint8 images (N, H, W, 3): relative inverse depth and mask probability, float32 (N, H, W)."""
    device = next(model.parameters()).device
    batches = [images[first : first + batch] for first in range(0, len(images), batch)]
    parts = [model(to_signed(some).contiguous().to(device)) for some in batches]
    depth, mask = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return (depth * DEPTH_STD + DEPTH_MEAN).numpy(), mask.sigmoid().numpy()


@dataclass(frozen=True)
class Quality:
    """Scores of labels against the renderer's truth."""

    dice: float
    """mean over images, mask threshold 0.5"""
    rmse: float
    """mean over images of the root mean squared error of standardised depth"""


def quality(model: Teacher, images: np.ndarray, renders: Renders) -> Quality:
    """Score the labels of `images` (N, H, W, 3), which show the scenes of `renders`."""
    depth, mask = label(model, images)
    predicted, true = mask > 0.5, renders.masks >= 128
    dice = 2 * (predicted & true).sum((1, 2)) / np.maximum(predicted.sum((1, 2)) + true.sum((1, 2)), 1)
    error = (depth - renders.depths.astype(np.float32)) / renders.depths.astype(np.float32).std()
    return Quality(float(dice.mean()), float(np.sqrt(np.square(error).mean((1, 2))).mean()))
