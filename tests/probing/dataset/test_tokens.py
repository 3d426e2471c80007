"""Prompts that a text encoder cuts: counted as transformers' tokenizers do, told by row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from probing.dataset import tokens
from probing.dataset.prompts import Prompt
from probing.diffusion import metadata
from probing.diffusion.config import ModelConfig

WORDS = ["a", "red", "box", "on", "the", "café", "naïve", "it's", "42", "!!", "unbelievable"]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A pipeline folder with CLIP's tokenizer in its old form, of a tiny vocabulary, and 12 positions."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = ByteLevel.alphabet()
    merges = [("r", "e"), ("re", "d</w>"), ("b", "o"), ("bo", "x</w>"), ("t", "h"), ("th", "e</w>")]
    names = [*letters, *(f"{x}</w>" for x in letters), *("".join(pair) for pair in merges)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    part = tmp_path / "tokenizer"
    part.mkdir()
    (part / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (part / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    (part / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 12}))
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "config.json").write_text(json.dumps({"max_position_embeddings": 77}))
    return tmp_path


def test_tokens_are_counted_as_by_transformers(clip):
    reference = CLIPTokenizer.from_pretrained(clip / "tokenizer")
    texts = ["", "red box", "The RED  box\n on", " ".join(WORDS), "red " * 10, "red " * 11, "\U0001f600" * 9]
    found = tokens.with_cuts([Prompt(text, 0) for text in texts], clip)
    expected = [max(0, len(reference(text).input_ids) - 12) for text in texts]
    assert [prompt.cut for prompt in found] == expected
    assert expected[4:6] == [0, 1]


def test_the_scenes_model_reads_44_positions():
    folder = metadata.config_folder(ModelConfig())
    found = tokens.with_cuts([Prompt("red " * 42, 0), Prompt("red " * 45, 0, place="a.csv row 7")], folder)
    assert [prompt.cut for prompt in found] == [0, 3]
    (line,) = tokens.notes(found)
    assert "1 of 2" in line
    assert "a.csv row 7 by 3" in line
    assert tokens.notes(found[:1]) == []


def test_an_unreadable_tokenizer_is_one_line(clip):
    (clip / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="no readable tokenizer") as caught:
        tokens.with_cuts([Prompt("red " * 50, 0)], clip)
    assert "\n" not in str(caught.value)


def test_unknown_words_are_named_with_their_row():
    tokens.check_words([Prompt("a Red box", 0)])
    with pytest.raises(ValueError, match=r"\(a.csv row 3\): the scenes model does not know 'dragon'"):
        tokens.check_words([Prompt("a red dragon", 0, place="a.csv row 3")])
