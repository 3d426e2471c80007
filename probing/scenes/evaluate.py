"""Measures the scenes model and its world, and writes the model card with a contact sheet."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from PIL import Image, ImageFilter
from torch import Tensor, nn

from probing.diffusion.families.base import LatentDiffusion
from probing.diffusion.sampling import sample
from probing.scenes import teacher, vae
from probing.scenes.dataset import Renders
from probing.scenes.grammar import PALETTE
from probing.scenes.render import draw_scene
from probing.scenes.teacher import Teacher
from probing.scenes.world import CARD_SEED

PROMPTS = 100
"""fixed prompts of the images that are compared with their captions"""
WHITE_SATURATION = 60
"""saturation, of 255, below which a pixel is white (or grey, which is white in shadow)"""
LEAST_AREA, LEAST_SHARE = 0.008, 0.06
"""a colour counts if it covers this share of the image, and this share of the object mask"""
ENTROPY_IMAGES = 16
"""images that the entropy of self-attention is measured on"""
_HUE_NAMES = [name for name in PALETTE if name != "white"]
HUES = np.array([colorsys.rgb_to_hsv(*PALETTE[name])[0] * 255 for name in _HUE_NAMES])
"""hue of each named colour, 0..255"""
PATCH = 7
"""side in pixels of the shortcut network's input"""


@dataclass(frozen=True)
class World:
    """How much of the labels can be predicted from local cues."""

    mean_map_explains: float
    """share of depth variance that the mean depth map explains"""
    base_rate: float
    """share of pixels that objects cover"""
    shortcut_explains: float
    """share of depth variance that a small network explains from position, colour and a 7 x 7 patch"""
    shortcut_dice: float
    """Dice of the same network on object masks"""


@dataclass(frozen=True)
class Denoising:
    """Measured quality of a denoiser of the scenes world."""

    captions_right: int
    """images of the fixed prompts whose object colours are those of the caption"""
    entropy: tuple[float, float, float]
    """least, median and most over the self-attentions, at the last step: 1 is uniform attention"""


@dataclass(frozen=True)
class Card:
    """Measured quality of the shipped weights."""

    denoising: Denoising
    psnr: float
    """dB, mean over held-out renders that went through the autoencoder"""
    clean: teacher.Quality
    """labels of held-out renders"""
    decoded: teacher.Quality
    """the same after a round trip through the autoencoder"""
    judge_right: float
    """share of held-out renders, after a round trip, for which the same test finds the true colours"""
    world: World


def fixed_prompts() -> tuple[list[str], list[tuple[str, ...]]]:
    """The fixed prompts and the colours of their objects."""
    scenes = [draw_scene(CARD_SEED + i) for i in range(PROMPTS)]
    return [scene.caption for scene in scenes], [scene.colours for scene in scenes]


def generate(model: LatentDiffusion, prompts: Sequence[str], guidance: float, batch: int = 25) -> np.ndarray:
    """Generate one image per prompt, with seeds 0, 1, ...: uint8 (n, H, W, 3)."""
    images = []
    for first in range(0, len(prompts), batch):
        chunk = list(prompts[first : first + batch])
        seeds = range(first, first + len(chunk))
        images.append(sample(model, chunk, list(seeds), guidance=guidance).images.numpy())
    return np.concatenate(images)


def attention_entropy(model: LatentDiffusion, prompts: Sequence[str], guidance: float, steps: int = 15) -> np.ndarray:
    """Entropy of each self-attention at the last step, as a share of the largest possible: float64 (sites,).

    The mean over tokens, heads and the conditional halves of one image per prompt, with seeds 0, 1, ...
    """
    paths = [site.module.removesuffix(".to_out.0") for site in model.sites()]
    modules = [cast(Attention, model.network.get_submodule(path)) for path in paths]
    entropies = np.zeros(len(modules))

    def measure_at(place: int) -> Callable[..., None]:
        def hook(attention: Attention, inputs: tuple[Tensor, ...]) -> None:
            tokens = inputs[0][-len(prompts) :].float()
            query, key = (attention.head_to_batch_dim(part(tokens)) for part in (attention.to_q, attention.to_k))
            shares = attention.get_attention_scores(query, key)
            entropy = -(shares * shares.clamp_min(1e-12).log()).sum(-1).mean()
            entropies[place] = float(entropy) / math.log(shares.shape[-1])

        return hook

    @contextmanager
    def around(step: int) -> Iterator[None]:
        hooks = [m.register_forward_pre_hook(measure_at(i)) for i, m in enumerate(modules) if step == steps]
        try:
            yield
        finally:
            for handle in hooks:
                handle.remove()

    seeds = list(range(len(prompts)))
    sample(model, prompts, seeds, steps=steps, guidance=guidance, around=around, decode=False)
    return entropies


def seen_colours(mask: np.ndarray, image: np.ndarray) -> frozenset[str]:
    """Names of the object colours of one image: hues that cover enough of its object mask.

    mask: bool (H, W); image: uint8 (H, W, 3). The rim of the mask is left out: it mixes colours.
    """
    core = np.asarray(Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.MinFilter(3))) > 127
    pixels = image[core]
    if not len(pixels):
        return frozenset()
    hue, saturation, _ = np.asarray(Image.fromarray(pixels[None]).convert("HSV"))[0].astype(float).T
    nearest = np.abs((hue[:, None] - HUES[None] + 128) % 256 - 128).argmin(1)
    names = np.where(saturation < WHITE_SATURATION, "white", np.array(list(_HUE_NAMES))[nearest])
    colours, counts = np.unique(names, return_counts=True)
    return frozenset(colours[counts >= max(LEAST_AREA * mask.size, LEAST_SHARE * len(pixels))].tolist())


def judged_right(network: Teacher, images: np.ndarray, colours: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Whether each image's set of object colours, and with it their number, is exactly that of its caption: (n,)."""
    _, masks = teacher.label(network, images)
    seen = [seen_colours(mask > 0.5, image) for mask, image in zip(masks, images, strict=True)]
    return np.array([names == frozenset(target) for names, target in zip(seen, colours, strict=True)])


def _patches(renders: Renders, samples: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random pixels: features (n, 2 + 3 * 49), depth (n,), mask (n,)."""
    rng = np.random.default_rng(seed)
    count, height, width = renders.depths.shape
    reach = PATCH // 2
    padded = np.pad(renders.images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (PATCH, PATCH), axis=(1, 2))
    i, r, c = rng.integers(count, size=samples), rng.integers(height, size=samples), rng.integers(width, size=samples)
    pixels = windows[i, r, c].reshape(samples, -1) / 127.5 - 1
    position = np.stack([r / height * 2 - 1, c / width * 2 - 1], 1)
    features = np.concatenate([position, pixels], 1).astype(np.float32)
    depth = renders.depths[i, r, c].astype(np.float32)
    mask = (renders.masks[i, r, c] >= 128).astype(np.float32)
    return torch.from_numpy(features), torch.from_numpy(depth), torch.from_numpy(mask)


def shortcut(train: Renders, test: Renders, samples: int = 200_000, epochs: int = 6) -> tuple[float, float]:
    """(explained depth variance, Dice) of a network whose input is a position, its colour and a patch around it."""
    torch.manual_seed(0)
    x, depth, mask = _patches(train, samples, 0)
    mean, std = depth.mean(), depth.std()
    network = nn.Sequential(nn.Linear(x.shape[1], 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(epochs):
        for part in torch.randperm(samples).split(512):
            guess = network(x[part])
            loss = (guess[:, 0] - (depth[part] - mean) / std).square().mean()
            loss = loss + nn.functional.binary_cross_entropy_with_logits(guess[:, 1], mask[part])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return _shortcut_scores(network, test, samples, float(mean), float(std))


@torch.inference_mode()
def _shortcut_scores(network: nn.Module, test: Renders, samples: int, mean: float, std: float) -> tuple[float, float]:
    x, depth, mask = _patches(test, samples, 1)
    guess = network(x)
    error = guess[:, 0] * std + mean - depth
    explained = 1 - float(error.square().mean() / depth.var())
    probability = guess[:, 1].sigmoid()
    # the best of several thresholds, because the world passes if this Dice is low
    masks = [probability > threshold for threshold in np.linspace(0.1, 0.7, 13)]
    return explained, max(float(2 * (chosen * mask).sum() / (chosen.sum() + mask.sum())) for chosen in masks)


def world(train: Renders, test: Renders) -> World:
    """Statistics of the world over renders."""
    depth = test.depths.astype(np.float32)
    explained = 1 - np.square(depth - train.depths.astype(np.float32).mean(0)).mean() / depth.var()
    return World(float(explained), float((test.masks >= 128).mean()), *shortcut(train, test))


def measure_denoiser(model: LatentDiffusion, network: Teacher, guidance: float) -> tuple[Denoising, np.ndarray]:
    """How a model denoises, and its images of the fixed prompts."""
    prompts, colours = fixed_prompts()
    images = generate(model, prompts, guidance)
    entropy = attention_entropy(model, prompts[:ENTROPY_IMAGES], guidance)
    shares = (float(entropy.min()), float(np.median(entropy)), float(entropy.max()))
    return Denoising(int(judged_right(network, images, colours).sum()), shares), images


def measure(
    model: LatentDiffusion, network: Teacher, train: Renders, test: Renders, guidance: float
) -> tuple[Card, np.ndarray]:
    """All numbers of the card, and the images of the fixed prompts."""
    images = vae.decode(model.vae, vae.encode(model.vae, test.images))
    error = np.square(images.astype(np.float64) - test.images).mean((1, 2, 3))
    denoising, generated = measure_denoiser(model, network, guidance)
    true_colours = [tuple(row.split()) for row in test.colours]
    card = Card(
        denoising=denoising,
        psnr=float(np.mean(10 * np.log10(255**2 / np.maximum(error, 1e-9)))),
        clean=teacher.quality(network, test.images, test),
        decoded=teacher.quality(network, images, test),
        judge_right=float(judged_right(network, images, true_colours).mean()),
        world=world(train, test),
    )
    return card, generated


def contact_sheet(images: np.ndarray, columns: int = 10) -> Image.Image:
    """All images on one sheet."""
    rows = [np.concatenate(list(images[i : i + columns]), 1) for i in range(0, len(images), columns)]
    return Image.fromarray(np.concatenate(rows, 0))


def write_card(folder: Path, template: str, images: np.ndarray, values: Mapping[str, object]) -> None:
    """Write contact.jpg, and CARD.md from a template beside this module and its values."""
    contact_sheet(images).save(folder / "contact.jpg", quality=85)
    text = (files("probing.scenes") / template).read_text()
    (folder / "CARD.md").write_text(text.format(**values))


def values(denoising: Denoising) -> dict[str, object]:
    """What both cards say of a denoiser."""
    entropy = ", ".join(f"{share:.2f}" for share in denoising.entropy)
    return {"captions_right": denoising.captions_right, "entropy": entropy, "colours": ", ".join(PALETTE)}
