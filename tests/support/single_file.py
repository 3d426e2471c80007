"""A Stable Diffusion pipeline of diffusers in the layout of a single file, as the first releases named its tensors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
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
        "mid_block.resnets.1": "middle_block.2", "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
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


OPEN_CLIP = {
    "encoder.layers.": "transformer.resblocks.", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "fc1": "c_fc",
    "fc2": "c_proj", "self_attn": "attn", "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding", "final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
}  # fmt: skip


def _open_clip(encoder: Any) -> dict[str, torch.Tensor]:
    """XL's second text encoder: queries, keys and values are one tensor, and the projection is transposed."""
    found: dict[str, torch.Tensor] = {}
    values = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    for key, value in values.items():
        name = key
        for ours, theirs in OPEN_CLIP.items():
            name = name.replace(ours, theirs)
        if ".q_proj." in key:
            parts = [values[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            found[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
        elif ".k_proj." not in key and ".v_proj." not in key:
            found[name] = value.T if name == "text_projection" else value
    return found


def save(pipeline: Any, path: Path) -> Path:
    """Write the weights of a pipeline to one file: one text encoder as in 1.x, or two as in XL."""
    second = getattr(pipeline, "text_encoder_2", None)
    first = "conditioner.embedders.0" if second else "cond_stage_model"
    places = _places(pipeline.unet)
    tensors = {f"model.diffusion_model.{_renamed(k, places)}": v for k, v in pipeline.unet.state_dict().items()}
    levels = len(pipeline.vae.config.block_out_channels)
    for key, value in pipeline.vae.state_dict().items():
        name = _vae(key, levels)
        tensors[f"first_stage_model.{name}"] = (
            value[:, :, None, None] if "attn_1" in name and value.ndim == 2 else value
        )
    for key, value in pipeline.text_encoder.state_dict().items():
        tensors[f"{first}.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    if second:
        tensors |= {f"conditioner.embedders.1.model.{name}": value for name, value in _open_clip(second).items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path
