"""Prompts and seeds: from the scenes grammar, or from files (CSV, Parquet, JSON lines, plain text)."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

SEED_LIMIT = 10**8
"""seeds are drawn uniformly below this (protocol)"""
_SCENES_FIRST = 20_000_000
_TEXT = ("prompts", "prompt", "caption", "text")
_SEEDS = ("seeds", "seed")
_SCORES = ("aesthetic_score", "aesthetic")


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
    """of CSV, JSON and text files; the authors' scripts read ISO-8859-1 and garble 39 prompts"""
    test: str = ""
    """a second file whose prompts are the test split (the authors' two CSV files)"""
    min_score: float = 0.0
    """least aesthetic score, where the file has one"""
    max_unsafe: float = 1.0
    """largest `punsafe`, where the file has one"""


@dataclass(frozen=True)
class Prompt:
    """One sample to be: its text, the seed of its latent, and a given split or none."""

    text: str
    seed: int
    split: str = ""


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
    reading = _from_file(config, config.source, "train" if config.test else "")
    if config.test:
        other = _from_file(config, config.test, "test")
        dropped = {
            reason: reading.dropped.get(reason, 0) + other.dropped.get(reason, 0)
            for reason in {*reading.dropped, *other.dropped}
        }
        reading = Reading(reading.prompts + other.prompts, dropped)
    if not reading.prompts:
        raise ValueError(f"prompts.source: {config.source} holds no usable prompt; dropped {reading.dropped}")
    return reading


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


def _from_file(config: PromptConfig, source: str, split: str) -> Reading:
    paths = sorted(glob.glob(source))
    if not paths:
        raise ValueError(f"prompts.source: no file {source}; give 'scenes', a file or a glob")
    rows: list[tuple[str, int | None]] = []
    dropped: dict[str, int] = {}
    for path in paths:
        rows += _rows(Path(path), config, dropped)
    given = any(seed is not None for _, seed in rows)
    unique = rows if given else _distinct(rows, dropped)
    if config.count and not split:
        unique = _draw(unique, config)
    return Reading(
        tuple(Prompt(text, _seed_of(text, config.seed) if seed is None else seed, split) for text, seed in unique),
        dropped,
    )


def _distinct(rows: Sequence[tuple[str, int | None]], dropped: dict[str, int]) -> list[tuple[str, int | None]]:
    kept = list(dict(rows).items())
    if len(kept) < len(rows):
        dropped["duplicate"] = dropped.get("duplicate", 0) + len(rows) - len(kept)
    return kept


def _draw(rows: list[tuple[str, int | None]], config: PromptConfig) -> list[tuple[str, int | None]]:
    if len(rows) < config.count:
        raise ValueError(f"prompts.count: asked for {config.count}, {config.source} has {len(rows)}")
    chosen = np.random.default_rng(config.seed).choice(len(rows), config.count, replace=False)
    return [rows[i] for i in sorted(chosen)]


def _seed_of(text: str, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % SEED_LIMIT


def _rows(path: Path, config: PromptConfig, dropped: dict[str, int]) -> Iterator[tuple[str, int | None]]:
    kinds = {".csv": _csv_rows, ".jsonl": _json_rows, ".txt": _text_rows}
    if path.suffix == ".parquet":
        found = _parquet_rows(path, config, dropped)
    elif path.suffix in kinds:
        try:
            text = path.read_text(encoding=config.encoding)
        except (UnicodeDecodeError, LookupError) as error:
            raise ValueError(f"prompts.encoding: {path} is not {config.encoding}: {error}") from error
        found = kinds[path.suffix](path, text)
    else:
        raise ValueError(f"prompts.source: {path} is no .csv, .parquet, .jsonl or .txt")
    for text, seed in found:
        if text.strip():
            yield text, seed
        else:
            dropped["empty"] = dropped.get("empty", 0) + 1


def _find(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in names}
    return next((lower[name] for name in wanted if name in lower), None)


def _column(path: Path, names: Sequence[str], wanted: Sequence[str]) -> str:
    found = _find(names, wanted)
    if found is None:
        raise ValueError(f"prompts.source: {path} has no column {' / '.join(wanted)}; it has {', '.join(names)}")
    return found


def _seed(path: Path, row: int, value: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise ValueError(f"prompts.source: {path} row {row}: seed {value!r} is no integer") from error


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, int | None]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    names = reader.fieldnames or []
    prompt, seed = _column(path, names, _TEXT), _find(names, _SEEDS)
    for number, row in enumerate(reader, start=2):
        if row[prompt] is None or None in row:
            raise ValueError(f"prompts.source: {path} row {number}: {len(names)} fields expected")
        yield row[prompt], _seed(path, number, row[seed]) if seed else None


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, int | None]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"prompts.source: {path} row {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"prompts.source: {path} row {number}: no JSON object")
        seed = _find(list(row), _SEEDS)
        prompt = _column(path, list(row), _TEXT)
        yield str(row[prompt]), _seed(path, number, str(row[seed])) if seed else None


def _text_rows(path: Path, text: str) -> Iterator[tuple[str, int | None]]:
    for line in text.splitlines():
        yield line, None


def _parquet_rows(path: Path, config: PromptConfig, dropped: dict[str, int]) -> Iterator[tuple[str, int | None]]:
    file = pq.ParquetFile(path)
    names = file.schema_arrow.names
    prompt, score, unsafe = _column(path, names, _TEXT), _find(names, _SCORES), _find(names, ["punsafe"])
    seed = _find(names, _SEEDS)
    columns = [name for name in (prompt, score, unsafe, seed) if name]
    for batch in file.iter_batches(columns=columns):
        for row in batch.to_pylist():
            reason = _refused(row, score, unsafe, config)
            if reason:
                dropped[reason] = dropped.get(reason, 0) + 1
            else:
                yield row[prompt] or "", row[seed] if seed else None


def _refused(row: dict, score: str | None, unsafe: str | None, config: PromptConfig) -> str:
    if score and config.min_score > 0 and (row[score] is None or row[score] < config.min_score):
        return "low score"
    if unsafe and config.max_unsafe < 1 and (row[unsafe] is None or row[unsafe] > config.max_unsafe):
        return "unsafe"
    return ""
