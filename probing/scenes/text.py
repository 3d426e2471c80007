"""Tokenizer over the grammar's words and a small CLIP text encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from probing.scenes.grammar import MAX_WORDS, WORDS

POSITIONS = MAX_WORDS + 2
PAD = 0
"""token id of the padding"""
_PAD, _START, _END, _UNKNOWN = "<pad>", "<start>", "<end>", "<unknown>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word, start and end marks, and padding to the encoder's positions."""
    names = [_PAD, _START, _END, _UNKNOWN, *WORDS]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}", special_tokens=[(name, vocabulary[name]) for name in (_START, _END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_START,
        eos_token=_END,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        model_max_length=POSITIONS,
        padding_side="right",
    )


def build_encoder(width: int = 128, layers: int = 2, heads: int = 4) -> CLIPTextModel:
    """A CLIP text encoder with random weights."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(WORDS) + 4,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=POSITIONS,
            pad_token_id=PAD,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def tokenize(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> torch.Tensor:
    """Token ids, int64 (n, positions)."""
    return tokenizer(
        list(captions), padding="max_length", max_length=POSITIONS, truncation=True, return_tensors="pt"
    ).input_ids
