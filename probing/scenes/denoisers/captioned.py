"""Latents with their captions, from which the steps of a denoiser's training draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probing.scenes import text

CAPTION_DROPOUT = 0.1
"""share of the captions replaced by the empty one, for guidance"""


@dataclass(frozen=True, eq=False)
class Captioned:
    """N latents and their captions on the device of the training."""

    latents: Tensor
    """(N, 4, h, w), scaled"""
    tokens: Tensor
    """int64 (N, positions)"""
    empty: Tensor
    """int64 (1, positions), the empty caption"""

    @staticmethod
    def of(latents: Tensor, captions: Sequence[str], device: str) -> Captioned:
        """Tokenize the captions and move everything to a device."""
        tokenizer = text.build_tokenizer()
        tokens, empty = (text.tokenize(tokenizer, words).to(device) for words in (captions, [""]))
        return Captioned(latents.to(device), tokens, empty)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random latents (count, 4, h, w) and their tokens (count, positions), some of them of the empty caption."""
        device = generator.device
        which = torch.randint(len(self.latents), (count,), generator=generator, device=device)
        dropped = torch.rand(count, generator=generator, device=device) < CAPTION_DROPOUT
        return self.latents[which], torch.where(dropped[:, None], self.empty, self.tokens[which])


def spread(count: int, generator: torch.Generator) -> Tensor:
    """One number from each of `count` equal parts of 0 to 1, so that each batch has all noise levels."""
    device = generator.device
    return (torch.arange(count, device=device) + torch.rand(count, generator=generator, device=device)) / max(1, count)
