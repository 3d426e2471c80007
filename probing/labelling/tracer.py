"""TRACER as a saliency labeller (section 3.1 uses it for saliency): network, checkpoint, 0..255 maps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from probing.labelling import checkpoints, images
from probing.labelling.checkpoints import Source, State
from probing.labelling.efficientnet import ARMS, Encoder, blocks, tapped_blocks
from probing.labelling.images import ImageLabeller, resize_linear
from probing.labelling.tracer_modules import Aggregation, EdgeModule, ObjectAttention, ReceptiveField

KEY = "labels.saliency_weights"
ORIGIN = "https://github.com/Karel911/TRACER/releases/download/v1.0/TRACER-Efficient-{}.pth"
FIELDS = (32, 64, 128)
"""channels of the receptive fields at strides 8, 16 and 32"""


class Tracer(nn.Module):
    """The network of one arm; attribute names are those of the official state dict."""

    def __init__(self, arm: int) -> None:
        super().__init__()
        shapes = blocks(ARMS[arm])
        finest, fine, middle, coarse = (shapes[n].outputs for n in tapped_blocks(shapes))
        self.model = Encoder(ARMS[arm], EdgeModule(finest))
        self.rfb2 = ReceptiveField(fine, FIELDS[0])
        self.rfb3 = ReceptiveField(middle, FIELDS[1])
        self.rfb4 = ReceptiveField(coarse, FIELDS[2])
        self.agg = Aggregation(*FIELDS)
        self.ObjectAttention2 = ObjectAttention(fine)
        self.ObjectAttention1 = ObjectAttention(finest)

    def forward(self, x: Tensor) -> Tensor:
        """Saliency (B, 1, S, S) in 0..1 of normalised images (B, 3, S, S), with S a multiple of 32."""
        finest, fine, middle, coarse = self.model(x)
        first = self.agg(self.rfb4(coarse), self.rfb3(middle), self.rfb2(fine))
        second = self.ObjectAttention2(first, fine)
        third = self.ObjectAttention1(_enlarge(second, 2), finest)
        logits = _enlarge(third, 4) + _enlarge(second, 8) + _enlarge(first, 8)
        return torch.sigmoid(logits / 3)


def _enlarge(x: Tensor, factor: int) -> Tensor:
    return resize_linear(x, (x.shape[2] * factor, x.shape[3] * factor))


def source(weights: str, arm: int) -> Source:
    """The source of an arm's checkpoint."""
    return Source(KEY, weights, ORIGIN.format(arm))


def network(state: State, origin: Source, arm: int) -> Tracer:
    """The network of an arm with exactly the tensors of its official state dict, ready to label.

    Raises ValueError for the state dict of another arm, or of anything else.
    """
    actual = arm_of(state)
    if actual is not None and actual != arm:
        raise origin.error(
            f"is a checkpoint of TRACER-TE{actual}, not TE{arm}; "
            f"set labels.saliency=tracer-te{actual} or use {origin.origin}"
        )
    with torch.device("meta"):
        tracer = Tracer(arm)
    checkpoints.fill(tracer, state, origin)
    return tracer.eval().requires_grad_(False)


def arm_of(state: Mapping[str, Tensor]) -> int | None:
    """The arm that a checkpoint seems to belong to, by its number of blocks and its last channels; None if unclear."""
    count = len({name.split(".")[2] for name in state if name.startswith("model._blocks.")})
    last = state.get("rfb4.conv_res.conv.weight")
    for number, arm in enumerate(ARMS):
        shapes = blocks(arm)
        if last is not None and (len(shapes), shapes[-1].outputs) == (count, last.shape[1]):
            return number
    return None


def load(weights: str, device: torch.device, arm: int = 5) -> ImageLabeller:
    """A saliency labeller from an official checkpoint; labels are uint8 in 0..255.

    As in the authors' code, images are scaled to the arm's size (512 for TE5) and the maps back, and maps are
    truncated to whole levels, not rounded. Raises ValueError for a checkpoint that can't be used.
    """
    origin = source(weights, arm)
    tracer = network(checkpoints.read(origin), origin, arm).to(device)
    revision = f"tracer-te{arm} {checkpoints.digest([origin.file])}"
    return ImageLabeller(revision, lambda batch: saliency(tracer, batch, ARMS[arm].size), device, np.uint8)


def saliency(network: nn.Module, levels: Tensor, size: int) -> Tensor:
    """Saliency uint8 (b, H, W) of images uint8 (b, 3, H, W), computed at size x size."""
    shape = (levels.shape[2], levels.shape[3])
    scaled = resize_linear(levels.float(), (size, size)).round() if shape != (size, size) else levels
    x = images.normalise(scaled / 255, images.IMAGENET_MEAN, images.IMAGENET_STD)
    return (resize_linear(network(x), shape)[:, 0] * 255).to(torch.uint8)
