"""Which samples are kept, why the others are dropped, and the split by prompt."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probing.dataset.manual_decisions import Choice

SPLITS = ("train", "val", "test")
FAILED = "shard failed"
"""reason of a sample that was never finished"""
UNUSABLE = (FAILED, "label not finite", "no salient object")
"""reasons that a manual decision can't overrule; the last one only if there is no foreground at all"""


@dataclass(frozen=True)
class CurationConfig:
    """Rules that drop a sample, and the sizes of the split."""

    min_foreground: float = 1e-6
    """minimal share of salient pixels; the protocol drops images without any foreground"""
    max_foreground: float = 1.0
    """maximal share of salient pixels"""
    min_contrast: float = 2.0
    """minimal standard deviation of the pixels in grey levels; below it an image is blank"""
    min_saturation: float = 0.0
    """minimal mean saturation, 0..1; above 0 it drops greyscale images"""
    max_plain: float = 1.0
    """maximal share of pixels of one colour (16 levels a channel); below 1 it drops line art"""
    safety: bool = False
    """whether images flagged by Stable Diffusion's safety checker are dropped"""
    safety_weights: str = ""
    """the checker: a directory, a pipeline's directory that has one, or a hub id with its commit,
    NAME@COMMIT; empty: the original's"""
    train: float = 64
    """training samples: a number, or a share below 1 of the kept"""
    val: float = 32
    """validation samples, likewise; 0 for the paper's protocol: the report then chooses sites by training loss"""
    test: float = 0
    """test samples, likewise; 0 takes the rest"""

    def __post_init__(self) -> None:
        shares = ("min_foreground", "max_foreground", "min_saturation", "max_plain")
        for name, high in (*((share, 1) for share in shares), ("min_contrast", 255)):
            if not 0 <= getattr(self, name) <= high:
                raise ValueError(f"curation.{name}={getattr(self, name)}: must be 0 to {high}")
        for part in SPLITS:
            size = getattr(self, part)
            if not 0 <= size < math.inf or size >= 1 and size != int(size):
                raise ValueError(f"curation.{part}={size}: give a whole number of samples, or a share below 1")


@dataclass(frozen=True)
class Decision:
    """Whether one sample is kept."""

    sample: int
    keep: bool
    reason: str
    """why it is dropped, or an empty string"""
    split: str
    """one of SPLITS, or an empty string"""


@dataclass(frozen=True)
class Measures:
    """The properties of one sample that the rules use."""

    contrast: float
    """standard deviation of the image's values, in levels of 255"""
    saturation: float
    """mean HSV saturation, 0..1"""
    plain: float
    """share of pixels that have the image's commonest colour, 16 levels a channel"""
    foreground: float
    """share of salient pixels"""
    finite: bool = True
    """whether the depth label is finite everywhere"""
    flagged: bool = False
    """whether the safety checker flags the image"""


def measure(images: np.ndarray, masks: np.ndarray, depth: np.ndarray | None, flagged: Sequence[bool]) -> list[Measures]:
    """Measures of uint8 images (n, H, W, 3), bool masks (n, H, W), depth (n, H, W) if there is any, and n flags."""
    result = []
    for image, mask, far, flag in zip(images, masks, masks if depth is None else depth, flagged, strict=True):
        high, low = image.max(-1).astype(np.float32), image.min(-1).astype(np.float32)
        levels = (image >> 4).astype(np.int64)
        colours = (levels[..., 0] << 8) + (levels[..., 1] << 4) + levels[..., 2]
        result.append(
            Measures(
                contrast=float(image.std()),
                saturation=float(((high - low) / np.maximum(high, 1)).mean()),
                plain=float(np.bincount(colours.ravel()).max() / colours.size),
                foreground=float(mask.mean()),
                finite=bool(np.isfinite(far).all()),
                flagged=bool(flag),
            )
        )
    return result


def drop_reason(measures: Measures, config: CurationConfig) -> str:
    """Why a sample is dropped by rule, or an empty string."""
    if measures.contrast < config.min_contrast:
        return "blank"
    if not measures.finite:
        return "label not finite"
    if config.safety and measures.flagged:
        return "flagged by the safety checker"
    if config.min_saturation > 0 and measures.saturation < config.min_saturation:
        return "greyscale"
    if measures.plain > config.max_plain:
        return "line art or flat colour"
    if measures.foreground < config.min_foreground:
        return "no salient object"
    return "salient object fills the image" if measures.foreground > config.max_foreground else ""


def all_reasons(
    measures: Mapping[int, Measures], samples: int, config: CurationConfig, choices: Mapping[int, Choice]
) -> list[str]:
    """Why each of `samples` samples is dropped, or an empty string.

    measures: by sample; samples without measures failed. choices: manual decisions by sample. A manual drop always
    counts; a manual keep overrules the rules, except for a failed shard, a label that is not finite, or an empty mask.
    """
    reasons = []
    for sample in range(samples):
        measured, choice = measures.get(sample), choices.get(sample)
        reason = drop_reason(measured, config) if measured else FAILED
        if choice and not choice.keep:
            reason = f"by hand: {choice.reason or 'no reason given'}"
        elif choice and (reason not in UNUSABLE or measured and measured.finite and measured.foreground > 0):
            reason = ""
        reasons.append(reason)
    return reasons


def split_by_prompt(prompts: Sequence[str], config: CurationConfig) -> list[str]:
    """The part of the split of each prompt, fixed by its hash; equal prompts fall into the same part.

    Raises ValueError if there are too few prompts for the requested sizes.
    """
    distinct = sorted(set(prompts), key=lambda text: hashlib.sha256(f"scenesweep\n{text}".encode()).digest())
    total = len(distinct)
    train, val, test = (
        round(size * total) if size < 1 else int(size) for size in (config.train, config.val, config.test)
    )
    test = test or total - train - val
    if train < 1 or test < 1 or train + val + test > total:
        raise ValueError(
            f"curation: {total} kept prompts are too few for train {train}, val {val}, "
            f"test {max(test, 1)}; raise prompts.count or lower curation.train and curation.val"
        )
    names = ["train"] * train + ["val"] * val + ["test"] * test
    parts = dict(zip(distinct, names, strict=False))
    return [parts.get(prompt, "") for prompt in prompts]


def curate(
    measures: Mapping[int, Measures],
    prompts: Sequence[str],
    given: Sequence[str],
    config: CurationConfig,
    choices: Mapping[int, Choice] | None = None,
) -> list[Decision]:
    """Decide on all samples.

    measures: by sample; samples without measures failed. prompts: one per sample. given: the split of each sample if
    the prompts come with one, or all empty. choices: manual decisions by sample.
    Raises ValueError if too few samples are kept for the split.
    """
    reasons = all_reasons(measures, len(prompts), config, choices or {})
    kept = [i for i, reason in enumerate(reasons) if not reason]
    if any(given):
        parts = {i: given[i] for i in kept}
    else:
        parts = dict(zip(kept, split_by_prompt([prompts[i] for i in kept], config), strict=True))
    return [Decision(i, not reason, reason, parts.get(i, "")) for i, reason in enumerate(reasons)]
