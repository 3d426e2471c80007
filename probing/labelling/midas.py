"""MiDaS DPT-Large as a depth labeller (section 3.1 uses it for depth): transform, checkpoint, network.

The network is transformers' DPT with the layer norm epsilon of MiDaS; the transform is our own, because
the one in transformers resizes with antialias. Depth is relative and inverse: near is large.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DPTConfig, DPTForDepthEstimation

from probing.labelling import checkpoints, hub, images, midas_names
from probing.labelling.checkpoints import Source, State
from probing.labelling.images import ImageLabeller, resize_cubic

KEY = "labels.depth_weights"
ORIGIN = "https://github.com/isl-org/MiDaS/releases/download/v3/dpt_large_384.pt (or Intel/dpt-large@COMMIT)"
SIZE = 384
"""pixels that one side of an image is scaled to (see `images.minimal_size`)"""


def large() -> DPTConfig:
    """The configuration of DPT-Large."""
    return DPTConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        backbone_out_indices=[5, 11, 17, 23],
        neck_hidden_sizes=[256, 512, 1024, 1024],
        layer_norm_eps=1e-6,
    )


def load(weights: str, device: torch.device, config: DPTConfig | None = None) -> ImageLabeller:
    """A depth labeller from the official `.pt`, or a Hugging Face directory or hub id of the same model.

    Labels are float32, relative inverse depth. Raises ValueError for weights that can't be used.
    """
    config = config or large()
    origin = Source(KEY, weights, ORIGIN)
    if hub.names_model(weights):
        network, revision = hub.load(DPTForDepthEstimation, origin, config)
    else:
        network = from_official(checkpoints.read(origin), origin, config)
        revision = checkpoints.digest([origin.file])
    network.to(device)
    return ImageLabeller(f"midas-dpt-large {revision}", lambda batch: depth(network, batch), device, np.float32)


def from_official(state: State, origin: Source, config: DPTConfig) -> DPTForDepthEstimation:
    """transformers' DPT with exactly the tensors of a state dict in MiDaS's naming.

    Raises ValueError for the state dict of another MiDaS model, or of anything else.
    """
    other = midas_names.other_model(state)
    if other:
        raise origin.error(f"is a checkpoint of {other}, not DPT-Large; use {ORIGIN}")
    with torch.device("meta"):
        network = DPTForDepthEstimation(config)
    checkpoints.fill(network, midas_names.translate(state, origin), origin)
    return network.eval().requires_grad_(False)


def transform(levels: Tensor) -> Tensor:
    """Network input float32 (b, 3, h, w) in about -1..1 of images uint8 (b, 3, H, W)."""
    size = images.minimal_size(levels.shape[2], levels.shape[3], SIZE, multiple=32)
    return images.normalise(resize_cubic(levels.double() / 255, size), (0.5,) * 3, (0.5,) * 3)


def predict(network: DPTForDepthEstimation, x: Tensor) -> Tensor:
    """Inverse depth (b, h, w) of transformed images (b, 3, h, w); h and w are multiples of 32 and may differ."""
    config: Any = network.config  # its fields are typed as optional
    states = network.dpt(x, output_hidden_states=True).hidden_states  # the first one is the embedding
    tapped = [states[block + 1] for block in config.backbone_out_indices]
    grid = (x.shape[2] // config.patch_size, x.shape[3] // config.patch_size)
    return network.head(network.neck(tapped, *grid))


def depth(network: DPTForDepthEstimation, levels: Tensor) -> Tensor:
    """Inverse depth (b, H, W) of images uint8 (b, 3, H, W), enlarged by cubic interpolation, not clipped."""
    small = predict(network, transform(levels))[:, None]
    return resize_cubic(small, (levels.shape[2], levels.shape[3]))[:, 0]
