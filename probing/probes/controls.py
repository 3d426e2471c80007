"""What a probe is trained on instead of its labels: each control is a table of which cell's label goes where.

A control replaces the labels of training, validation and test alike, so its scores say how well the control
task itself is learnt with the same split and budget.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from probing.dataset.split import Split

NEIGHBOURHOODS = {"surface_point": 1, "surface": 5}
"""control -> side in latent cells of the neighbourhood that a probe sees in x_t and in x0"""
PICTURE = "surface_rgb"
"""the control that sees colours: patches of the decoded x0"""
SURFACE_CONTROLS = (*NEIGHBOURHOODS, PICTURE)
PICTURE_SITE = "rgb"
"""name under which the points of decoded pictures are stored"""
POINTS = 2
"""points along each side of a cell that a decoded picture is averaged to. A linear probe gains nothing from finer
texture: single pixels say where it is bright, not how rough it is"""

ACTIVATION_CONTROLS = ("none", *SURFACE_CONTROLS, "shuffled", "other_image")
"""linear probes on the given activations; those of the surface only name what the caller gives"""
POSITION_CONTROLS = ("position", "position_activation")
"""a value per cell alone, or beside the channels (nested models: what the activation adds to position)"""
CONTROLS = ACTIVATION_CONTROLS + POSITION_CONTROLS


def label_rows(control: str, samples: int, cells: int, split: Split, seed: int) -> NDArray[np.int64]:
    """(N, T) number (sample * T + cell) of the pooled label that each cell is given under a control.

    shuffled: each image's labels permuted over its cells, one permutation per image.
    other_image: each image gets the labels of another image of its own part of the split; in a part of one
    sample it borrows from train. Raises ValueError for an unknown control or a lone training sample."""
    if control not in CONTROLS:
        raise ValueError(f"unknown probe control {control!r}: choose from {', '.join(CONTROLS)}")
    own = np.arange(samples * cells).reshape(samples, cells)
    random = np.random.default_rng([seed, zlib.crc32(control.encode())])
    if control == "shuffled":
        return random.permuted(own, axis=1)
    if control == "other_image":
        return own[_donors(samples, split, random)]
    return own


def _donors(samples: int, split: Split, random: np.random.Generator) -> NDArray[np.int64]:
    """For every sample another one, by a random cycle through each part."""
    donors = np.arange(samples)
    if len(split.train) == 1:
        raise ValueError("control other_image needs at least two training samples")
    for _, part in split.parts:
        cycle = random.permutation(part)
        donors[cycle] = np.roll(cycle, 1) if len(cycle) > 1 else random.choice(split.train)
    return donors
