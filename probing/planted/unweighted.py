"""Published models and labellers with random weights, for measurements of speed; nothing is read from a hub.

Architecture and sizes are those of the configuration files that the package holds. What they paint is noise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probing.diffusion import published, sampling
from probing.diffusion.config import ModelConfig
from probing.diffusion.families.base import LatentDiffusion
from probing.diffusion.model import assemble
from probing.diffusion.parts.reading import components, read_index, read_json
from probing.diffusion.schedules import LMS
from probing.labelling import midas, tracer
from probing.labelling.efficientnet import ARMS
from probing.labelling.images import ImageLabeller
from probing.libraries import quiet_libraries
from probing.scenes import text

STABLE_DIFFUSION = "CompVis/stable-diffusion-v1-4"
XL = "stabilityai/stable-diffusion-xl-base-1.0"
PIXART = "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"
STATES: dict[str, Any] = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "num_layers": 1}
"""of PixArt's text encoder, of which one layer of 24 is built: it runs once for an image"""
TEXT = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VAE = {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4}
NARROW: dict[str, dict[str, dict[str, Any]]] = {
    STABLE_DIFFUSION: {
        "unet": {"sample_size": 8, "block_out_channels": [16, 16, 32, 32], "attention_head_dim": 4,
                 "cross_attention_dim": 24, "norm_num_groups": 8},
        "vae": VAE, "text_encoder": TEXT,
    },
    XL: {
        "unet": {"sample_size": 8, "block_out_channels": [16, 32, 32], "transformer_layers_per_block": [1, 1, 2],
                 "attention_head_dim": [2, 4, 4], "cross_attention_dim": 24 + 32, "addition_time_embed_dim": 8,
                 "norm_num_groups": 8, "projection_class_embeddings_input_dim": 32 + 6 * 8},
        "vae": VAE, "text_encoder": TEXT | {"projection_dim": 24},
        "text_encoder_2": TEXT | {"hidden_size": 32, "projection_dim": 32},
    },
    PIXART: {
        "transformer": {"num_layers": 3, "num_attention_heads": 3, "attention_head_dim": 8, "cross_attention_dim": 24,
                        "caption_channels": 40, "sample_size": 16, "interpolation_scale": 1},
        "vae": VAE,
        "text_encoder": {"d_model": 40, "d_kv": 8, "d_ff": 80, "num_heads": 2},
    },
}  # fmt: skip
"""fields of the configuration files that make a narrow network of the same architecture, for a rehearsal on a CPU"""


def build(
    name: str,
    device: torch.device,
    *,
    dtype: str = "float32",
    autocast: str = "",
    sampler: str = LMS,
    narrow: bool = False,
) -> LatentDiffusion:
    """A published model, one of NARROW, built on its device with random weights.

    Its tokenizer is that of the scenes grammar, padded to the length of the model's own.
    """
    folder = published.folder(name)
    assert folder is not None
    index, family = read_index(folder)
    torch.manual_seed(0)
    loaded = {}
    with quiet_libraries(), torch.device(device):
        for part, (library, kind) in components(index, family).items():
            if part.startswith("tokenizer"):
                loaded[part] = text.build_tokenizer()
                loaded[part].model_max_length = 77
                continue
            values = _configuration(folder, part) | (NARROW[name].get(part, {}) if narrow else {})
            network = _network(library, kind, values)
            # autoencoders marked so (XL's) overflow in float16
            own = torch.float32 if values.get("force_upcast") else getattr(torch, dtype)
            loaded[part] = network.to(own).eval().requires_grad_(False)
    config = ModelConfig(name=name, device=str(device), dtype=dtype, autocast=autocast)
    return assemble(folder, loaded, config, device, sampler)


def _configuration(folder: Path, part: str) -> dict[str, Any]:
    """A part's configuration file, without what is no field."""
    if part == "text_encoder" and not (folder / part / "config.json").exists():
        return dict(STATES)
    values = read_json(folder, f"{part}/config.json")
    return {name: value for name, value in values.items() if not name.startswith("_")}


def _network(library: str, kind: str, values: Mapping[str, Any]) -> Any:
    import diffusers
    import transformers

    if library == "diffusers":
        return getattr(diffusers, kind).from_config(dict(values))
    network: Any = getattr(transformers, kind)
    return network(network.config_class(**values))


def diffusers_pipeline(model: LatentDiffusion) -> Any:
    """diffusers' own pipeline around the same networks, with the same sampler."""
    import diffusers

    scheduler = sampling.schedule(model, 1)
    if model.pipeline is not None:
        own = type(model.pipeline)
        parts = dict(model.pipeline.components) | {"scheduler": scheduler, model.family.network: model.network}
        pipeline = own(**parts)
    else:
        sd: Any = model  # the parts of a UNet's adapter
        suffixes = ("", "_2")[: len(sd.text)]
        parts = {f"text_encoder{s}": t.encoder for s, t in zip(suffixes, sd.text, strict=True)}
        parts |= {f"tokenizer{s}": t.tokenizer for s, t in zip(suffixes, sd.text, strict=True)}
        parts |= {"unet": sd.network, "vae": sd.vae, "scheduler": scheduler}
        if len(sd.text) == 2:
            parts |= {"force_zeros_for_empty_prompt": sd.empty_is_zero, "add_watermarker": False}
        else:
            parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = getattr(diffusers, model.family.pipelines[0])(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.inference_mode()
def sample_with_diffusers(
    pipeline: Any, model: LatentDiffusion, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float
) -> Tensor:
    """The same work as `sampling.sample` by diffusers' pipeline: images uint8 (n, H, W, 3) on the CPU.

    The pipeline's latents are decoded as ours are, because under autocast it would decode in half precision.
    """
    height, width = model.image_size
    more = {"use_resolution_binning": False} if model.family.name == "PixArt" else {}
    with sampling.autocast(model):
        latents = pipeline(
            list(prompts), num_inference_steps=steps, guidance_scale=guidance, height=height, width=width,
            generator=sampling.generators(seeds), output_type="latent", **more,
        ).images  # fmt: skip
    return model.decode(latents)


@contextlib.contextmanager
def plain_attention(network: Any) -> Iterator[None]:
    """Attention as matrix products, without torch's fused kernel."""
    from diffusers.models.attention_processor import AttnProcessor

    before = network.attn_processors
    network.set_attn_processor(AttnProcessor())
    try:
        yield
    finally:
        network.set_attn_processor(before)


def labellers(device: torch.device, narrow: bool = False) -> tuple[ImageLabeller, ImageLabeller]:
    """TRACER TE5 and MiDaS DPT-Large; `narrow`: TE0 on small images, and a narrow DPT."""
    from transformers import DPTForDepthEstimation

    torch.manual_seed(0)
    config = midas.large()
    if narrow:
        for name, value in {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
                            "num_attention_heads": 2, "backbone_out_indices": [0, 1, 2, 3],
                            "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}.items():  # fmt: skip
            setattr(config, name, value)
    with torch.device(device):
        arm = 0 if narrow else 5
        salient = tracer.Tracer(arm).eval().requires_grad_(False)
        depth = DPTForDepthEstimation(config).eval().requires_grad_(False)
    size = 64 if narrow else ARMS[arm].size
    return (
        ImageLabeller("random", lambda batch: tracer.saliency(salient, batch, size), device, np.uint8),
        ImageLabeller("random", lambda batch: midas.depth(depth, batch), device, np.float32),
    )
