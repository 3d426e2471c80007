"""Sizes of the measurements: those of the paper's experiment, and narrow ones for a rehearsal on a CPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    steps: int
    """denoising steps of a sample"""
    batch: int
    """samples of a shard"""
    pairs: int
    """pairs of a measurement; fewer if the time runs out"""
    train: int
    test: int
    """samples of the split that probes are fitted on and scored on"""
    epochs: int
    """of a probe"""
    moves: int
    """of an image that is edited"""
    iterations: int
    """of the inner optimisation"""
    saliency_steps: tuple[int, ...]
    depth_steps: tuple[int, ...]
    """denoising steps that are edited"""
    labelled: int
    """images that a labeller gets at once"""
    calls: int
    """network calls of a measurement of variants"""


PAPER = Scale(15, 8, 5, 246, 371, 30, 5, 128, (1, 2, 3, 4, 5), (1, 2, 3), 32, 5)
"""section 3.1 of the paper, and its section 5 for edits"""
NARROW = Scale(2, 2, 1, 4, 2, 1, 1, 2, (1,), (1,), 1, 1)
GUIDANCE = 7.5
