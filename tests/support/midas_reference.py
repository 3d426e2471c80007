"""MiDaS DPT-Large by functions on its official state dict, without transformers: names, shapes, forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DPTConfig

from support.labelling_reference import random_state

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Size:
    """The numbers of a DPT."""

    width: int = 1024
    heads: int = 16
    blocks: int = 24
    hooks: tuple[int, ...] = (5, 11, 17, 23)
    stages: tuple[int, ...] = (256, 512, 1024, 1024)
    fusion: int = 256


LARGE = Size()
NARROW = Size(width=32, heads=2, blocks=5, hooks=(0, 1, 3, 4), stages=(8, 12, 16, 20), fusion=16)


def _layer(name: str, *weight: int) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": (weight[0],)}


def shapes(size: Size) -> Shapes:
    """Every name and shape of the official file."""
    w, vit = size.width, "pretrained.model"
    found: Shapes = {f"{vit}.cls_token": (1, 1, w), f"{vit}.pos_embed": (1, 1 + 24 * 24, w)}
    found |= _layer(f"{vit}.patch_embed.proj", w, 3, 16, 16)
    for number in range(size.blocks):
        block = f"{vit}.blocks.{number}"
        found |= {f"{block}.{n}.{v}": (w,) for n in ("norm1", "norm2") for v in ("weight", "bias")}
        found |= _layer(f"{block}.attn.qkv", 3 * w, w) | _layer(f"{block}.attn.proj", w, w)
        found |= _layer(f"{block}.mlp.fc1", 4 * w, w) | _layer(f"{block}.mlp.fc2", w, 4 * w)
    found |= {f"{vit}.norm.weight": (w,), f"{vit}.norm.bias": (w,)} | _layer(f"{vit}.head", 1000, w)
    for number, channels in enumerate(size.stages, start=1):
        found |= _layer(f"pretrained.act_postprocess{number}.0.project.0", w, 2 * w)
        found |= _layer(f"pretrained.act_postprocess{number}.3", channels, w, 1, 1)
        kernel = {1: 4, 2: 2, 4: 3}.get(number)
        if kernel:
            found |= _layer(f"pretrained.act_postprocess{number}.4", channels, channels, kernel, kernel)
        found[f"scratch.layer{number}_rn.weight"] = (size.fusion, channels, 3, 3)
        refine = f"scratch.refinenet{number}"
        found |= _layer(f"{refine}.out_conv", size.fusion, size.fusion, 1, 1)
        for unit in ("resConfUnit1", "resConfUnit2"):
            for conv in ("conv1", "conv2"):
                found |= _layer(f"{refine}.{unit}.{conv}", size.fusion, size.fusion, 3, 3)
    found |= _layer("scratch.output_conv.0", size.fusion // 2, size.fusion, 3, 3)
    found |= _layer("scratch.output_conv.2", 32, size.fusion // 2, 3, 3)
    return found | _layer("scratch.output_conv.4", 1, 32, 1, 1)


class Forward:
    """The network as functions of a state dict."""

    def __init__(self, state: dict[str, Tensor], size: Size) -> None:
        self.state, self.size = state, size

    def two(self, name: str) -> tuple[Tensor, Tensor]:
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        weight, bias = self.two(name)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        return F.conv2d(x, *self.two(name), stride=stride, padding=padding)

    def tokens(self, x: Tensor) -> Tensor:
        patches = self.conv(x, "pretrained.model.patch_embed.proj", stride=16)
        place = self.state["pretrained.model.pos_embed"]
        grid = place[:, 1:].unflatten(1, (24, 24)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=patches.shape[2:], mode="bilinear", align_corners=False)
        first = self.state["pretrained.model.cls_token"] + place[:, :1]
        rest = (patches + grid).flatten(2).mT
        return torch.cat([first.expand(len(x), -1, -1), rest], 1)

    def attention(self, x: Tensor, name: str) -> Tensor:
        q, k, v = F.linear(x, *self.two(f"{name}.qkv")).unflatten(2, (3, self.size.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)
        return F.linear((weights @ v).transpose(1, 2).flatten(2), *self.two(f"{name}.proj"))

    def block(self, x: Tensor, name: str) -> Tensor:
        x = x + self.attention(self.norm(x, f"{name}.norm1"), f"{name}.attn")
        hidden = F.gelu(F.linear(self.norm(x, f"{name}.norm2"), *self.two(f"{name}.mlp.fc1")))
        return x + F.linear(hidden, *self.two(f"{name}.mlp.fc2"))

    def stage(self, x: Tensor, number: int, grid: tuple[int, int]) -> Tensor:
        name = f"pretrained.act_postprocess{number}"
        both = torch.cat([x[:, 1:], x[:, :1].expand_as(x[:, 1:])], -1)
        read = F.gelu(F.linear(both, *self.two(f"{name}.0.project.0")))
        maps = self.conv(read.mT.unflatten(2, grid), f"{name}.3")
        if number in (1, 2):
            maps = F.conv_transpose2d(maps, *self.two(f"{name}.4"), stride=4 if number == 1 else 2)
        if number == 4:
            maps = self.conv(maps, f"{name}.4", stride=2, padding=1)
        return F.conv2d(maps, self.state[f"scratch.layer{number}_rn.weight"], padding=1)

    def unit(self, x: Tensor, name: str) -> Tensor:
        inner = self.conv(F.relu(x), f"{name}.conv1", padding=1)
        return x + self.conv(F.relu(inner), f"{name}.conv2", padding=1)

    def double(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)

    def __call__(self, x: Tensor) -> Tensor:
        """Inverse depth (B, h, w) of transformed images (B, 3, h, w)."""
        grid = (x.shape[2] // 16, x.shape[3] // 16)
        y, hooked = self.tokens(x), []
        for number in range(self.size.blocks):
            y = self.block(y, f"pretrained.model.blocks.{number}")
            if number in self.size.hooks:
                hooked.append(y)
        path = None
        for number in (4, 3, 2, 1):
            maps, name = self.stage(hooked[number - 1], number, grid), f"scratch.refinenet{number}"
            joined = maps if path is None else path + self.unit(maps, f"{name}.resConfUnit1")
            path = self.conv(self.double(self.unit(joined, f"{name}.resConfUnit2")), f"{name}.out_conv")
        head = self.double(self.conv(path, "scratch.output_conv.0", padding=1))
        head = F.relu(self.conv(head, "scratch.output_conv.2", padding=1))
        return F.relu(self.conv(head, "scratch.output_conv.4"))[:, 0]


def narrow(**changes) -> DPTConfig:
    return DPTConfig(
        hidden_size=NARROW.width,
        intermediate_size=4 * NARROW.width,
        num_hidden_layers=NARROW.blocks,
        num_attention_heads=NARROW.heads,
        backbone_out_indices=list(NARROW.hooks),
        neck_hidden_sizes=list(NARROW.stages),
        fusion_hidden_size=NARROW.fusion,
        layer_norm_eps=1e-6,
        **changes,
    )


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    tensors = random_state(shapes(NARROW), seed)
    tensors["scratch.output_conv.4.bias"] += 2  # otherwise the last ReLU sets everything to zero
    return tensors
