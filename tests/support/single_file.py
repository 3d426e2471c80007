"""A Stable Diffusion pipeline of diffusers in the layout of a single file, as the first releases named its tensors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _places(unet: Any) -> dict[str, str]:
    """Path of each part of a UNet's blocks -> its path in the file."""
    found = {
        "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2", "conv_norm_out": "out.0", "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }  # fmt: skip
    for side, blocks, number in (("input", unet.down_blocks, 1), ("output", unet.up_blocks, 0)):
        name = "down_blocks" if side == "input" else "up_blocks"
        for i, block in enumerate(blocks):
            attentions = getattr(block, "attentions", ())
            for j in range(len(block.resnets)):
                found[f"{name}.{i}.resnets.{j}"] = f"{side}_blocks.{number}.0"
                if attentions:
                    found[f"{name}.{i}.attentions.{j}"] = f"{side}_blocks.{number}.1"
                number += 1
            if side == "input" and block.downsamplers:
                found[f"{name}.{i}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
                number += 1
            if side == "output" and block.upsamplers:
                place = 2 if attentions else 1
                found[f"{name}.{i}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{place}.conv"
    return found


def _renamed(name: str, places: dict[str, str]) -> str:
    old = max((path for path in places if name.startswith(f"{path}.")), key=len)
    rest = name.removeprefix(f"{old}.")
    part, _, last = rest.rpartition(".")
    return f"{places[old]}.{RESNET[part] + '.' + last if '.resnets.' in name else rest}"


def _vae(name: str, levels: int) -> str:
    for ours, theirs in ATTENTION.items():
        name = name.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{theirs}.")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    return name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def save(pipeline: Any, path: Path) -> Path:
    """Write the weights of a pipeline with one CLIP text encoder to one file."""
    places = _places(pipeline.unet)
    tensors = {f"model.diffusion_model.{_renamed(k, places)}": v for k, v in pipeline.unet.state_dict().items()}
    levels = len(pipeline.vae.config.block_out_channels)
    for key, value in pipeline.vae.state_dict().items():
        name = _vae(key, levels)
        tensors[f"first_stage_model.{name}"] = (
            value[:, :, None, None] if "attn_1" in name and value.ndim == 2 else value
        )
    for key, value in pipeline.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path
