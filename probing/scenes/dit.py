"""Trains the `scenes-dit` model on latents of the shipped autoencoder: renders, transformer, card."""

from __future__ import annotations

import copy
import json
import shutil
import time
from pathlib import Path

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from probing.scenes import dataset, training, weights
from probing.scenes.denoisers import transformer
from probing.scenes.training import Progress, TrainingConfig

SHARED = ("vae", "text_encoder", "tokenizer")
"""parts of the pipeline of `scenes` that this model uses as they are"""
GUIDANCE = 3.0
"""guidance scale of the card's images and of the preset; chosen on prompts of the validation split"""


def train(folder: Path, config: TrainingConfig, progress: Progress) -> PixArtTransformer2DModel:
    """The transformer with averaged weights, from its finished file if there is one."""
    finished = folder / "transformer.safetensors"
    if finished.exists():
        network = transformer.build()
        network.load_state_dict(load_file(finished))
        return network.eval()
    pipeline = weights.folder() / "pipeline"
    autoencoder = AutoencoderKL.from_pretrained(pipeline / "vae", dtype=torch.float32).eval()
    encoder = CLIPTextModel.from_pretrained(pipeline / "text_encoder", dtype=torch.float32)
    latents = training.encode_renders(folder, autoencoder, config, progress)
    captions = dataset.load_captions(folder / "renders", "train", config.renders)
    network = transformer.train(
        latents,
        captions,
        encoder,
        folder / "transformer",
        config.transformer,
        training.named(progress, "transformer"),
        batch=config.transformer_batch,
        seed=config.seed + 1,
        device=config.device,
        compiled=config.compiled,
    )
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, finished)
    return network


def save_pipeline(target: Path, network: PixArtTransformer2DModel) -> None:
    """Write a PixArtSigmaPipeline directory with an fp16 transformer, atomically; the other parts are copied."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part in SHARED:
        shutil.copytree(weights.folder() / "pipeline" / part, partial / part)
    copy.deepcopy(network).cpu().half().save_pretrained(partial / "transformer")
    transformer.build_scheduler().save_pretrained(partial / "scheduler")
    index = {
        "_class_name": "PixArtSigmaPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (partial / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def describe(folder: Path, config: TrainingConfig) -> dict[str, object]:
    """Values of the model card's paragraph on how the weights in a training folder were made."""
    checkpoint = folder / "transformer" / "checkpoint.safetensors"
    history = json.loads(checkpoint.with_suffix(".json").read_text())
    steps, loss = history[-1] if history else (0, float("nan"))
    with safe_open(checkpoint, "pt") as file:
        seconds = float(file.get_tensor("seconds"))
    return {
        "config": config,
        "seed": config.seed + 1,
        "width": transformer.WIDTH,
        "layers": transformer.LAYERS,
        "heads": transformer.HEADS,
        "shift": transformer.SHIFT,
        "steps": steps,
        "images": steps * config.transformer_batch,
        "minutes": seconds / 60,
        "loss": loss,
        "device": "CPU" if config.device == "cpu" else "one GPU",
    }


def write_card(folder: Path, target: Path, config: TrainingConfig, guidance: float = GUIDANCE) -> None:
    """Measure the finished weights as they ship, and write their card."""
    from probing.diffusion import model
    from probing.diffusion.config import ModelConfig
    from probing.scenes import evaluate

    pipeline = model.load(ModelConfig(name=str(target), device="cpu"), sampler="own")
    labeller, _ = weights.load_labeller()
    measured, images = evaluate.measure_denoiser(pipeline, labeller, guidance)
    values = {**evaluate.values(measured), "guidance": guidance, **describe(folder, config)}
    evaluate.write_card(target, "card-dit.md", images, values)


def run(folder: Path, target: Path, config: TrainingConfig, progress: Progress) -> None:
    """Train what is not finished yet in `folder`, and write the pipeline and its card to `target`/dit."""
    started = time.monotonic()
    training.make_renders(folder, config, progress)
    network = train(folder, config, progress)
    target.mkdir(parents=True, exist_ok=True)
    save_pipeline(target / "dit", network)
    write_card(folder, target / "dit", config)
    progress(f"done: weights in {target / 'dit'} after {(time.monotonic() - started) / 60:.0f} min")
