"""How many tokens prompts have, and which are cut; reads a model's tokenizers without transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from probing.dataset.prompts import Prompt
from probing.scenes.grammar import WORDS

SPECIAL = 2
"""marks of start and end, which every prompt has besides its own tokens"""
SHOWN = 5
"""prompts that a message names"""


def check_words(prompts: Sequence[Prompt]) -> None:
    """Raise ValueError for the first prompt with a word that the scenes model was not trained on."""
    for prompt in prompts:
        for word in prompt.text.lower().split():
            if word not in WORDS:
                place = f" ({prompt.place})" if prompt.place else ""
                raise ValueError(
                    f"prompt {prompt.text[:200]!r}{place}: the scenes model does not know {word[:50]!r}; "
                    f"its words: {' '.join(WORDS)}"
                )


def with_cuts(prompts: Sequence[Prompt], folder: Path) -> tuple[Prompt, ...]:
    """The prompts with the number of tokens that the text encoders of a pipeline do not see.

    folder: the pipeline's configuration files. With two encoders, the larger number counts. Raises ValueError if a
    tokenizer cannot be read.
    """
    found = list(prompts)
    for suffix in ("", "_2"):
        part = folder / f"tokenizer{suffix}"
        if not part.is_dir():
            continue
        limit = _positions(folder, suffix) - SPECIAL
        tokenizer = _tokenizer(part)  # in any case, so that a damaged one is found
        # a token has at least one byte, so that short prompts need no count
        long = [i for i, prompt in enumerate(found) if len(prompt.text.encode(errors="replace")) > limit]
        encoded = tokenizer.encode_batch([found[i].text for i in long], add_special_tokens=False)
        for i, tokens in zip(long, encoded, strict=True):
            found[i] = replace(found[i], cut=max(found[i].cut, len(tokens.ids) - limit))
    return tuple(found)


def notes(prompts: Sequence[Prompt]) -> list[str]:
    """One line on the prompts that are cut, by row; none if there are none."""
    cut = [(prompt.place or f"sample {i}", prompt.cut) for i, prompt in enumerate(prompts) if prompt.cut]
    if not cut:
        return []
    shown = ", ".join(f"{place} by {count}" for place, count in cut[:SHOWN])
    more = f" and {len(cut) - SHOWN} more" if len(cut) > SHOWN else ""
    return [
        f"prompts: {len(cut)} of {len(prompts)} are longer than the model's text encoder reads, and their ends have no "
        f"effect; cut: {shown}{more} tokens (key `cut` of prompts.json has all)"
    ]


def _positions(folder: Path, suffix: str) -> int:
    """Tokens that an encoder reads, marks of start and end included."""
    encoder = json.loads((folder / f"text_encoder{suffix}" / "config.json").read_bytes())
    path, positions = (
        folder / f"tokenizer{suffix}" / "tokenizer_config.json",
        encoder.get("max_position_embeddings", 77),
    )
    settings = json.loads(path.read_bytes()) if path.exists() else {}
    return min(positions, int(settings.get("model_max_length") or positions))


def _tokenizer(part: Path) -> Tokenizer:
    """The tokenizer of a folder: its tokenizer.json, or CLIP's from vocab.json and merges.txt."""
    try:
        if (part / "tokenizer.json").exists():
            data = (part / "tokenizer.json").read_bytes()
            if b'"added_tokens"' not in data:
                raise ValueError("tokenizer.json has no added_tokens, which transformers needs")
            tokenizer = Tokenizer.from_buffer(data)
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return tokenizer
        # as in transformers' CLIPTokenizer, which takes a second to import
        vocabulary, merges = models.BPE.read_file(str(part / "vocab.json"), str(part / "merges.txt"))
        bpe = models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>", fuse_unk=False)
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"{part}: no readable tokenizer: {' '.join(str(error).split())[:200]}") from error
    tokenizer = Tokenizer(bpe)
    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer
