"""Conditioning inputs of the UNet: text states, and for XL also the pooled text and the image size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from probing.diffusion.model import LatentDiffusion, SecondText, tokenize


class Conditions(TypedDict, total=False):
    """Keyword arguments of the UNet's forward pass."""

    encoder_hidden_states: Tensor
    """(n, positions, width)"""
    added_cond_kwargs: dict[str, Tensor]
    """XL alone: `text_embeds` (n, width) and `time_ids` (n, 6)"""


@torch.inference_mode()
def conditions(model: LatentDiffusion, prompts: Sequence[str], guided: bool) -> Conditions:
    """Keyword arguments of the UNet for a batch; with guidance [unconditional, conditional], (2n, ...)."""
    if model.second is None:
        states = model.encode(prompts)
        if guided:
            states = torch.cat([model.encode([""]).expand_as(states), states])
        return {"encoder_hidden_states": states}
    states, pooled = _encode_twice(model, model.second, prompts)
    if guided:
        if model.second.empty_is_zero:
            empty_states, empty_pooled = torch.zeros_like(states), torch.zeros_like(pooled)
        else:
            empty_states, empty_pooled = _encode_twice(model, model.second, [""])
        states = torch.cat([empty_states.expand_as(states), states])
        pooled = torch.cat([empty_pooled.expand_as(pooled), pooled])
    # original size, crop offset and target size, as in diffusers' XL pipeline
    size = [*model.image_size, 0, 0, *model.image_size]
    time_ids = torch.tensor(size, dtype=states.dtype, device=states.device).expand(len(states), -1)
    return {"encoder_hidden_states": states, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": time_ids}}


def _encode_twice(model: LatentDiffusion, second: SecondText, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """XL's penultimate states of both encoders (n, positions, sum of widths), and pooled text (n, width)."""
    pairs = ((model.text_encoder, model.tokenizer), (second.encoder, second.tokenizer))
    outputs = [e(tokenize(t, prompts).to(model.device), output_hidden_states=True) for e, t in pairs]
    return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[1][0]
