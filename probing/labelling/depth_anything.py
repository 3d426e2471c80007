"""Depth Anything V2 as a depth labeller: an alternative to MiDaS, through transformers."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor
from transformers import DepthAnythingForDepthEstimation

from probing.labelling import hub, images, registry
from probing.labelling.checkpoints import Source
from probing.labelling.images import ImageLabeller, resize_cubic

KEY = "labels.depth_weights"
SIZE = 518
"""pixels that the shorter side of an image is scaled to"""
WIDTHS = {"small": 384, "base": 768, "large": 1024}
"""channels of the encoder of each size"""


def load(weights: str, device: torch.device, size: str = "small") -> ImageLabeller:
    """A depth labeller from a directory, or a hub id with its commit.

    Labels are float32, relative inverse depth. Warns that the weights of base and large forbid commercial use
    (CC-BY-NC-4.0). Raises ValueError for weights that can't be used.
    """
    name = registry.DEFAULTS[f"depth-anything-v2-{size}"]
    origin = Source(KEY, weights or name, name)
    if size != "small":
        warnings.warn(f"{name}: weights for non-commercial use only (CC-BY-NC-4.0)", stacklevel=2)
    network, revision = hub.load(DepthAnythingForDepthEstimation, origin)
    if network.config.depth_estimation_type != "relative":
        raise origin.error("predicts metric depth; relative inverse depth is needed")
    width = network.config.backbone_config.hidden_size
    if width != WIDTHS[size]:
        raise origin.error(f"is another size: expected an encoder of {WIDTHS[size]} channels, got {width}")
    network = network.to(device)
    return ImageLabeller(
        f"depth-anything-v2-{size} {revision}", lambda batch: depth(network, batch), device, np.float32
    )


def transform(levels: Tensor) -> Tensor:
    """Network input float32 (b, 3, h, w) of images uint8 (b, 3, H, W); h and w are multiples of 14."""
    size = images.covering_size(levels.shape[2], levels.shape[3], SIZE, multiple=14)
    scaled = resize_cubic(levels.double() / 255, size)
    return images.normalise(scaled, images.IMAGENET_MEAN, images.IMAGENET_STD)


def depth(network: DepthAnythingForDepthEstimation, levels: Tensor) -> Tensor:
    """Inverse depth (b, H, W) of images uint8 (b, 3, H, W), enlarged by cubic interpolation, not clipped."""
    small = network(transform(levels)).predicted_depth[:, None]
    return resize_cubic(small, (levels.shape[2], levels.shape[3]))[:, 0]
