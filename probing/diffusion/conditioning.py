"""What the UNet is told about the prompts: text states, and for XL also a pooled text and the image's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from probing.diffusion.model import LatentDiffusion


@dataclass(frozen=True)
class SecondText:
    """XL's second text encoder, whose pooled output conditions the UNet too."""

    encoder: nn.Module
    tokenizer: Any
    empty_is_zero: bool
    """whether the empty prompt of guidance stands for zeros"""


def tokens(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Token numbers (n, positions), padded and cut to the encoder's length."""
    return tokenizer(
        list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids


@torch.inference_mode()
def conditions(model: LatentDiffusion, prompts: Sequence[str], guided: bool) -> dict[str, Any]:
    """Keyword arguments of the UNet for a batch; with guidance [unconditional, conditional], (2n, ...)."""
    if model.second is None:
        states = model.encode(prompts)
        if guided:
            states = torch.cat([model.encode([""]).expand_as(states), states])
        return {"encoder_hidden_states": states}
    states, pooled = _both(model, model.second, prompts)
    if guided:
        without = [torch.zeros_like(x) for x in (states, pooled)]
        if not model.second.empty_is_zero:
            without = [x.expand_as(y) for x, y in zip(_both(model, model.second, [""]), (states, pooled), strict=True)]
        states, pooled = torch.cat([without[0], states]), torch.cat([without[1], pooled])
    size = [*model.image_size, 0, 0, *model.image_size]
    times = torch.tensor(size, dtype=states.dtype, device=states.device).expand(len(states), -1)
    return {"encoder_hidden_states": states, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": times}}


def _both(model: LatentDiffusion, second: SecondText, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """XL's states (n, positions, both widths), of the last layer but one, and pooled text (n, width)."""
    pairs = ((model.text_encoder, model.tokenizer), (second.encoder, second.tokenizer))
    found = [e(tokens(t, prompts).to(model.device), output_hidden_states=True) for e, t in pairs]
    return torch.cat([out.hidden_states[-2] for out in found], dim=-1), found[1][0]
