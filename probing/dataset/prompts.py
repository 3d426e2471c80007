"""Prompts and seeds: from the scenes grammar, or from files; which are used, and what was left out."""

from __future__ import annotations

import glob
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probing.dataset import prompt_files
from probing.dataset.prompt_files import Limits, Row

SEED_LIMIT = 10**8
"""seeds are drawn uniformly below this (protocol)"""
_SCENES_FIRST = 20_000_000


@dataclass(frozen=True)
class PromptConfig:
    """Where prompts come from."""

    source: str = "scenes"
    """`scenes` (the grammar), or a file or glob: .csv, .parquet, .jsonl, .txt"""
    count: int = 0
    """how many prompts to take; 0 takes all of a file"""
    seed: int = 0
    """seed of the draw of prompts, and of sample seeds where the file has none"""
    encoding: str = "utf-8"
    """of CSV, JSON and text files; the authors' scripts read theirs as iso-8859-1, and so made their images"""
    test: str = ""
    """a second file whose prompts are the test split (the authors' two CSV files)"""
    min_score: float = 0.0
    """least aesthetic score, where the file has one"""
    max_unsafe: float = 1.0
    """largest `punsafe`, where the file has one; 1 keeps all"""
    max_watermark: float = 1.0
    """largest `pwatermark`, where the file has one; 1 keeps all"""


@dataclass(frozen=True)
class Prompt:
    """One sample to be: its text, the seed of its latent, a given split or none, and its file's name for it."""

    text: str
    seed: int
    split: str = ""
    name: str = ""


@dataclass(frozen=True)
class Reading:
    """Prompts and what was left out on the way."""

    prompts: tuple[Prompt, ...]
    dropped: dict[str, int]
    """reason to number of rows"""


def read(config: PromptConfig) -> Reading:
    """All prompts of a configuration. Raises ValueError naming file, row and cure."""
    if config.source == "scenes":
        if config.count < 1:
            raise ValueError("prompts.count: scenes prompts need a number of 1 or more")
        return Reading(tuple(_scenes(config.count, config.seed)), {})
    dropped: Counter[str] = Counter()
    prompts = _from_file(config, config.source, "train" if config.test else "", dropped)
    if config.test:
        prompts += _from_file(config, config.test, "test", dropped)
    left_out = {reason: count for reason, count in sorted(dropped.items()) if count}
    if not prompts:
        raise ValueError(f"prompts.source: {config.source} holds no usable prompt; dropped {left_out}")
    return Reading(tuple(prompts), left_out)


def _scenes(count: int, seed: int) -> Iterator[Prompt]:
    """Captions of scenes that were never rendered for training, each once."""
    from probing.scenes.render import draw_scene

    rng = np.random.default_rng((seed, 7))
    seen: set[str] = set()
    scene = _SCENES_FIRST + seed * 1_000_000
    while len(seen) < count:
        text = draw_scene(scene).caption
        scene += 1
        if text not in seen:
            seen.add(text)
            yield Prompt(text, int(rng.integers(SEED_LIMIT)))


def _from_file(config: PromptConfig, source: str, split: str, dropped: Counter[str]) -> list[Prompt]:
    limits = Limits(config.min_score, config.max_unsafe, config.max_watermark)
    rows = [row for path in _paths(source) for row in prompt_files.read(path, config.encoding, limits, dropped)]
    unique = rows if split else _distinct(rows, dropped)
    if config.count and not split:
        unique = _draw(unique, config)
    return [
        Prompt(row.text, _seed_of(row.text, config.seed) if row.seed is None else row.seed, split, row.name)
        for row in unique
    ]


def _paths(source: str) -> list[Path]:
    if Path(source).is_file():
        return [Path(source)]
    found = [Path(path) for path in sorted(glob.glob(source)) if Path(path).is_file()]
    if not found:
        raise ValueError(f"prompts.source: no file {source}; give 'scenes', a file or a glob")
    return found


def _distinct(rows: Sequence[Row], dropped: Counter[str]) -> list[Row]:
    """Each prompt once (protocol), or each prompt and seed where seeds are given."""
    first: dict[tuple[str, int | None], Row] = {}
    for row in rows:
        first.setdefault((row.text, row.seed), row)
    kept = list(first.values())
    dropped["duplicate"] += len(rows) - len(kept)
    return kept


def _draw(rows: list[Row], config: PromptConfig) -> list[Row]:
    if len(rows) < config.count:
        raise ValueError(f"prompts.count: asked for {config.count}, {config.source} has {len(rows)}")
    chosen = np.random.default_rng(config.seed).choice(len(rows), config.count, replace=False)
    return [rows[i] for i in sorted(chosen)]


def _seed_of(text: str, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % SEED_LIMIT
