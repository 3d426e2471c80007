"""Slow references for the labellers: numpy alone, one image at a time, written from the papers' facts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]
Named = Mapping[str, Array]
Shapes = dict[str, tuple[int, ...]]


class Part:
    """The tensors of one module: `part["conv"]` is the module inside, `part.weight` a tensor."""

    def __init__(self, state: Named, prefix: str = "") -> None:
        self.state, self.prefix = state, prefix

    def __getitem__(self, name: object) -> Part:
        return Part(self.state, f"{self.prefix}{name}.")

    def __contains__(self, name: str) -> bool:
        return any(key.startswith(f"{self.prefix}{name}.") for key in self.state)

    def __getattr__(self, name: str) -> Array:
        return self.state[f"{self.prefix}{name}"]


# --- arithmetic -------------------------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def swish(x: Array) -> Array:
    return x * sigmoid(x)


def selu(x: Array) -> Array:
    alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
    return scale * np.where(x > 0, x, alpha * (np.exp(np.minimum(x, 0)) - 1))


def softmax(x: Array) -> Array:
    raised = np.exp(x - x.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def conv(x: Array, weight: Array, pad: tuple[int, int, int, int] = (0, 0, 0, 0), stride: int = 1, dilation: int = 1):
    """x (C, H, W), weight (O, I, kh, kw), depthwise where I is 1 < C; pad: top, bottom, left, right."""
    padded = np.pad(x, ((0, 0), pad[:2], pad[2:]))
    reach = [dilation * (k - 1) for k in weight.shape[2:]]
    high, wide = ((n - r - 1) // stride + 1 for n, r in zip(padded.shape[1:], reach, strict=True))
    out = np.zeros((len(weight), high, wide))
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            top, left = i * dilation, j * dilation
            seen = padded[:, top : top + stride * high : stride, left : left + stride * wide : stride]
            seen = seen[:, :high, :wide]
            tap = weight[:, :, i, j]
            depthwise = weight.shape[1] == 1 and len(x) == len(weight)
            out += tap[:, 0, None, None] * seen if depthwise else np.tensordot(tap, seen, 1)
    return out


def norm(x: Array, part: Part, eps: float = 1e-5) -> Array:
    scale = part.weight / np.sqrt(part.running_var + eps)
    return (x - part.running_mean[:, None, None]) * scale[:, None, None] + part.bias[:, None, None]


def _taps(inputs: int, outputs: int, aligned: bool) -> Array:
    """Matrix (outputs, inputs) of linear interpolation."""
    matrix = np.zeros((outputs, inputs))
    for row in range(outputs):
        at = row * (inputs - 1) / (outputs - 1) if aligned else max((row + 0.5) * inputs / outputs - 0.5, 0)
        low = min(int(at), inputs - 1)
        matrix[row, low] += 1 - (at - low)
        matrix[row, min(low + 1, inputs - 1)] += at - low
    return matrix


def linear(x: Array, factor: int, aligned: bool = False) -> Array:
    """x (C, H, W) enlarged by an integer factor."""
    down, across = (_taps(n, n * factor, aligned) for n in x.shape[1:])
    return down @ x @ across.T


def cubic(x: Array, height: int, width: int) -> Array:
    """x (C, H, W) resized by the cubic kernel with a = -0.75, half-pixel centres, edges repeated, no antialias."""

    def kernel(d: float) -> float:
        d, a = abs(d), -0.75
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    def taps(inputs: int, outputs: int) -> Array:
        matrix = np.zeros((outputs, inputs))
        for row in range(outputs):
            at = (row + 0.5) * inputs / outputs - 0.5
            for near in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
                matrix[row, min(max(near, 0), inputs - 1)] += kernel(at - near)
        return matrix

    return taps(x.shape[1], height) @ x @ taps(x.shape[2], width).T


# --- TRACER -----------------------------------------------------------------------------------------


def basic(x: Array, part: Part, dilation: int = 1) -> Array:
    kh, kw = part["conv"].weight.shape[2:]
    down, across = dilation * (kh // 2), dilation * (kw // 2)
    return selu(norm(conv(x, part["conv"].weight, (down, down, across, across), 1, dilation), part["bn"]))


def separable(x: Array, part: Part) -> Array:
    x = selu(norm(conv(x, part["DWConv"].weight, (1, 1, 1, 1)), part["bn"]))
    return selu(norm(conv(x, part["PWConv"].weight), part["bn2"]))


def branches(x: Array, part: Part) -> Array:
    found = []
    for number, pad, dilation in ((1, 0, 1), (2, 1, 1), (3, 3, 3), (4, 5, 5)):
        inner = part[f"DWConv{number}"]
        wide = conv(x, inner[0]["DWConv"].weight, (pad,) * 4, 1, dilation)
        found.append(basic(selu(norm(wide, inner[0]["bn"])), inner[1]))
    return np.concatenate(found) + x


def trace(x: Array, part: Part) -> tuple[Array, Array]:
    pooled = norm(x.mean((1, 2), keepdims=True), part["norm"][0])[:, 0, 0]
    q, k, v = (part[f"channel_{n}"].weight[:, :, 0, 0] @ pooled for n in "qkv")
    gates = sigmoid(part["fc"].weight[:, :, 0, 0] @ (softmax(np.outer(q, k)) @ v))
    return x * gates[:, None, None] + x, gates


def union(x: Array, part: Part) -> Array:
    strengthened, gates = trace(x, part)
    kept = np.where(gates <= np.quantile(gates, 0.1), 0, gates)
    seen = norm(strengthened, part["bn"]) * kept[:, None, None]
    q, k, v = (np.tensordot(part[f"spatial_{n}"].weight[0, :, 0, 0], seen, 1) for n in "qkv")
    return (softmax(q @ k.T) @ v + v)[None]


def high_frequencies(x: Array) -> Array:
    spectrum = np.fft.fftshift(np.fft.fft2(x), axes=(1, 2))
    side = x.shape[1]
    for i in range(side):
        for j in range(x.shape[2]):
            if np.sqrt((i - side / 2) ** 2 + (j - side / 2) ** 2) < 16:
                spectrum[:, i, j] = 0
    return np.abs(np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(1, 2))))


def edges(x: Array, part: Part) -> Array:
    traced, _ = trace(high_frequencies(x), part["UAM"])
    return x + np.maximum(basic(branches(separable(traced, part["DWSConv"]), part), part["conv"]), 0)


def receptive_field(x: Array, part: Part) -> Array:
    found = [basic(x, part["branch0"][0])]
    for number, reach in ((1, 3), (2, 5), (3, 7)):
        branch = part[f"branch{number}"]
        y = basic(basic(basic(x, branch[0]), branch[1]), branch[2])
        found.append(basic(y, branch[3], reach))
    return np.maximum(basic(np.concatenate(found), part["conv_cat"]) + basic(x, part["conv_res"]), 0)


def aggregation(e4: Array, e3: Array, e2: Array, part: Part) -> Array:
    def up(x: Array) -> Array:
        return linear(x, 2, aligned=True)

    e3_joined = basic(up(e4), part["conv_upsample1"]) * e3
    e2_joined = basic(up(up(e4)), part["conv_upsample2"]) * basic(up(e3), part["conv_upsample3"]) * e2
    f3 = basic(np.concatenate([e3_joined, basic(up(e4), part["conv_upsample4"])]), part["conv_concat2"])
    f2 = basic(np.concatenate([e2_joined, basic(up(f3), part["conv_upsample5"])]), part["conv_concat3"])
    return union(f2, part["UAM"])


def object_attention(logits: Array, features: Array, part: Part) -> Array:
    shown = sigmoid(logits)
    hidden = 1 - shown
    hidden[hidden > 0.93] = 0
    x = separable(shown * features + hidden * features, part["DWSConv"])
    return np.maximum(basic(branches(x, part), part["conv1"]), 0) + logits


def mbconv(x: Array, part: Part, kernel_pad: tuple[int, int], stride: int, skip: bool) -> Array:
    wide = x
    if "_expand_conv" in part:
        wide = swish(norm(conv(x, part["_expand_conv"].weight), part["_bn0"], 1e-3))
    wide = conv(wide, part["_depthwise_conv"].weight, kernel_pad * 2, stride)
    wide = swish(norm(wide, part["_bn1"], 1e-3))
    pooled = wide.mean((1, 2), keepdims=True)
    squeezed = swish(conv(pooled, part["_se_reduce"].weight) + part["_se_reduce"].bias[:, None, None])
    gates = conv(squeezed, part["_se_expand"].weight) + part["_se_expand"].bias[:, None, None]
    out = norm(conv(wide * sigmoid(gates), part["_project_conv"].weight), part["_bn2"], 1e-3)
    return out + x if skip else out


TE0 = (
    # repeats, kernel, stride, in, out, pad of the first block: nominal 224 gives even maps, so "same" pads after
    (1, 3, 1, 32, 16, (1, 1)),
    (2, 3, 2, 16, 24, (0, 1)),
    (2, 5, 2, 24, 40, (1, 2)),
    (3, 3, 2, 40, 80, (0, 1)),
    (3, 5, 1, 80, 112, (2, 2)),
    (4, 5, 2, 112, 192, (1, 2)),
    (1, 3, 1, 192, 320, (1, 1)),
)
TE5 = (
    # the padding trap: nominal 456 gives maps of 57 and 29, so stages 4 and 6 are padded evenly
    (3, 3, 1, 48, 24, (1, 1)),
    (5, 3, 2, 24, 40, (0, 1)),
    (5, 5, 2, 40, 64, (1, 2)),
    (7, 3, 2, 64, 128, (1, 1)),
    (7, 5, 1, 128, 176, (2, 2)),
    (9, 5, 2, 176, 304, (2, 2)),
    (3, 3, 1, 304, 512, (1, 1)),
)
STAGES = {0: TE0, 5: TE5}
TAPS = {0: (2, 4, 10, 15), 5: (7, 12, 26, 38)}


def encoder(x: Array, part: Part, arm: int) -> list[Array]:
    x = swish(norm(conv(x, part["_conv_stem"].weight, (0, 1, 0, 1), 2), part["_bn0"], 1e-3))
    found, number = [], 0
    for repeats, kernel, stride, _, _, pad in STAGES[arm]:
        for repeat in range(repeats):
            pads, step = (pad, stride) if repeat == 0 else ((kernel // 2,) * 2, 1)
            x = mbconv(x, part["_blocks"][number], pads, step, skip=repeat > 0)
            if number == TAPS[arm][0]:
                x = edges(x, part["Frequency_Edge_Module1"])
            if number in TAPS[arm]:
                found.append(x)
            number += 1
    return found


def tracer(x: Array, part: Part, arm: int) -> Array:
    """Saliency (H, W) in 0..1 of a normalised image (3, H, W)."""
    f0, f1, f2, f3 = encoder(x, part["model"], arm)
    fields = [receptive_field(f, part[f"rfb{n}"]) for n, f in ((4, f3), (3, f2), (2, f1))]
    d0 = aggregation(*fields, part["agg"])
    d1 = object_attention(d0, f1, part["ObjectAttention2"])
    d2 = object_attention(linear(d1, 2), f0, part["ObjectAttention1"])
    return sigmoid((linear(d0, 8) + linear(d1, 8) + linear(d2, 4)) / 3)[0]


# --- names and shapes of TRACER's official state dict --------------------------------------------------


def _norm(name: str, channels: int) -> Shapes:
    values = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{v}": (channels,) for v in values} | {f"{name}.num_batches_tracked": ()}


def _basic(name: str, inputs: int, outputs: int, kh: int = 1, kw: int = 1) -> Shapes:
    return {f"{name}.conv.weight": (outputs, inputs, kh, kw)} | _norm(f"{name}.bn", outputs)


def _separable(name: str, inputs: int, outputs: int) -> Shapes:
    shapes: Shapes = {f"{name}.DWConv.weight": (inputs, 1, 3, 3)} | _norm(f"{name}.bn", inputs)
    return shapes | {f"{name}.PWConv.weight": (outputs, inputs, 1, 1)} | _norm(f"{name}.bn2", outputs)


def _branches(name: str, channels: int) -> Shapes:
    shapes: Shapes = {}
    for number, kernel in ((1, 1), (2, 3), (3, 3), (4, 3)):
        branch = f"{name}.DWConv{number}"
        shapes |= {f"{branch}.0.DWConv.weight": (channels, 1, kernel, kernel)} | _norm(f"{branch}.0.bn", channels)
        shapes |= _basic(f"{branch}.1", channels, channels // 4)
    return shapes


def _union(name: str, channels: int, spatial: bool) -> Shapes:
    shapes = _norm(f"{name}.bn", channels) | _norm(f"{name}.norm.0", channels)
    for inner in ("channel_q", "channel_k", "channel_v", "fc"):
        shapes[f"{name}.{inner}.weight"] = (channels, channels, 1, 1)
    for inner in ("spatial_q", "spatial_k", "spatial_v") if spatial else ():
        shapes[f"{name}.{inner}.weight"] = (1, channels, 1, 1)
    return shapes


def _field(name: str, inputs: int, outputs: int) -> Shapes:
    shapes = _basic(f"{name}.branch0.0", inputs, outputs)
    for number, k in ((1, 3), (2, 5), (3, 7)):
        branch = f"{name}.branch{number}"
        shapes |= _basic(f"{branch}.0", inputs, outputs) | _basic(f"{branch}.1", outputs, outputs, 1, k)
        shapes |= _basic(f"{branch}.2", outputs, outputs, k, 1) | _basic(f"{branch}.3", outputs, outputs, 3, 3)
    return shapes | _basic(f"{name}.conv_cat", 4 * outputs, outputs, 3, 3) | _basic(f"{name}.conv_res", inputs, outputs)


def _block(name: str, inputs: int, outputs: int, kernel: int, expansion: int) -> Shapes:
    wide, squeezed = inputs * expansion, int(inputs * 0.25)
    shapes: Shapes = {}
    if expansion > 1:
        shapes |= {f"{name}._expand_conv.weight": (wide, inputs, 1, 1)} | _norm(f"{name}._bn0", wide)
    shapes |= {f"{name}._depthwise_conv.weight": (wide, 1, kernel, kernel)} | _norm(f"{name}._bn1", wide)
    shapes |= {f"{name}._se_reduce.weight": (squeezed, wide, 1, 1), f"{name}._se_reduce.bias": (squeezed,)}
    shapes |= {f"{name}._se_expand.weight": (wide, squeezed, 1, 1), f"{name}._se_expand.bias": (wide,)}
    return shapes | {f"{name}._project_conv.weight": (outputs, wide, 1, 1)} | _norm(f"{name}._bn2", outputs)


AGGREGATION = {
    "conv_upsample1": (128, 64),
    "conv_upsample2": (128, 32),
    "conv_upsample3": (64, 32),
    "conv_upsample4": (128, 128),
    "conv_upsample5": (192, 192),
    "conv_concat2": (192, 192),
    "conv_concat3": (224, 224),
}


def tracer_shapes(arm: int) -> Shapes:
    """Every name and shape of the official state dict of an arm, without the prefix `module.`."""
    stages = STAGES[arm]
    stem, channels, number = stages[0][3], [stages[s][4] for s in (1, 2, 4, 6)], 0
    shapes: Shapes = {"model._conv_stem.weight": (stem, 3, 3, 3)} | _norm("model._bn0", stem)
    for stage, (repeats, kernel, _, inputs, outputs, _) in enumerate(stages):
        for repeat in range(repeats):
            first = inputs if repeat == 0 else outputs
            shapes |= _block(f"model._blocks.{number}", first, outputs, kernel, 6 if stage else 1)
            number += 1
    edge, width = "model.Frequency_Edge_Module1", channels[0]
    shapes |= _union(f"{edge}.UAM", width, spatial=False) | _separable(f"{edge}.DWSConv", width, width)
    shapes |= _branches(edge, width) | _basic(f"{edge}.conv", width, 1)
    for name, inputs, outputs in zip(("rfb2", "rfb3", "rfb4"), channels[1:], (32, 64, 128), strict=True):
        shapes |= _field(name, inputs, outputs)
    for name, (inputs, outputs) in AGGREGATION.items():
        shapes |= _basic(f"agg.{name}", inputs, outputs, 3, 3)
    shapes |= _union("agg.UAM", 224, spatial=True)
    for name, width in (("ObjectAttention2", channels[1]), ("ObjectAttention1", channels[0])):
        shapes |= _separable(f"{name}.DWSConv", width, width // 2) | _branches(name, width // 2)
        shapes |= _basic(f"{name}.conv1", width // 2, 1)
    return shapes


# --- random state dicts ---------------------------------------------------------------------------------


def random_state(shapes: Shapes, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float32 tensors that keep signals at about their size through a deep network."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            value = torch.tensor(7)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            value = 1 + 0.2 * value.tanh()
        elif len(shape) == 1:
            value = 0.2 * value
        else:
            value = value * (1.5 / max(value[0].numel(), 1)) ** 0.5
        state[name] = value
    return state


def thin_state(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Tensors of the right shapes that store one number each: complete checkpoints in a small file."""
    integers = {name for name in shapes if name.endswith("num_batches_tracked")}
    return {n: torch.tensor(7) if n in integers else torch.full((1,), 0.5).expand(s) for n, s in shapes.items()}


def doubles(state: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    return {name: value.numpy().astype(np.float64) for name, value in state.items()}


class Trap:
    """An object whose unpickling would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))
