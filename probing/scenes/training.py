"""Trains the scenes model from random weights: renders, autoencoder, denoiser, labelling network, card."""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import nn

from probing.scenes import dataset, teacher, text, vae
from probing.scenes.denoisers import diffusion
from probing.scenes.optimise import Schedule

Progress = Callable[[str], None]
AUTOENCODER_RENDERS = 20_000
"""limit on the scenes that the autoencoder is trained on; each gives many crops"""
GUIDANCE = 3.0
"""guidance scale of the card's images and of the preset; chosen on prompts of the validation split"""


@dataclass(frozen=True)
class TrainingConfig:
    """Sizes of the training; the defaults suit two CPU cores and an afternoon."""

    renders: int = 16_000
    """training scenes"""
    held_out: int = 1_000
    """scenes that quality is measured on"""
    decoded: int = 3_000
    """renders that the labelling network is also trained on after a round trip through the autoencoder"""
    batch: int = 32
    """latents in a step of the UNet"""
    transformer_batch: int = 16
    """latents in a step of the transformer"""
    crops: int = 12
    """64 x 64 crops in an autoencoder step"""
    labelled: int = 16
    """images in a step of the labelling network"""
    autoencoder: Schedule = field(default_factory=lambda: Schedule(steps=3600, average=0.995))
    denoiser: Schedule = field(default_factory=lambda: Schedule(steps=2600, rate=1e-3, average=0.999, floor=0.05))
    transformer: Schedule = field(default_factory=lambda: Schedule(steps=3000, rate=8e-4, average=0.998))
    labeller: Schedule = field(default_factory=lambda: Schedule(steps=1800, rate=2e-3, average=0.997))
    attention: float = 0.0
    """share of the denoiser's learning rate for queries and keys of self-attention; 0 keeps them as they start"""
    workers: int = 2
    """processes that render"""
    device: str = "cpu"
    """torch device of the networks"""
    compiled: bool = False
    """whether the transformer's operations are fused by a compiler, which takes two fifths off a step on CPU"""
    seed: int = 1
    """seed of the first network; the others follow"""


def on_gpu() -> TrainingConfig:
    """Sizes for one large GPU and 16 CPU cores: hours, nearly all of them for the denoiser.

    For a network this narrow, launching kernels is the bottleneck on such a GPU: larger batches cost little more.
    """
    return TrainingConfig(
        renders=52_000,
        decoded=12_000,
        batch=1024,
        transformer_batch=512,
        crops=96,
        labelled=64,
        autoencoder=Schedule(steps=6000, average=0.999),
        denoiser=Schedule(steps=20_000, rate=1.5e-3, average=0.9995, floor=0.02),
        transformer=Schedule(steps=20_000, rate=1e-3, average=0.9995),
        labeller=Schedule(steps=9_500, rate=2e-3, average=0.999),
        workers=os.cpu_count() or 2,
        device="cuda",
    )


def named(progress: Progress, name: str) -> Progress:
    return lambda line: progress(f"{name}: {line}")


def start_from(folder: Path, weights: Path, focus: bool = False, seed: int = TrainingConfig.seed) -> None:
    """Prepare a training folder to continue from finished weights, such as those that ship.

    The autoencoder is copied unchanged, so that the latent space stays the same; the denoiser and the labelling
    network start at the given weights with a new optimiser. `focus` first resets the queries and keys of
    self-attention to those of a training from random weights (`diffusion.focus_attention`). Files that the folder
    already contains are not replaced. Raises ValueError if a pipeline part does not have one weights file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = diffusion.Denoiser()
    parts: dict[str, nn.Module] = {"text_encoder": network.text_encoder, "unet": network.unet}
    for name, part in parts.items():
        part.load_state_dict(load_single(weights / "pipeline" / name))
    if focus:
        diffusion.focus_attention(network.unet, seed)
    starts = {
        "vae.safetensors": load_single(weights / "pipeline" / "vae"),
        "denoiser.start.safetensors": network.state_dict(),
        "labeller.start.safetensors": load_file(weights / "labeller.safetensors"),
    }
    for name, tensors in starts.items():
        if not (folder / name).exists():
            save_file({k: v.float().contiguous() for k, v in tensors.items()}, folder / name)


def load_single(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a pipeline part, in float32. Raises ValueError if it does not have one safetensors file."""
    paths = sorted(folder.glob("*.safetensors"))
    if len(paths) != 1:
        raise ValueError(f"{folder}: expected one safetensors file, found {len(paths)}")
    return {k: v.float() for k, v in load_file(paths[0]).items()}


def load_start(folder: Path, name: str) -> dict[str, torch.Tensor] | None:
    """The weights that `start_from` prepared for a network; None if there are none."""
    path = folder / f"{name}.start.safetensors"
    return load_file(path) if path.exists() else None


Network = TypeVar("Network", bound=nn.Module)


def _loaded(network: Network, path: Path) -> Network:
    network.load_state_dict(load_file(path))
    return network.eval()


def train_autoencoder(folder: Path, config: TrainingConfig, progress: Progress) -> AutoencoderKL:
    """The calibrated autoencoder, from its finished file if there is one."""
    finished = folder / "vae.safetensors"
    if finished.exists():
        return _loaded(vae.build(), finished)
    renders = dataset.load(folder / "renders", "train", min(config.renders, AUTOENCODER_RENDERS))
    log = named(progress, "autoencoder")
    model = vae.train(renders, folder / "vae", config.autoencoder, log, config.crops, config.seed, config.device).cpu()
    vae.calibrate(model, vae.encode(model, renders.images[:500]))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, finished)
    return model


def encode_renders(folder: Path, model: AutoencoderKL, config: TrainingConfig, progress: Progress) -> torch.Tensor:
    """Scaled latents (N, 4, h, w) of all training renders."""
    finished = folder / "latents.safetensors"
    if finished.exists():
        return load_file(finished)["latents"]
    progress(f"latents: encoding {config.renders} renders")
    renders = dataset.load(folder / "renders", "train", config.renders)
    # diffusers wraps `to`, which hides its `self`
    on_device = model.to(config.device)  # type: ignore[arg-type]
    latents = vae.encode(on_device, renders.images) * model.config["scaling_factor"]
    save_file({"latents": latents.contiguous()}, finished)
    return latents


def decode_renders(folder: Path, model: AutoencoderKL, config: TrainingConfig, progress: Progress) -> np.ndarray:
    """The autoencoder's version of the first renders, uint8 (n, H, W, 3)."""
    finished = folder / "decoded.npy"
    if not finished.exists():
        progress(f"decoded: {config.decoded} renders through the autoencoder")
        latents = encode_renders(folder, model, config, progress)[: config.decoded]
        # diffusers wraps `to`, which hides its `self`
        on_device = model.to(config.device)  # type: ignore[arg-type]
        np.save(finished, vae.decode(on_device, latents / model.config["scaling_factor"]))
    return np.load(finished)


def train_labeller(folder: Path, model: AutoencoderKL, config: TrainingConfig, progress: Progress) -> teacher.Teacher:
    """The labelling network, from its finished file if there is one."""
    finished = folder / "labeller.safetensors"
    if finished.exists():
        return _loaded(teacher.Teacher(), finished)
    decoded = decode_renders(folder, model, config, progress)
    renders = dataset.load(folder / "renders", "train", config.renders)
    network = teacher.train(
        renders,
        decoded,
        folder / "labeller",
        config.labeller,
        named(progress, "labeller"),
        batch=config.labelled,
        seed=config.seed + 2,
        start=load_start(folder, "labeller"),
        device=config.device,
    )
    save_file(network.state_dict(), finished)
    return network


def train_denoiser(
    folder: Path, model: AutoencoderKL, config: TrainingConfig, progress: Progress
) -> diffusion.Denoiser:
    """Text encoder and UNet with averaged weights."""
    finished = folder / "denoiser.safetensors"
    if finished.exists():
        return _loaded(diffusion.Denoiser(), finished)
    latents = encode_renders(folder, model, config, progress)
    captions = dataset.load_captions(folder / "renders", "train", config.renders)
    network = diffusion.train(
        latents,
        captions,
        folder / "denoiser",
        config.denoiser,
        named(progress, "denoiser"),
        batch=config.batch,
        seed=config.seed + 1,
        start=load_start(folder, "denoiser"),
        device=config.device,
        attention=config.attention,
    )
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, finished)
    return network


def save_pipeline(target: Path, model: AutoencoderKL, network: diffusion.Denoiser) -> None:
    """Write an fp16 StableDiffusionPipeline directory, atomically."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model, network = copy.deepcopy(model).cpu().half(), copy.deepcopy(network).cpu().half()
    # the pipeline's annotations allow neither None nor fast tokenizers nor this scheduler class
    pipeline = StableDiffusionPipeline(
        vae=model,
        text_encoder=network.text_encoder,
        tokenizer=text.build_tokenizer(),  # type: ignore[arg-type]
        unet=network.unet,
        scheduler=diffusion.build_scheduler(),  # type: ignore[arg-type]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(partial, safe_serialization=True)
    index = partial / "model_index.json"
    entries = json.loads(index.read_text())
    entries["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
    index.write_text(json.dumps(entries, indent=2) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def save_labeller(target: Path, network: teacher.Teacher) -> None:
    """Write the labelling network as fp16 safetensors."""
    save_file({k: v.half().contiguous() for k, v in network.state_dict().items()}, target)


def attention_words(share: float) -> str:
    """What became of queries and keys of self-attention in a training, for its card."""
    if not share:
        return "are not trained"
    return "learn as all weights do" if share == 1 else f"learn at {share:g} times the learning rate"


def describe(folder: Path, config: TrainingConfig) -> dict[str, object]:
    """Values of the model card's paragraph on how the weights in a training folder were made."""
    history = json.loads((folder / "denoiser" / "checkpoint.json").read_text())
    steps, loss = history[-1] if history else (0, float("nan"))
    return {
        "config": config,
        "channels": ", ".join(map(str, diffusion.CHANNELS)),
        "snr_limit": diffusion.SNR_LIMIT,
        "least_weight": diffusion.LEAST_WEIGHT,
        "visited": diffusion.VISITED,
        "shift": diffusion.SHIFT,
        "attention": attention_words(config.attention),
        "steps": steps,
        "loss": loss,
        "device": "CPU" if config.device == "cpu" else "one GPU",
    }


def write_card(folder: Path, target: Path, config: TrainingConfig, guidance: float = GUIDANCE) -> None:
    """Measure the finished weights as they ship, and write their card."""
    from probing.diffusion import model
    from probing.diffusion.config import ModelConfig
    from probing.scenes import evaluate, weights

    pipeline = model.load(ModelConfig(name=str(target / "pipeline"), device="cpu"))
    labeller, _ = weights.load_labeller(target / "labeller.safetensors")
    train = dataset.load(folder / "renders", "train", min(2000, config.renders))
    test = dataset.load(folder / "renders", "held_out", min(250, config.held_out))
    card, images = evaluate.measure(pipeline, labeller, train, test, guidance)
    measured = {**asdict(card), **evaluate.values(card.denoising), "guidance": guidance}
    evaluate.write_card(target, "card.md", images, {**measured, **describe(folder, config)})


def make_renders(folder: Path, config: TrainingConfig, progress: Progress) -> None:
    """Render the training and held-out scenes that are missing in a training folder."""
    for split, count in (("held_out", config.held_out), ("train", config.renders)):
        dataset.make(
            folder / "renders",
            split,
            count,
            config.workers,
            lambda done, total: progress(f"renders: part {done} of {total}"),
        )


def run(folder: Path, target: Path, config: TrainingConfig, progress: Progress) -> None:
    """Train what is not finished yet in `folder`, and write the weights and their card to `target`."""
    started = time.monotonic()
    make_renders(folder, config, progress)
    model = train_autoencoder(folder, config, progress)
    network = train_labeller(folder, model, config, progress)
    denoiser = train_denoiser(folder, model, config, progress)
    target.mkdir(parents=True, exist_ok=True)
    save_pipeline(target / "pipeline", model, denoiser)
    save_labeller(target / "labeller.safetensors", network)
    write_card(folder, target, config)
    progress(f"done: weights in {target} after {(time.monotonic() - started) / 60:.0f} min")
