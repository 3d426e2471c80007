"""The modules of TRACER (Lee, Shin and Han 2022) other than its encoder: edges, receptive fields, attention.

Attribute names are those of the official state dict. Shapes: (B, C, H, W); all in float32 or wider.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RADIUS = 16
"""frequencies below this are removed before edges are extracted"""
CONFIDENCE = 0.1
"""share of channels, those with the least attention, that the union attention drops"""
DENOISE = 0.93
"""background above this certainty is masked in the object attention"""

BRANCHES = {"DWConv1": (1, 0, 1), "DWConv2": (3, 1, 1), "DWConv3": (3, 3, 3), "DWConv4": (3, 5, 5)}
"""kernel, padding and dilation of the four parallel depthwise convolutions"""


class ConvNorm(nn.Module):
    """Convolution, batch norm, SELU."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], dilation: int = 1) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (dilation * (sides[0] // 2), dilation * (sides[1] // 2))
        self.conv = nn.Conv2d(inputs, outputs, sides, padding=padding, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.selu(self.bn(self.conv(x)))


class Depthwise(nn.Module):
    """Depthwise convolution, batch norm, SELU."""

    def __init__(self, channels: int, kernel: int, padding: int, dilation: int) -> None:
        super().__init__()
        self.DWConv = nn.Conv2d(channels, channels, kernel, 1, padding, dilation, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.selu(self.bn(self.DWConv(x)))


class Separable(nn.Module):
    """Depthwise 3 x 3, then 1 x 1 convolution, each with batch norm and SELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.DWConv = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.bn = nn.BatchNorm2d(inputs)
        self.PWConv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.selu(self.bn2(self.PWConv(F.selu(self.bn(self.DWConv(x))))))


def add_branches(module: nn.Module, channels: int) -> None:
    """Add the four branches to a module, each with a quarter of the channels as output."""
    for name, shape in BRANCHES.items():
        branch = nn.Sequential(Depthwise(channels, *shape), ConvNorm(channels, channels // 4, 1))
        module.add_module(name, branch)


def branch_out(module: nn.Module, x: Tensor) -> Tensor:
    """The outputs of the four branches, concatenated and added to their input."""
    return torch.cat([module.get_submodule(name)(x) for name in BRANCHES], 1) + x


class UnionAttention(nn.Module):
    """Attention over channels and, if `spatial`, over rows of the channels with the most attention."""

    def __init__(self, channels: int, spatial: bool) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.norm = nn.Sequential(nn.BatchNorm2d(channels))
        for name in ("channel_q", "channel_k", "channel_v"):
            self.add_module(name, nn.Conv2d(channels, channels, 1, bias=False))
        self.fc = nn.Conv2d(channels, channels, 1, bias=False)
        for name in ("spatial_q", "spatial_k", "spatial_v") if spatial else ():
            self.add_module(name, nn.Conv2d(channels, 1, 1, bias=False))

    def trace(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) with weighted channels, and the gates (B, C, 1, 1)."""
        pooled = self.norm(x.mean((2, 3), keepdim=True))
        q, k, v = (self.get_submodule(f"channel_{n}")(pooled).squeeze(-1) for n in "qkv")
        attended = torch.softmax(q @ k.mT, -1) @ v
        gates = torch.sigmoid(self.fc(attended.unsqueeze(-1)))
        return x * gates + x, gates

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 1, H, W) of (B, C, H, W)."""
        strengthened, gates = self.trace(x)
        least = torch.quantile(gates, CONFIDENCE, dim=1, keepdim=True)
        kept = self.bn(strengthened) * torch.where(gates > least, gates, 0.0)
        q, k, v = (self.get_submodule(f"spatial_{n}")(kept) for n in "qkv")
        return torch.softmax(q @ k.mT, -1) @ v + v


def high_frequencies(x: Tensor, radius: int) -> Tensor:
    """Modulus of x without the frequencies below `radius`."""
    rows, columns = (torch.arange(n, device=x.device) - x.shape[2] / 2 for n in x.shape[2:])
    keep = rows.square()[:, None] + columns.square() >= radius**2
    return torch.fft.ifft2(torch.fft.fft2(x) * torch.fft.ifftshift(keep)).abs()


class EdgeModule(nn.Module):
    """Masked edge attention: adds edges, extracted from high frequencies, to every channel."""

    def __init__(self, channels: int, radius: int = RADIUS) -> None:
        super().__init__()
        self.radius = radius
        self.UAM = UnionAttention(channels, spatial=False)
        self.DWSConv = Separable(channels, channels)
        add_branches(self, channels)
        self.conv = ConvNorm(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        traced, _ = self.UAM.trace(high_frequencies(x, self.radius))
        return x + F.relu(self.conv(branch_out(self, self.DWSConv(traced))))


class ReceptiveField(nn.Module):
    """Four branches with growing receptive fields, and a 1 x 1 shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.branch0 = nn.Sequential(ConvNorm(inputs, outputs, 1))
        for number, reach in enumerate((3, 5, 7), start=1):
            branch = nn.Sequential(
                ConvNorm(inputs, outputs, 1),
                ConvNorm(outputs, outputs, (1, reach)),
                ConvNorm(outputs, outputs, (reach, 1)),
                ConvNorm(outputs, outputs, 3, dilation=reach),
            )
            self.add_module(f"branch{number}", branch)
        self.conv_cat = ConvNorm(4 * outputs, outputs, 3)
        self.conv_res = ConvNorm(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = torch.cat([self.get_submodule(f"branch{n}")(x) for n in range(4)], 1)
        return F.relu(self.conv_cat(branches) + self.conv_res(x))


def double(x: Tensor) -> Tensor:
    """Linear interpolation to twice the size with aligned corners, as the decoder uses it."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class Aggregation(nn.Module):
    """Combines the three receptive fields from coarse to fine, with attention over the result."""

    def __init__(self, fine: int, middle: int, coarse: int) -> None:
        super().__init__()
        both, every = middle + coarse, fine + middle + coarse
        self.conv_upsample1 = ConvNorm(coarse, middle, 3)
        self.conv_upsample2 = ConvNorm(coarse, fine, 3)
        self.conv_upsample3 = ConvNorm(middle, fine, 3)
        self.conv_upsample4 = ConvNorm(coarse, coarse, 3)
        self.conv_upsample5 = ConvNorm(both, both, 3)
        self.conv_concat2 = ConvNorm(both, both, 3)
        self.conv_concat3 = ConvNorm(every, every, 3)
        self.UAM = UnionAttention(every, spatial=True)

    def forward(self, coarse: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
        """Logits (B, 1, H, W) at stride 8 of maps at strides 32, 16 and 8."""
        raised = double(coarse)
        at_fine = self.conv_upsample2(double(raised)) * self.conv_upsample3(double(middle)) * fine
        at_middle = self.conv_upsample1(raised) * middle
        joined = self.conv_concat2(torch.cat([at_middle, self.conv_upsample4(raised)], 1))
        every = torch.cat([at_fine, self.conv_upsample5(double(joined))], 1)
        return self.UAM(self.conv_concat3(every))


class ObjectAttention(nn.Module):
    """Refines a coarse map with encoder features of its objects and uncertain background."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.DWSConv = Separable(channels, channels // 2)
        add_branches(self, channels // 2)
        self.conv1 = ConvNorm(channels // 2, 1, 1)

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        """Logits (B, 1, H, W), refined with features (B, C, H, W)."""
        objects = torch.sigmoid(logits)
        background = 1 - objects
        uncertain = torch.where(background > DENOISE, 0.0, background)
        x = self.DWSConv((objects + uncertain) * features)
        return F.relu(self.conv1(branch_out(self, x))) + logits
