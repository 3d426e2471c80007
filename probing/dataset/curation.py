"""Which samples are kept, why the others are not, and the split by prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probing.dataset.manual_decisions import Choice

SPLITS = ("train", "val", "test")
FAILED = "shard failed"
"""reason of a sample that was never finished"""
NOTHING_TO_READ = (FAILED, "label not finite", "no salient object")
"""reasons that a decision by hand can't overrule, the last where there is no foreground at all"""


@dataclass(frozen=True)
class CurationConfig:
    """Rules that drop a sample, and the sizes of the split."""

    min_foreground: float = 1e-6
    """least share of salient pixels; the protocol drops images without any foreground"""
    max_foreground: float = 1.0
    """largest share of salient pixels"""
    min_contrast: float = 2.0
    """least standard deviation of the pixels in grey levels; below it an image is blank"""
    min_saturation: float = 0.0
    """least mean saturation, 0..1; drops greyscale images where above 0"""
    max_plain: float = 1.0
    """largest share of pixels of one colour (16 levels a channel); drops line art where below 1"""
    safety: bool = False
    """whether images that Stable Diffusion's safety checker flags are dropped"""
    safety_weights: str = ""
    """the checker: a directory, a pipeline's directory that has one, or a hub id; empty: the original's"""
    train: float = 64
    """training samples: a number, or a share below 1 of the kept"""
    val: float = 32
    """validation samples, likewise; 0 for the paper's protocol: the report then chooses sites by training loss"""
    test: float = 0
    """test samples, likewise; 0 takes the rest"""


@dataclass(frozen=True)
class Decision:
    """What became of one sample."""

    sample: int
    keep: bool
    reason: str
    split: str


@dataclass(frozen=True)
class Measures:
    """What the rules look at in one sample."""

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
    """Measures of uint8 images (n, H, W, 3), bool masks (n, H, W), depth (n, H, W), where there is any, and flags."""
    return [
        Measures(
            float(image.std()),
            float(saturation(image[None])[0]),
            plainness(image),
            float(mask.mean()),
            bool(np.isfinite(far).all()),
            bool(flag),
        )
        for image, mask, far, flag in zip(images, masks, masks if depth is None else depth, flagged, strict=True)
    ]


def saturation(images: np.ndarray) -> np.ndarray:
    """Mean HSV saturation of uint8 images (n, H, W, 3), shape (n,)."""
    high, low = images.max(-1).astype(np.float32), images.min(-1).astype(np.float32)
    return ((high - low) / np.maximum(high, 1)).mean((1, 2))


def plainness(image: np.ndarray) -> float:
    """Share of pixels of the commonest colour of a uint8 image (H, W, 3), 16 levels a channel."""
    levels = (image >> 4).astype(np.int64)
    colours = (levels[..., 0] << 8) + (levels[..., 1] << 4) + levels[..., 2]
    return float(np.bincount(colours.ravel()).max() / colours.size)


def drop_reason(found: Measures, config: CurationConfig) -> str:
    """Why a sample is dropped by rule, or an empty string."""
    if found.contrast < config.min_contrast:
        return "blank"
    if not found.finite:
        return "label not finite"
    if config.safety and found.flagged:
        return "flagged by the safety checker"
    if config.min_saturation > 0 and found.saturation < config.min_saturation:
        return "greyscale"
    if found.plain > config.max_plain:
        return "line art or flat colour"
    if found.foreground < config.min_foreground:
        return "no salient object"
    return "salient object fills the image" if found.foreground > config.max_foreground else ""


def with_hand(rule: str, found: Measures | None, choice: Choice | None) -> str:
    """The reason after a decision by hand: a drop always counts, a keep overrules the rules.

    Nothing overrules a failed shard, a label that is not finite, or an empty mask.
    """
    if choice is None:
        return rule
    if not choice.keep:
        return f"by hand: {choice.reason or 'no reason given'}"
    hopeless = rule in NOTHING_TO_READ and (found is None or not found.finite or found.foreground == 0)
    return rule if hopeless else ""


def _order(text: str) -> bytes:
    return hashlib.sha256(f"scenesweep\n{text}".encode()).digest()


def _size(value: float, total: int) -> int:
    return round(value * total) if value < 1 else int(value)


def split_by_prompt(prompts: Sequence[str], config: CurationConfig) -> list[str]:
    """The part of each prompt; equal prompts fall into the same part (fixed by hash).

    Raises ValueError where there are too few prompts for the sizes asked for.
    """
    distinct = sorted(set(prompts), key=_order)
    train, val = _size(config.train, len(distinct)), _size(config.val, len(distinct))
    test = _size(config.test, len(distinct)) or len(distinct) - train - val
    if train < 1 or test < 1 or train + val + test > len(distinct):
        raise ValueError(
            f"curation: {len(distinct)} kept prompts are too few for train {train}, val {val}, "
            f"test {max(test, 1)}; raise prompts.count or lower curation.train and curation.val"
        )
    names = ["train"] * train + ["val"] * val + ["test"] * test
    parts = dict(zip(distinct, names, strict=False))
    return [parts.get(prompt, "") for prompt in prompts]


def all_reasons(
    measures: Mapping[int, Measures], samples: int, config: CurationConfig, by_hand: Mapping[int, Choice]
) -> list[str]:
    """Why each of `samples` samples is dropped, or an empty string; those without measures failed."""
    reasons = []
    for sample in range(samples):
        found = measures.get(sample)
        rule = drop_reason(found, config) if found else FAILED
        reasons.append(with_hand(rule, found, by_hand.get(sample)))
    return reasons


def curate(
    measures: Mapping[int, Measures],
    prompts: Sequence[str],
    given: Sequence[str],
    config: CurationConfig,
    by_hand: Mapping[int, Choice] | None = None,
) -> list[Decision]:
    """Decides over all samples; those without measures failed.

    `prompts` and `given` have an entry per sample; `given` holds splits that come with the prompts,
    or "" each. `by_hand` holds decisions of a person, by sample.
    """
    reasons = all_reasons(measures, len(prompts), config, by_hand or {})
    kept = [i for i, reason in enumerate(reasons) if not reason]
    if any(given):
        parts = {i: given[i] for i in kept}
    else:
        parts = dict(zip(kept, split_by_prompt([prompts[i] for i in kept], config), strict=True))
    return [Decision(i, not reason, reason, parts.get(i, "")) for i, reason in enumerate(reasons)]
