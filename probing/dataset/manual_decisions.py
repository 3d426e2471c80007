"""Decisions by hand: the CSV that the curation page writes, read back and checked against a run's samples."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COLUMNS = ("sample", "seed", "decision", "reason", "prompt")
WORDS = ("keep", "drop")
LIMIT = 200
"""characters of a reason"""


@dataclass(frozen=True)
class Choice:
    """What a person decided over one sample."""

    keep: bool
    reason: str = ""


def parse(data: bytes, where: str, seeds: Sequence[int]) -> dict[int, Choice]:
    """Choices by sample from the bytes of a CSV; `seeds` are those of the run's samples.

    Columns sample, seed, decision (keep or drop), reason; a later row of the same sample wins.
    Raises ValueError naming file, row and cure; a file of another run is told by its seeds.
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
            f"--decisions: {where} has no column {', '.join(missing)}; it has {', '.join(names) or 'none'}"
        )
    reader.fieldnames = names
    return dict(_choice(where, number, row, seeds) for number, row in enumerate(reader, start=2))


def _choice(where: str, number: int, row: Mapping, seeds: Sequence[int]) -> tuple[int, Choice]:
    place = f"--decisions: {where} row {number}"
    if None in row or None in (row["sample"], row["seed"], row["decision"]):
        raise ValueError(f"{place}: another number of fields than the first line has")
    try:
        sample, seed = int(row["sample"]), int(row["seed"])
    except ValueError:
        raise ValueError(f"{place}: sample {row['sample']!r}, seed {row['seed']!r}: whole numbers expected") from None
    if not 0 <= sample < len(seeds):
        raise ValueError(f"{place}: no sample {sample} in this run, which has {len(seeds)}")
    if seed != seeds[sample]:
        raise ValueError(
            f"{place}: sample {sample} has seed {seeds[sample]} here, not {seed}: decisions of another run"
        )
    word = row["decision"].strip().lower()
    if word not in WORDS:
        raise ValueError(f"{place}: decision {row['decision']!r}; write keep or drop")
    return sample, Choice(word == "keep", " ".join((row.get("reason") or "").split())[:LIMIT])


def render(choices: Mapping[int, Choice], seeds: Sequence[int], prompts: Sequence[str]) -> bytes:
    """The CSV of choices in order of samples: equal choices, equal bytes."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for sample, choice in sorted(choices.items()):
        writer.writerow([sample, seeds[sample], WORDS[not choice.keep], choice.reason, prompts[sample]])
    return text.getvalue().encode()
