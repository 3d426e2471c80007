"""The encoder of TRACER: EfficientNet without head, with padding fixed for a nominal image size.

Attribute names are those of the official state dict. The padding of every convolution is that of
"same" at the arm's nominal resolution, for every image size: at 512 pixels the strided convolutions of blocks 13 and
27 of arm 5 are padded evenly, although "same" would pad only right and below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""repeats, kernel, stride, expansion and channels of each stage of arm 0 (Tan and Le 2019, table 1)"""

TAPPED = (1, 2, 4, 6)
"""stages whose last blocks are the encoder's outputs: strides 4, 8, 16, 32"""


@dataclass(frozen=True)
class Arm:
    """One of the eight sizes of the encoder."""

    width: float
    """factor of channels"""
    depth: float
    """factor of repeats"""
    nominal: int
    """image size in pixels that the padding is computed for"""
    size: int
    """image size in pixels at which TRACER runs"""


ARMS = (
    Arm(1.0, 1.0, 224, 320),
    Arm(1.0, 1.1, 240, 320),
    Arm(1.1, 1.2, 260, 352),
    Arm(1.2, 1.4, 300, 384),
    Arm(1.4, 1.8, 380, 448),
    Arm(1.6, 2.2, 456, 512),
    Arm(1.8, 2.6, 528, 576),
    Arm(2.0, 3.1, 600, 640),
)


@dataclass(frozen=True)
class BlockShape:
    """The hyperparameters of one inverted bottleneck block."""

    stage: int
    kernel: int
    stride: int
    expansion: int
    inputs: int
    outputs: int
    pad: tuple[int, int]
    """zeros before and after, in both directions"""


def channels(base: int, width: float) -> int:
    """Channels scaled by width, rounded to a multiple of 8, and at most 10 % lower."""
    scaled = base * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after that give ceil(size / stride) outputs; an odd one goes after."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def blocks(arm: Arm) -> list[BlockShape]:
    """All blocks of an arm in order."""
    shapes = []
    size, inputs = math.ceil(arm.nominal / 2), channels(32, arm.width)
    for stage, (repeats, kernel, first, expansion, base) in enumerate(STAGES):
        outputs = channels(base, arm.width)
        for repeat in range(math.ceil(repeats * arm.depth)):
            stride = 1 if repeat else first
            pad = same_padding(size, kernel, stride)
            shapes.append(BlockShape(stage, kernel, stride, expansion, inputs, outputs, pad))
            size, inputs = math.ceil(size / stride), outputs
    return shapes


def tapped_blocks(shapes: list[BlockShape]) -> list[int]:
    """Indices of the blocks whose outputs are the encoder's outputs."""
    return [max(i for i, shape in enumerate(shapes) if shape.stage == stage) for stage in TAPPED]


class MBConv(nn.Module):
    """Inverted bottleneck with squeeze and excitation (Tan and Le 2019)."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        wide, squeezed = shape.inputs * shape.expansion, max(1, shape.inputs // 4)
        before, after = shape.pad
        self.extra = after - before
        self.skips = shape.stride == 1 and shape.inputs == shape.outputs
        self.expands = shape.expansion > 1
        if self.expands:
            self._expand_conv = nn.Conv2d(shape.inputs, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = nn.Conv2d(wide, wide, shape.kernel, shape.stride, before, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._se_reduce = nn.Conv2d(wide, squeezed, 1)
        self._se_expand = nn.Conv2d(squeezed, wide, 1)
        self._project_conv = nn.Conv2d(wide, shape.outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(shape.outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        wide = F.silu(self._bn0(self._expand_conv(x))) if self.expands else x
        wide = F.silu(self._bn1(self._depthwise_conv(pad_after(wide, self.extra))))
        squeezed = self._se_reduce(wide.mean((2, 3), keepdim=True))
        wide = wide * torch.sigmoid(self._se_expand(F.silu(squeezed)))
        out = self._bn2(self._project_conv(wide))
        return out + x if self.skips else out


def pad_after(x: Tensor, extra: int) -> Tensor:
    """Zeros to the right and below, in addition to those that the convolution adds on every side."""
    return F.pad(x, (0, extra, 0, extra)) if extra else x


class Encoder(nn.Module):
    """EfficientNet whose first output passes an edge module before the later blocks."""

    def __init__(self, arm: Arm, edge: nn.Module) -> None:
        super().__init__()
        shapes = blocks(arm)
        stem = shapes[0].inputs
        self.taps = tapped_blocks(shapes)
        before, after = same_padding(arm.nominal, 3, 2)
        self.extra = after - before
        self._conv_stem = nn.Conv2d(3, stem, 3, 2, before, bias=False)
        self._bn0 = nn.BatchNorm2d(stem, eps=1e-3)
        self._blocks = nn.ModuleList(MBConv(shape) for shape in shapes)
        self.Frequency_Edge_Module1 = edge

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) to feature maps at strides 4, 8, 16 and 32."""
        x = F.silu(self._bn0(self._conv_stem(pad_after(images, self.extra))))
        outputs = []
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number == self.taps[0]:
                x = self.Frequency_Edge_Module1(x)
            if number in self.taps:
                outputs.append(x)
        return outputs
