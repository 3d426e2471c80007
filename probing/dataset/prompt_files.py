"""Readers of prompt files: CSV, Parquet (LAION's schemas), JSON lines and plain text; texts keep their exact bytes."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

TEXT = ("prompts", "prompt", "caption", "text")
SEEDS = ("seeds", "seed")
NAMES = ("prompt_inds", "id", "key")
"""columns that name a row; LAION's `hash` and `URL` are ignored"""
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Row:
    """One row of a prompt file."""

    text: str
    seed: int | None
    name: str = ""
    """the row's name in the file (the authors' `prompt_inds`), or an empty string"""
    number: int = 0
    """the row in the file, as a person counts: from 1, and a CSV's header is row 1"""


@dataclass(frozen=True)
class Limits:
    """Which rows are dropped; a file without the column is not filtered by it."""

    min_score: float = 0.0
    max_unsafe: float = 1.0
    max_watermark: float = 1.0


FILTERS = (
    # names of the column, field of Limits, comparison, value that means no limit, reason
    (("aesthetic_score", "aesthetic"), "min_score", pc.greater_equal, 0.0, "low score"),
    (("punsafe",), "max_unsafe", pc.less_equal, 1.0, "unsafe"),
    (("pwatermark",), "max_watermark", pc.less_equal, 1.0, "watermark"),
)


def read(path: Path, encoding: str, limits: Limits, dropped: Counter[str]) -> Iterator[Row]:
    """Rows of a file; empty and filtered rows are counted in `dropped` instead.

    Raises ValueError naming file and row.
    """
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".txt": _text_rows}
    rows: Iterable[Row]
    kind = path.suffix.lower()
    if kind == ".parquet":
        rows = _parquet_rows(path, limits, dropped)
    elif kind in readers:
        rows = readers[kind](path, _decode(path, encoding), limits, dropped)
    else:
        raise ValueError(f"prompts.source: {path} is no .csv, .parquet, .jsonl or .txt")
    for row in rows:
        try:
            (row.text + row.name).encode()
        except UnicodeEncodeError:
            raise _error(path, row.number, "half of a surrogate pair is no text") from None
        if row.text.strip():
            yield row
        else:
            dropped["empty"] += 1


def _decode(path: Path, encoding: str) -> str:
    """The text with its line ends, which may be part of a quoted field, and without a byte order mark."""
    try:
        return path.read_bytes().decode(encoding).removeprefix("\ufeff")
    except (LookupError, ValueError) as error:  # an encoding with a null character is a plain ValueError
        raise ValueError(f"prompts.encoding: {path} is not {encoding}: {error}") from error
    except OSError as error:
        raise ValueError(f"prompts.source: {path} can't be read: {error.strerror}") from error


def _error(path: Path, row: int, problem: str) -> ValueError:
    shown = problem if len(problem) <= 300 else f"{problem[:297]}..."
    return ValueError(f"prompts.source: {path} row {row}: {shown}")


def _find(where: str, names: Sequence[str], candidates: Sequence[str]) -> str | None:
    """The first candidate among the names, whatever its case. Raises ValueError if two names fit it."""
    for candidate in candidates:
        fitting = [name for name in names if name.strip().lower() == candidate]
        if len(fitting) > 1:
            raise ValueError(
                f"prompts.source: {where} has {candidate} {len(fitting)} times ({', '.join(fitting)}); keep one"
            )
        if fitting:
            return fitting[0]
    return None


def _find_columns(path: Path, names: Sequence[str]) -> tuple[str, str | None, str | None]:
    """The columns of prompt, seed and name."""
    prompt, seed, name = (_find(str(path), names, columns) for columns in (TEXT, SEEDS, NAMES))
    if prompt is None:
        raise ValueError(
            f"prompts.source: {path} has no column {' / '.join(TEXT)}; its columns: {', '.join(names) or 'none'}"
        )
    return prompt, seed, name


def _active(where: str, names: Sequence[str], limits: Limits) -> list[tuple[str, str, Callable, str]]:
    """The limits that are set and that a file with columns of these names has: column, limit, comparison, reason."""
    found = []
    for columns, limit, compare, none, reason in FILTERS:
        column = _find(where, names, columns)
        if column and getattr(limits, limit) != none:
            found.append((column, limit, compare, reason))
    return found


def _drop_reason(path: Path, number: int, row: Mapping[str, object], limits: Limits) -> str:
    """Why a row of a text file is dropped; empty if it is kept. A missing value is dropped, as in Parquet files."""
    for column, limit, compare, reason in _active(f"{path} row {number}", list(row), limits):
        value = row[column]
        try:
            score = float(value) if isinstance(value, str | int | float) and value != "" else math.nan
        except ValueError:
            raise _error(path, number, f"{column} {value!r} is no number") from None
        if not compare(score, getattr(limits, limit)).as_py():
            return reason
    return ""


def _parse_seed(path: Path, row: int, value: object) -> int | None:
    """A seed from a number or its text; None if there is none."""
    if value is None or value == "":
        return None
    try:
        number = Decimal(str(value))  # exact up to 2**63, and accepts 7.0 as Parquet files have it
        within = 0 <= number <= LARGEST_SEED
    except ArithmeticError:
        raise _error(path, row, f"seed {value!r} is no integer") from None
    if not within:
        raise _error(path, row, f"seed {value!r} is not within 0 and 2**63 - 1")
    if number != int(number):
        raise _error(path, row, f"seed {value!r} is no integer")
    return int(number)


def _csv_rows(path: Path, text: str, limits: Limits, dropped: Counter[str]) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    number = 1
    try:
        names = list(reader.fieldnames or [])
        prompt, seed, name = _find_columns(path, names)
        for number, row in enumerate(reader, start=2):
            # csv puts surplus fields under the key None and fills up missing ones with None
            if None in row or None in row.values():
                raise _error(path, number, f"{len(names)} fields expected")
            if reason := _drop_reason(path, number, row, limits):
                dropped[reason] += 1
                continue
            value = _parse_seed(path, number, row[seed] if seed else None)
            yield Row(row[prompt], value, row[name] if name else "", number)
    except csv.Error as error:
        raise _error(path, number + 1, f"broken CSV: {error}") from error


def _json_rows(path: Path, text: str, limits: Limits, dropped: Counter[str]) -> Iterator[Row]:
    # str.splitlines would also split at separators inside the strings
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise _error(path, number, f"broken JSON: {error}") from error
        if not isinstance(row, Mapping):
            raise _error(path, number, "no JSON object")
        if reason := _drop_reason(path, number, row, limits):
            dropped[reason] += 1
            continue
        keys = [_find(f"{path} row {number}", list(row), columns) for columns in (TEXT, SEEDS, NAMES)]
        if keys[0] is None:
            raise _error(path, number, f"no key {' / '.join(TEXT)}; its keys: {', '.join(row) or 'none'}")
        prompt, seed, name = (row[key] if key else None for key in keys)
        if prompt is not None and not isinstance(prompt, str):
            raise _error(path, number, f"prompt {prompt!r} is no text")
        yield Row(prompt or "", _parse_seed(path, number, seed), "" if name is None else str(name), number)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; of a key that is there twice, JSON readers keep the last value in silence."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key is there twice")
    return row


def _text_rows(_path: Path, text: str, _limits: Limits, _dropped: Counter[str]) -> Iterator[Row]:
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        yield Row(line.removesuffix("\r"), None, number=number)


def _parquet_rows(path: Path, limits: Limits, dropped: Counter[str]) -> Iterator[Row]:
    """Read batch by batch and only the needed columns; filter before rows become Python objects."""
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"prompts.source: {path} is no readable Parquet file: {error}") from error
    prompt, seed, name = _find_columns(path, names)
    dtype = file.schema_arrow.field(prompt).type
    dtype = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
    if not (pa.types.is_string(dtype) or pa.types.is_large_string(dtype)):
        raise ValueError(f"prompts.source: {path}: column {prompt} holds {dtype}, not text")
    active = _active(str(path), names, limits)
    needed = list(dict.fromkeys([c for c in (prompt, seed, name) if c] + [f[0] for f in active]))
    start = 1
    try:
        for batch in file.iter_batches(columns=needed, batch_size=65_536):
            table = pa.Table.from_batches([batch]).append_column("row", [pa.array(range(start, start + len(batch)))])
            start += len(batch)
            for column, limit, compare, reason in active:
                passed = pc.fill_null(compare(table[column], getattr(limits, limit)), False)
                dropped[reason] += len(table) - (pc.sum(passed).as_py() or 0)
                table = table.filter(passed)
            none = [None] * len(table)
            columns = (table[column].to_pylist() if column else none for column in ("row", prompt, seed, name))
            for number, text, value, label in zip(*columns, strict=True):
                yield Row(text or "", _parse_seed(path, number, value), "" if label is None else str(label), number)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"prompts.source: {path} is damaged after row {start - 1}: {error}") from error
