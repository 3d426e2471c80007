"""Readers of prompt files: CSV, LAION's Parquet in its schemas, JSON lines, plain text; rows keep their bytes."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

TEXT = ("prompts", "prompt", "caption", "text")
SEEDS = ("seeds", "seed")
NAMES = ("prompt_inds", "id", "key")
"""columns that name a row; LAION's `hash` and `URL` are left alone"""
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Row:
    """One prompt as its file has it."""

    text: str
    seed: int | None
    name: str = ""
    """what the file calls it (the authors' `prompt_inds`), or an empty string"""


@dataclass(frozen=True)
class Limits:
    """Which rows of a Parquet file are left out; a file without the column is not filtered by it."""

    min_score: float = 0.0
    max_unsafe: float = 1.0
    max_watermark: float = 1.0


FILTERS = (
    # columns that hold it, the limit's field, comparison, value that means no limit, reason
    (("aesthetic_score", "aesthetic"), "min_score", pc.greater_equal, 0.0, "low score"),
    (("punsafe",), "max_unsafe", pc.less_equal, 1.0, "unsafe"),
    (("pwatermark",), "max_watermark", pc.less_equal, 1.0, "watermark"),
)


def read(path: Path, encoding: str, limits: Limits, dropped: Counter[str]) -> Iterator[Row]:
    """Rows of a file; what is empty or filtered is counted in `dropped` instead.

    Raises ValueError naming file, row and cure.
    """
    kinds = {".csv": _csv_rows, ".jsonl": _json_rows, ".txt": _text_rows}
    if path.suffix == ".parquet":
        found: Iterable[Row] = _parquet_rows(path, limits, dropped)
    elif path.suffix in kinds:
        found = kinds[path.suffix](path, _decoded(path, encoding))
    else:
        raise ValueError(f"prompts.source: {path} is no .csv, .parquet, .jsonl or .txt")
    for row in found:
        if row.text.strip():
            yield row
        else:
            dropped["empty"] += 1


def _decoded(path: Path, encoding: str) -> str:
    """The text without changing a line end, which a quoted field may hold; a byte order mark is dropped."""
    try:
        return path.read_bytes().decode(encoding).removeprefix("\ufeff")
    except (UnicodeDecodeError, LookupError) as error:
        raise ValueError(f"prompts.encoding: {path} is not {encoding}: {error}") from error
    except OSError as error:
        raise ValueError(f"prompts.source: {path} can't be read: {error.strerror}") from error


def _find(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    lower = {name.strip().lower(): name for name in names}
    return next((lower[name] for name in wanted if name in lower), None)


def _column(path: Path, names: Sequence[str], wanted: Sequence[str]) -> str:
    found = _find(names, wanted)
    if found is None:
        raise ValueError(
            f"prompts.source: {path} has no column {' / '.join(wanted)}; it has {', '.join(names) or 'none'}"
        )
    return found


def _error(path: Path, row: int, what: str) -> ValueError:
    return ValueError(f"prompts.source: {path} row {row}: {what}")


def _seed(path: Path, row: int, value: Any) -> int | None:
    """A seed from a number or its text, None where there is none."""
    if value is None or value == "":
        return None
    try:
        found: float | None = int(value) if isinstance(value, int | str) else float(value)
    except (ValueError, TypeError):
        found = _float(value)
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    if isinstance(value, bool) or not isinstance(found, int):
        raise _error(path, row, f"seed {value!r} is no integer")
    if not 0 <= found <= LARGEST_SEED:
        raise _error(path, row, f"seed {value!r} is not within 0 and 2**63 - 1")
    return found


def _float(value: Any) -> float | None:
    try:
        return float(value)
    except (ValueError, TypeError):
        return None


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    number = 1
    try:
        names = list(reader.fieldnames or [])
        prompt, seed, name = _column(path, names, TEXT), _find(names, SEEDS), _find(names, NAMES)
        for number, row in enumerate(reader, start=2):
            if None in row or None in row.values():
                raise _error(path, number, f"{len(names)} fields expected")
            yield Row(row[prompt], _seed(path, number, row[seed]) if seed else None, row[name] if name else "")
    except csv.Error as error:
        raise _error(path, number + 1, f"broken CSV: {error}") from error


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise _error(path, number, f"broken JSON: {error}") from error
        if not isinstance(row, Mapping):
            raise _error(path, number, "no JSON object")
        names = list(row)
        if _find(names, TEXT) is None:
            raise _error(path, number, f"no key {' / '.join(TEXT)}; it has {', '.join(names) or 'none'}")
        yield _json_row(path, number, row, names)


def _json_row(path: Path, number: int, row: Mapping[str, Any], names: list[str]) -> Row:
    text, seed, name = (row.get(key) if key else None for key in (_find(names, k) for k in (TEXT, SEEDS, NAMES)))
    if text is not None and not isinstance(text, str):
        raise _error(path, number, f"prompt {text!r} is no text")
    return Row(text or "", _seed(path, number, seed), "" if name is None else str(name))


def _text_rows(path: Path, text: str) -> Iterator[Row]:
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    for line in lines:
        yield Row(line.removesuffix("\r"), None)


def _parquet_rows(path: Path, limits: Limits, dropped: Counter[str]) -> Iterator[Row]:
    """By row group, the needed columns alone, filtered before anything becomes a Python object."""
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"prompts.source: {path} is no readable Parquet file: {error}") from error
    prompt, seed, name = _column(path, names, TEXT), _find(names, SEEDS), _find(names, NAMES)
    kind = file.schema_arrow.field(prompt).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"prompts.source: {path}: column {prompt} holds {kind}, not text")
    filters = [(_find(names, columns), *rest) for columns, *rest in FILTERS]
    active = [f for f in filters if f[0] and getattr(limits, f[1]) != f[3]]
    wanted = list(dict.fromkeys([c for c in (prompt, seed, name) if c] + [f[0] for f in active]))
    start = 1
    try:
        for batch in file.iter_batches(columns=wanted, batch_size=65_536):
            table = pa.Table.from_batches([batch]).append_column("row", [pa.array(range(start, start + len(batch)))])
            start += len(batch)
            for column, limit, compare, _, reason in active:
                passed = pc.fill_null(compare(table[column], getattr(limits, limit)), False)
                dropped[reason] += len(table) - (pc.sum(passed).as_py() or 0)
                table = table.filter(passed)
            yield from _table_rows(path, table, prompt, seed, name)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"prompts.source: {path} is damaged after row {start - 1}: {error}") from error


def _table_rows(path: Path, table: pa.Table, prompt: str, seed: str | None, name: str | None) -> Iterator[Row]:
    nothing = [None] * len(table)
    seeds = table[seed].to_pylist() if seed else nothing
    named = table[name].to_pylist() if name else nothing
    for number, text, given, called in zip(
        table["row"].to_pylist(), table[prompt].to_pylist(), seeds, named, strict=True
    ):
        yield Row(text or "", _seed(path, number, given), "" if called is None else str(called))
