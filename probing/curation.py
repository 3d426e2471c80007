"""Which samples are kept, why the others are not, and the split by prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SPLITS = ("train", "val", "test")


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
    """least mean saturation, 0..1; drops greyscale and line art where above 0"""
    train: float = 64
    """training samples: a number, or a share below 1 of the kept"""
    val: float = 32
    """validation samples, likewise; 0 for the paper's protocol"""
    test: float = 0
    """test samples, likewise; 0 takes the rest"""
    salt: str = "scenesweep"
    """changes which prompts fall into which part"""


@dataclass(frozen=True)
class Decision:
    """What became of one sample."""

    sample: int
    keep: bool
    reason: str
    split: str


def saturation(images: np.ndarray) -> np.ndarray:
    """Mean HSV saturation of uint8 images (n, H, W, 3), shape (n,)."""
    high, low = images.max(-1).astype(np.float32), images.min(-1).astype(np.float32)
    return ((high - low) / np.maximum(high, 1)).mean((1, 2))


def drop_reason(image: np.ndarray, foreground: float, config: CurationConfig) -> str:
    """Why an image is dropped, or an empty string. `foreground` is its share of salient pixels."""
    if image.std() < config.min_contrast:
        return "blank"
    if config.min_saturation > 0 and saturation(image[None])[0] < config.min_saturation:
        return "greyscale"
    if foreground < config.min_foreground:
        return "no salient object"
    return "salient object fills the image" if foreground > config.max_foreground else ""


def _order(text: str, salt: str) -> bytes:
    return hashlib.sha256(f"{salt}\n{text}".encode()).digest()


def _size(value: float, total: int) -> int:
    return round(value * total) if value < 1 else int(value)


def split_by_prompt(prompts: Sequence[str], config: CurationConfig) -> list[str]:
    """The part of each prompt; equal prompts fall into the same part (fixed by hash).

    Raises ValueError where there are too few prompts for the sizes asked for.
    """
    distinct = sorted(set(prompts), key=lambda text: _order(text, config.salt))
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


def curate(
    images: np.ndarray,
    foreground: np.ndarray,
    prompts: Sequence[str],
    given: Sequence[str],
    config: CurationConfig,
) -> list[Decision]:
    """Decides over all samples. `given` holds splits that come with the prompts, or "" each."""
    reasons = [
        drop_reason(image, float(share), config)
        for image, share in zip(images, foreground, strict=True)
    ]
    kept = [i for i, reason in enumerate(reasons) if not reason]
    if any(given):
        parts = {i: given[i] for i in kept}
    else:
        parts = dict(zip(kept, split_by_prompt([prompts[i] for i in kept], config), strict=True))
    return [
        Decision(i, not reason, reason, parts.get(i, "")) for i, reason in enumerate(reasons)
    ]
