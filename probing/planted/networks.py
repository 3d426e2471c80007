"""The UNet and the autoencoder of the planted models, weight by weight.

Every scalar map inside the networks is a field: four channels [q, q, -q, -q]. Their mean is zero, so a group norm only
divides by a root mean square that the fields of a group share, and keeps their proportions. After the activation
function, channel 0 minus channel 2 is exactly what went in, because SiLU(q) - SiLU(-q) = q. With a norm's gain G and
biases of plus and minus one half on channels 0 and 1, SiLU(Gq + 1/2) - SiLU(Gq - 1/2) is 1 for Gq >> 1 and 0 for
Gq << -1, a step; two in a row leave no pixel between.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from scipy.linalg import hadamard
from torch import Tensor, nn

USED, READ_ONLY, DISTRACTOR = "used", "read_only", "distractor"
KINDS = (USED, READ_ONLY, DISTRACTOR)
SITE = "up.0.0"
"""the site that carries mask and depth"""
SIZE = 10
"""side of the pictures and of the latents: the autoencoder keeps the size, so a moved label is exactly paintable"""
CHANNELS, GROUPS, TEXT_WIDTH = 64, 4, 16
"""of the UNet; a group of channels holds four fields"""
GAIN = 200.0
"""of a step: pixels nearer to its edge than a few times 1 / GAIN are neither 0 nor 1"""
SCENE, SHARE = 8.0, 0.5
"""weight of the noise that the scene follows, in units of the remembered picture's noise; threshold of the mask, in
standard deviations of the smoothed noise"""
PAINT = 2000.0
"""how strongly a step paints; after one step the picture must outweigh the scene's noise"""
FOCUS = 11.0
"""scale of queries and keys: a token with one other feature gets exp(-30) of the attention"""
NUISANCE, HIDING, HINT = 4.0, 1.5, 0.6
"""amplitudes in the site's output, where mask and depth have 1: of features that the picture does not show; in
`distractor`, of the feature that hides mask or depth in its own direction, and of the hint that gives it away"""
SIGNS = torch.tensor([1.0, 1.0, -1.0, -1.0])
BOX = torch.full((3, 3), 1 / 3)
"""smoothing that keeps the variance of white noise"""
SLOPE = torch.tensor([[-1.0, 0.0, 1.0]] * 3) / 6**0.5
"""the noise's slope, whose signs cover about the same share of every picture. Otherwise a probe of labels that are
shuffled inside each image would find the image's share of the object, and be no null"""
LATENTS = 10
"""channels of a latent: the picture's mask and depth, and for each feature the noise that it follows, which stays"""
# fields of the first convolution: for mask and depth the picture so far, the noise that the scene follows, and (mask
# alone) a constant, in the same group, so that their proportions are kept; noise of the nuisance features; the sums
PICTURE, SOURCE, CONSTANT, SUM = (0, 4), (1, 5, 8, 9, 10, 11, 14, 15), 2, (12, 13)
# fields after the steps: features 0 (mask), 1 (depth) and nuisance; what the picture is painted from
FEATURES, PAINTED = len(SOURCE), (8, 12)


def field(index: int) -> slice:
    """Channels of a field."""
    return slice(4 * index, 4 * index + 4)


def centre(value: float, size: int = 3) -> Tensor:
    """A kernel (size, size) that multiplies by a value."""
    kernel = torch.zeros(size, size)
    kernel[size // 2, size // 2] = value
    return kernel


@torch.no_grad()
def silence(network: nn.Module) -> None:
    """Set all weights to zero, and those of norms to one: every residual branch adds nothing."""
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            one = name == "weight" and isinstance(module, nn.GroupNorm | nn.LayerNorm)
            weight.fill_(1.0 if one else 0.0)


def begin(convolution: nn.Conv2d, channel: int, target: int, kernel: Tensor) -> None:
    """Add an input channel, filtered by a kernel, to a field."""
    convolution.weight[field(target), channel] += SIGNS[:, None, None] * kernel


def carry(convolution: nn.Conv2d, source: int, target: int, kernel: Tensor) -> None:
    """Add a field, filtered by a kernel, to another after an activation function."""
    for channel, sign in ((0, 1), (2, -1)):
        convolution.weight[field(target), 4 * source + channel] += sign * SIGNS[:, None, None] * kernel


def sharpen(norm: nn.GroupNorm, source: int) -> None:
    """Prepare a field for `step`."""
    norm.weight[field(source)] = GAIN
    norm.bias[field(source)] = torch.tensor([0.5, -0.5, 0.0, 0.0])


def step(convolution: nn.Conv2d, source: int, target: slice | int, scale: float = 1.0) -> None:
    """Add the sign of a sharpened field, times `scale`, to a field, or to a single channel (an int is a channel)."""
    signs = SIGNS if isinstance(target, slice) else torch.ones(())
    middle = convolution.kernel_size[0] // 2
    for channel, sign in ((0, 1), (1, -1)):
        convolution.weight[target, 4 * source + channel, middle, middle] += 2 * sign * scale * signs
    assert convolution.bias is not None
    convolution.bias[target] -= scale * signs


def codes() -> Iterator[Tensor]:
    """Orthogonal directions (C) of plus and minus one, in the site's output.

    Pairs of channels have equal entries, so that they are orthogonal to the token's own features too, which are pairs
    of opposite channels.
    """
    for row in hadamard(CHANNELS)[2::2]:
        yield torch.tensor(row, dtype=torch.float32)


@torch.no_grad()
def build_unet(kind: str) -> UNet2DConditionModel:
    """The UNet of a planted model; it ignores time and text.

    Latent channels 0 and 1 are the picture's mask and depth, the others keep their initial noise. The UNet predicts
    velocity: a constant adds to a scaled latent in proportion to the noise level's angle, and zero leaves it as it is.
    """
    unet = UNet2DConditionModel(
        sample_size=SIZE,
        in_channels=LATENTS,
        out_channels=LATENTS,
        layers_per_block=1,
        block_out_channels=(CHANNELS,),
        down_block_types=("DownBlock2D",),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=1,
        norm_num_groups=GROUPS,
    )
    silence(unet)
    up = unet.up_blocks[0]
    _read_scene(unet.conv_in, unet.down_blocks[0].resnets[0])
    _find_features(up.resnets[0], kind)
    _write_site(up.attentions[0], kind)
    _paint(up.resnets[1], unet.conv_out)
    return unet.eval()


def _read_scene(first: nn.Conv2d, block: ResnetBlock2D) -> None:
    """What the features are the signs of: smoothed noise, which the picture outweighs once there is one."""
    assert first.bias is not None
    first.bias[field(CONSTANT)] = SIGNS
    carry(block.conv1, CONSTANT, CONSTANT, centre(1))
    carry(block.conv2, CONSTANT, SUM[0], centre(-SCENE * SHARE))
    for feature, source in enumerate(SOURCE):
        kernel = (SLOPE, SLOPE.T)[feature] if feature < 2 else BOX
        begin(first, 2 + feature, source, kernel)
        carry(block.conv1, source, source, BOX)
        smooth = kernel[None, None]
        for _ in range(2):
            smooth = nn.functional.conv2d(smooth, BOX[None, None], padding=2)
        carry(block.conv2, source, SUM[feature] if feature < 2 else source, SCENE / float(smooth.norm()) * BOX)
    for task in (0, 1):
        begin(first, task, PICTURE[task], centre(1))
        carry(block.conv1, PICTURE[task], PICTURE[task], centre(1))
        carry(block.conv2, PICTURE[task], SUM[task], centre(1))


def _find_features(block: ResnetBlock2D, kind: str) -> None:
    """The features, plus and minus one, in the residual stream, and what else the picture is painted from."""
    for feature, source in enumerate((*SUM, *SOURCE[2:])):
        sharpen(block.norm1, source)
        step(block.conv1, source, field(feature))
        sharpen(block.norm2, feature)
        step(block.conv2, feature, field(feature))
    for task in (0, 1):
        if kind == READ_ONLY:
            step(block.conv2, task, field(PAINTED[task]))
        if kind == DISTRACTOR:
            # what hides this task's feature in the site's output is taken away where it is painted
            step(block.conv2, 2 + task, field(PAINTED[task]), -HIDING)


def _write_site(transformer: Any, kind: str) -> None:
    """Attention from each token to those with equal features, which writes the features along fixed directions."""
    attention = transformer.transformer_blocks[0].attn1
    directions = codes()
    output = attention.to_out[0]
    output.bias += next(directions)  # probes have no bias of their own
    for feature in range(FEATURES):
        # a token is the pairs (feature, -feature), whose layer norm multiplies them by `scale`
        transformer.proj_in.weight[2 * feature, 4 * feature] = 1
        transformer.proj_in.weight[2 * feature + 1, 4 * feature] = -1
        scale = (CHANNELS / (2 * FEATURES)) ** 0.5
        attention.to_q.weight[feature, 2 * feature] = FOCUS / scale
        attention.to_k.weight[feature, 2 * feature] = FOCUS / scale
        attention.to_v.weight[feature, 2 * feature] = 1 / scale
        output.weight[:, feature] = next(directions) * (1 if feature < 2 else NUISANCE)
    for task in (0, 1):
        direction = output.weight[:, task].clone()
        if kind != READ_ONLY:
            weight = SIGNS[:, None] * direction / CHANNELS
            transformer.proj_out.weight[field(PAINTED[task])] = weight[..., None, None]
        if kind == DISTRACTOR:
            output.weight[:, 2 + task] = HIDING * direction
            output.weight[:, task] += HINT * next(directions)


def _paint(block: ResnetBlock2D, last: nn.Conv2d) -> None:
    """The velocity that paints the sign of the painted fields."""
    for task in (0, 1):
        sharpen(block.norm1, PAINTED[task])
        step(block.conv1, PAINTED[task], field(task))
        sharpen(block.norm2, task)
        step(block.conv2, task, field(task))
        for channel, sign in ((0, -1), (2, 1)):
            last.weight[task, 4 * task + channel, 1, 1] = sign * PAINT


@torch.no_grad()
def build_autoencoder() -> AutoencoderKL:
    """A decoder that shows the sign of latent channels 0 and 1 in red and green; the encoder returns zeros."""
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(8,),
        latent_channels=LATENTS,
        norm_num_groups=1,
        sample_size=SIZE,
        scaling_factor=1.0,
    )
    silence(autoencoder)
    decoder, before = autoencoder.decoder, autoencoder.post_quant_conv
    assert before is not None
    before.weight += torch.eye(LATENTS)[..., None, None]
    for colour in (0, 1):
        begin(decoder.conv_in, colour, colour, centre(1))
        sharpen(decoder.conv_norm_out, colour)
        step(decoder.conv_out, colour, colour)
    assert decoder.conv_out.bias is not None
    decoder.conv_out.bias[2] = -1  # no blue
    return autoencoder.eval()
