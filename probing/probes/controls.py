"""Controls of probes: other inputs, or labels that are moved between patches or images (imports no heavy library).

A control that moves labels moves those of training, validation and test alike, so its scores show how well the control
task itself is learnt with the same split and budget.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from probing.dataset.split import Split

NEIGHBOURHOODS = {"surface_point": 1, "surface": 5}
"""control -> side, in latent pixels, of the neighbourhood in x_t and in x0 that is the probe's input"""
PICTURE = "surface_rgb"
"""the control whose inputs are colours of the decoded x0"""
SURFACE_CONTROLS = (*NEIGHBOURHOODS, PICTURE)
PICTURE_SITE = "rgb"
"""name under which the points of decoded pictures are stored"""
POINTS = 2
"""points along each side of a patch that a decoded picture is averaged to. A linear probe gains nothing from finer
texture: a linear map of single pixels depends on brightness, not on roughness"""

POSITION = "position"
POSITION_CONTROLS = (POSITION, "position_activation")
"""a value per patch alone, or beside the channels (nested models: what the activation adds to position)"""
NETWORK_FREE = (POSITION, *SURFACE_CONTROLS)
"""controls whose inputs hold nothing of the network: at all sites of one grid they are the same probe"""
CONTROLS = ("none", *SURFACE_CONTROLS, "shuffled", "permuted", "other_image", *POSITION_CONTROLS)


def label_rows(control: str, samples: int, patches: int, split: Split, seed: int) -> NDArray[np.int64]:
    """(N, T) index (sample * T + patch) of the pooled label that each patch is given under a control.

    shuffled: each image's labels permuted over its patches, one permutation per image. Each image keeps its mean label,
    such as its share of object, which activations of all its patches may contain.
    permuted: the labels of each part of the split permuted over the patches of all its images; no mean is kept.
    other_image: each image gets the labels of another image of its own part of the split; in a part of one
    sample, those of a training image. Raises ValueError if the control is unknown or other_image has only one
    training sample."""
    if control not in CONTROLS:
        raise ValueError(f"unknown probe control {control!r}: choose from {', '.join(CONTROLS)}")
    own = np.arange(samples * patches).reshape(samples, patches)
    random = np.random.default_rng([seed, zlib.crc32(control.encode())])
    if control == "shuffled":
        return random.permuted(own, axis=1)
    if control == "permuted":
        for _, part in split.parts:
            own[part] = random.permutation(own[part].ravel()).reshape(len(part), patches)
        return own
    if control == "other_image":
        return own[_other_images(samples, split, random)]
    return own


def _other_images(samples: int, split: Split, random: np.random.Generator) -> NDArray[np.int64]:
    """For every sample another one, by a random cycle through each part."""
    if len(split.train) == 1:
        raise ValueError("control other_image needs at least two training samples")
    sources = np.arange(samples)
    for _, part in split.parts:
        cycle = random.permutation(part)
        sources[cycle] = np.roll(cycle, 1) if len(cycle) > 1 else random.choice(split.train)
    return sources
