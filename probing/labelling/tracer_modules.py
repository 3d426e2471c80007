"""The modules of TRACER beside its encoder (Lee, Shin and Han 2022): edges, receptive fields, attention.

Attribute names are those of the official state dict. Shapes: (B, C, H, W); all in float32 or wider.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RADIUS = 16
"""frequencies nearer to zero than this are removed before edges are sought"""
CONFIDENCE = 0.1
"""the share of channels, the least attended, that the union attention drops"""
DENOISE = 0.93
"""background more certain than this is not looked at again"""

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
    """Gives a module the four branches, each from channels to a quarter of them."""
    for name, shape in BRANCHES.items():
        branch = nn.Sequential(Depthwise(channels, *shape), ConvNorm(channels, channels // 4, 1))
        module.add_module(name, branch)


def branch_out(module: nn.Module, x: Tensor) -> Tensor:
    """The four branches side by side, added to what they started from."""
    return torch.cat([module.get_submodule(name)(x) for name in BRANCHES], 1) + x


class UnionAttention(nn.Module):
    """Attention over channels and, where `spatial`, over rows of what the best channels show."""

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
        """x (B, C, H, W) with its channels strengthened, and the gates (B, C, 1, 1)."""
        pooled = self.norm(x.mean((2, 3), keepdim=True))
        q, k, v = (self.get_submodule(f"channel_{n}")(pooled).squeeze(-1) for n in "qkv")
        attended = torch.softmax(q @ k.mT, -1) @ v
        gates = torch.sigmoid(self.fc(attended.unsqueeze(-1)))
        return x * gates + x, gates

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, 1, H, W)."""
        strengthened, gates = self.trace(x)
        least = torch.quantile(gates, CONFIDENCE, dim=1, keepdim=True)
        kept = self.bn(strengthened) * torch.where(gates > least, gates, 0.0)
        q, k, v = (self.get_submodule(f"spatial_{n}")(kept) for n in "qkv")
        return torch.softmax(q @ k.mT, -1) @ v + v


def high_frequencies(x: Tensor, radius: int) -> Tensor:
    """Modulus of x without the frequencies nearer than radius to the middle of its spectrum."""
    rows, columns = (torch.arange(n, device=x.device) - x.shape[2] / 2 for n in x.shape[2:])
    keep = rows.square()[:, None] + columns.square() >= radius**2
    return torch.fft.ifft2(torch.fft.fft2(x) * torch.fft.ifftshift(keep)).abs()


class EdgeModule(nn.Module):
    """Masked edge attention: adds the edges found in high frequencies to every channel."""

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
    """Four branches of growing reach beside a 1 x 1 shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.branch0 = nn.Sequential(ConvNorm(inputs, outputs, 1))
        for number, reach in enumerate((3, 5, 7), start=1):
            across, down = ConvNorm(outputs, outputs, (1, reach)), ConvNorm(outputs, outputs, (reach, 1))
            spread = ConvNorm(outputs, outputs, 3, dilation=reach)
            branch = nn.Sequential(ConvNorm(inputs, outputs, 1), across, down, spread)
            self.add_module(f"branch{number}", branch)
        self.conv_cat = ConvNorm(4 * outputs, outputs, 3)
        self.conv_res = ConvNorm(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.cat([self.get_submodule(f"branch{n}")(x) for n in range(4)], 1)
        return F.relu(self.conv_cat(seen) + self.conv_res(x))


def double(x: Tensor) -> Tensor:
    """Twice the size, linear, corners aligned: the decoder's own way of enlarging."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class Aggregation(nn.Module):
    """Joins the three receptive fields from coarse to fine and attends to their union."""

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
        """Maps at strides 32, 16 and 8 to logits (B, 1, H, W) at stride 8."""
        raised = double(coarse)
        at_fine = self.conv_upsample2(double(raised)) * self.conv_upsample3(double(middle)) * fine
        at_middle = self.conv_upsample1(raised) * middle
        joined = self.conv_concat2(torch.cat([at_middle, self.conv_upsample4(raised)], 1))
        every = torch.cat([at_fine, self.conv_upsample5(double(joined))], 1)
        return self.UAM(self.conv_concat3(every))


class ObjectAttention(nn.Module):
    """Adds what the encoder's features show around a coarse map's object and its unsure background."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.DWSConv = Separable(channels, channels // 2)
        add_branches(self, channels // 2)
        self.conv1 = ConvNorm(channels // 2, 1, 1)

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        """logits (B, 1, H, W) refined by features (B, C, H, W)."""
        objects = torch.sigmoid(logits)
        background = 1 - objects
        unsure = torch.where(background > DENOISE, 0.0, background)
        x = self.DWSConv((objects + unsure) * features)
        return F.relu(self.conv1(branch_out(self, x))) + logits
