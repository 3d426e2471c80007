"""Prompts and seeds of a run, from the scenes grammar or from files, and what was dropped."""

from __future__ import annotations

import glob
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probing.dataset import prompt_files
from probing.dataset.prompt_files import Limits, Row
from storage.backends import local_path

SEED_LIMIT = 10**8
"""seeds are drawn uniformly below this (protocol)"""
MOST_SCENES = 1_000_000
"""prompts of one seed; the scenes after them are those of the next seed"""
FIRST_SCENE = 20_000_000
"""first scene that prompts are drawn from; lower numbers are renders for training and evaluation"""


@dataclass(frozen=True)
class PromptConfig:
    """Where prompts come from."""

    source: str = "scenes"
    """`scenes` (the grammar), or a file or glob: .csv, .parquet, .jsonl, .txt"""
    count: int = 0
    """how many prompts to take, of each file if there are two; 0 takes all"""
    seed: int = 0
    """seed of the draw of prompts, and of sample seeds if the file has none"""
    encoding: str = "utf-8"
    """of CSV, JSON and text files; the authors' scripts read theirs as iso-8859-1, and so made their images"""
    test: str = ""
    """a second file whose prompts are the test split (the authors' two CSV files)"""
    min_score: float = 0.0
    """minimal aesthetic score, if the file has one"""
    max_unsafe: float = 1.0
    """maximal `punsafe`, if the file has one; 1 keeps all"""
    max_watermark: float = 1.0
    """maximal `pwatermark`, if the file has one; 1 keeps all"""

    def __post_init__(self) -> None:
        most = MOST_SCENES if self.source == "scenes" else math.inf
        if not 0 <= self.count <= most:
            limit = f" and at most {MOST_SCENES} of scenes" if self.count > 0 else ""
            raise ValueError(f"prompts.count={self.count}: must be 0 or more{limit}")
        for name in ("seed", "min_score", "max_unsafe", "max_watermark"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"prompts.{name}={getattr(self, name)}: must be 0 or more")
        if not self.source:
            raise ValueError("prompts.source is empty; give 'scenes', a file or a glob")


@dataclass(frozen=True)
class Prompt:
    """One sample that will be made."""

    text: str
    seed: int
    """of its initial latent"""
    split: str = ""
    """`train` or `test` if the files determine it"""
    name: str = ""
    """its name in the file"""
    place: str = ""
    """its file and row, for messages"""
    cut: int = 0
    """tokens beyond the text encoder's length, which the model does not see"""


@dataclass(frozen=True)
class Reading:
    """Prompts, and how many rows were dropped."""

    prompts: tuple[Prompt, ...]
    dropped: dict[str, int]
    """reason to number of rows"""


def read(config: PromptConfig) -> Reading:
    """All prompts of a configuration. Raises ValueError naming key, file and row."""
    if config.source == "scenes":
        check_grammar(config)
        return Reading(tuple(_scene_prompts(config.count, config.seed)), {})
    dropped: Counter[str] = Counter()
    prompts = _file_prompts(config, config.source, "train" if config.test else "", dropped)
    if config.test:
        test = _file_prompts(config, config.test, "test", dropped)
        _refuse_overlap(config, prompts, test)
        prompts += test
    counts = {reason: count for reason, count in sorted(dropped.items()) if count}
    if not prompts:
        raise ValueError(f"prompts.source: {config.source} has no usable prompt; dropped {counts}")
    return Reading(tuple(prompts), counts)


def check_grammar(config: PromptConfig) -> None:
    """Raise ValueError if settings of prompts from the grammar are those of files, or name no number."""
    if config.count < 1:
        raise ValueError(f"prompts.count={config.count}: scenes prompts need a number of 1 or more")
    defaults = PromptConfig()
    for key in ("test", "min_score", "max_unsafe", "max_watermark"):
        if getattr(config, key) != getattr(defaults, key):
            raise ValueError(f"prompts.{key}={getattr(config, key)}: prompts of the grammar have none; leave it out")


def _scene_prompts(count: int, seed: int) -> Iterator[Prompt]:
    """Distinct captions of scenes that were never rendered for training."""
    from probing.scenes.render import draw_scene  # imports torch

    rng = np.random.default_rng((seed, 7))
    seen: set[str] = set()
    scene = FIRST_SCENE + seed * MOST_SCENES
    while len(seen) < count:
        text = draw_scene(scene).caption
        scene += 1
        if text not in seen:
            seen.add(text)
            yield Prompt(text, int(rng.integers(SEED_LIMIT)))


def _refuse_overlap(config: PromptConfig, train: Sequence[Prompt], test: Sequence[Prompt]) -> None:
    """Raise ValueError if one of the two files is empty, or a pair of prompt and seed is in both."""
    for key, prompts in (("source", train), ("test", test)):
        if not prompts:
            raise ValueError(f"prompts.{key}: {getattr(config, key)} has no usable prompt")
    trained = {(prompt.text, prompt.seed): prompt.place for prompt in train}
    both = [prompt for prompt in test if (prompt.text, prompt.seed) in trained]
    if both:
        first = both[0]
        raise ValueError(
            f"prompts.test: {len(both)} of its prompts are training prompts too, with the same seed: {first.place} is "
            f"{trained[first.text, first.seed]}; give files without common rows"
        )


def _file_prompts(config: PromptConfig, source: str, split: str, dropped: Counter[str]) -> list[Prompt]:
    """Prompts of a file or glob. Those of a given split are taken as they are, others made distinct."""
    limits = Limits(config.min_score, config.max_unsafe, config.max_watermark)
    rows = [
        (f"{path.name} row {row.number}", row)
        for path in files_of(source, split)
        for row in prompt_files.read(path, config.encoding, limits, dropped)
    ]
    if not split:
        # each prompt once (protocol), or each pair of prompt and seed if the file has seeds
        distinct: dict[tuple[str, int | None], tuple[str, Row]] = {}
        for place, row in rows:
            distinct.setdefault((row.text, row.seed), (place, row))
        dropped["duplicate"] += len(rows) - len(distinct)
        rows = list(distinct.values())
    if len(rows) < config.count:
        raise ValueError(f"prompts.count={config.count}: {source} has only {len(rows)} prompts")
    if config.count:
        chosen = np.random.default_rng(config.seed).choice(len(rows), config.count, replace=False)
        rows = [rows[i] for i in sorted(chosen)]
    prompts = []
    for place, row in rows:
        digest = hashlib.sha256(f"{config.seed}\n{row.text}".encode()).digest()
        seed = int.from_bytes(digest[:8], "big") % SEED_LIMIT if row.seed is None else row.seed
        prompts.append(Prompt(row.text, seed, split, row.name, place))
    return prompts


def files_of(source: str, split: str = "") -> list[Path]:
    """The files of a path or glob. Raises ValueError if there is none."""
    key = "prompts.test" if split == "test" else "prompts.source"
    path = local_path(source, key)
    if path.is_file():  # first, because a name with brackets is a valid glob too
        return [path]
    paths = [Path(path) for path in sorted(glob.glob(str(path))) if Path(path).is_file()]
    if not paths:
        raise ValueError(f"{key}: no file {source}; give 'scenes', a file or a glob")
    return paths
