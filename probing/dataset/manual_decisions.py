"""Manual decisions: the CSV that the curation page saves, parsed and checked against a run's samples."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COLUMNS = ("sample", "seed", "decision", "reason", "prompt")
WORDS = ("keep", "drop")
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""first characters by which a spreadsheet takes a cell for a formula"""
LIMIT = 200
"""maximal number of characters of a reason"""


@dataclass(frozen=True)
class Choice:
    """A person's decision on one sample."""

    keep: bool
    reason: str = ""


def parse(data: bytes, where: str, seeds: Sequence[int]) -> dict[int, Choice]:
    """Choices by sample from the bytes of a CSV with columns sample, seed, decision (keep or drop) and reason.

    seeds: the seeds of the run's samples, which show whether the file belongs to this run. If a sample is listed
    twice, the later row counts. Raises ValueError naming file and row.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--decisions: {where} is not UTF-8: {error}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    names = [name.strip().lower() for name in reader.fieldnames or []]
    missing = [name for name in COLUMNS[:3] if name not in names]
    if missing:
        raise ValueError(
            f"--decisions: {where} has no column {', '.join(missing)}; its columns: {', '.join(names) or 'none'}"
        )
    reader.fieldnames = names
    return dict(_parse_row(f"--decisions: {where} row {number}", row, seeds) for number, row in enumerate(reader, 2))


def _parse_row(place: str, row: Mapping, seeds: Sequence[int]) -> tuple[int, Choice]:
    # csv puts surplus fields under the key None and fills up missing ones with None
    if None in row or None in (row["sample"], row["seed"], row["decision"]):
        raise ValueError(f"{place}: number of fields differs from that of the header")
    try:
        sample, seed = int(row["sample"]), int(row["seed"])
    except ValueError:
        raise ValueError(f"{place}: expected integers, got sample {row['sample']!r}, seed {row['seed']!r}") from None
    if not 0 <= sample < len(seeds):
        raise ValueError(f"{place}: no sample {sample} in this run, which has {len(seeds)}")
    if seed != seeds[sample]:
        raise ValueError(f"{place}: sample {sample} has seed {seeds[sample]}, not {seed}; give this run's decisions")
    word = row["decision"].strip().lower()
    if word not in WORDS:
        raise ValueError(f"{place}: decision {row['decision']!r}; write keep or drop")
    reason = " ".join((row.get("reason") or "").split())[:LIMIT]
    return sample, Choice(word == "keep", reason[1:] if reason.startswith(tuple(f"'{c}" for c in FORMULA)) else reason)


def _as_text(text: str) -> str:
    """A cell that a spreadsheet shows, and does not run as a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def render(choices: Mapping[int, Choice], seeds: Sequence[int], prompts: Sequence[str]) -> bytes:
    """The CSV of choices in order of samples; equal choices give equal bytes."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for sample, choice in sorted(choices.items()):
        texts = (_as_text(text) for text in (choice.reason, prompts[sample]))
        writer.writerow([sample, seeds[sample], WORDS[not choice.keep], *texts])
    return text.getvalue().encode()
