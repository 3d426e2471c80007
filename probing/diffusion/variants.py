"""Names of variants: a kind, optionally followed by an @ and the seed of the network's weights."""

from __future__ import annotations

import hashlib

OTHER_SEED = "same_prompt_other_seed"
"""the trained network on the same prompts with other noise: its probes measure what the text alone determines"""
VARIANTS = ("trained", "random", "reinit", "random_forced", OTHER_SEED)
"""kinds; a plain name uses the seed of the settings"""
SEEDED = ("random", "reinit", "random_forced")
"""kinds that can have a seed, as in `random@101`"""
MARK = "@"


def kind(name: str) -> str:
    """`random` for `random@101` and for `random`."""
    return name.partition(MARK)[0]


def is_plain(name: str) -> bool:
    """Whether a name has no seed of its own."""
    return MARK not in name


def own_seed(name: str, default: int) -> int:
    """101 for `random@101`; the default for a plain name. Raises ValueError if the seed is invalid."""
    if is_plain(name):
        return default
    text = name.partition(MARK)[2]
    if not (text.isascii() and text.isdecimal() and str(int(text)) == text and int(text) < 1 << 63):
        raise ValueError(f"{name!r}: what follows the @ must be a seed, a whole number as in random@101")
    if kind(name) not in SEEDED:
        raise ValueError(f"{name!r}: only {', '.join(SEEDED)} take a seed")
    return int(text)


def forced(name: str) -> bool:
    """Whether the variant's UNet gets the trained network's latents at each step."""
    return kind(name) == "random_forced"


def noise_seed(name: str, seed: int) -> int:
    """The seed of a sample's noise: its own, or one derived from it for another image of the same prompt."""
    if kind(name) != OTHER_SEED:
        return seed
    return int.from_bytes(hashlib.sha256(f"another image of seed {seed}".encode()).digest()[:4], "big")
