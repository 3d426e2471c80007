"""Rates that were measured on cards: the files of `scenesweep bench gpu` that ship with the package, `CARD.json`.

`plan` takes the first of them by name in place of assumptions, or the one that `--rates` names. There is none yet:
until a card has been measured, prices rest on assumptions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.planning.rates import UNITS, Rates

VERSION = 1
"""of the file"""
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Measured:
    """What one card does."""

    card: str
    model: str
    """that was sampled"""
    steps: int
    """denoising steps of a sample"""
    rates: Rates


def shipped() -> Measured | None:
    """The card whose rates are used if none are named; None if no file ships."""
    files = sorted(FOLDER.glob("*.json"))
    return read(files[0]) if files else None


def find(name: str) -> Measured:
    """The rates of a file, or of a card whose file ships. Raises ValueError if there is none or it has none."""
    own = FOLDER / f"{name}.json"
    return read(own if own.is_file() else Path(name))


def read(path: Path) -> Measured:
    """The rates in a file of `bench gpu`. Raises ValueError for another file, or one of a rehearsal."""
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.json"))) or "none"
        raise ValueError(
            f"--rates {path}: can't be read: {error.strerror}; give a file of `bench gpu`, NAME=NUMBER pairs or a card "
            f"whose rates ship: {known}"
        ) from error
    except ValueError as error:
        raise ValueError(f"--rates {path}: no JSON: {error}; give a file of `scenesweep bench gpu`") from error
    if not isinstance(values, dict) or values.get("bench") != "gpu" or values.get("version") != VERSION:
        raise ValueError(f"--rates {path}: not a file that this version's `scenesweep bench gpu` wrote")
    if values.get("narrow") or values.get("device") != "cuda":
        raise ValueError(
            f"--rates {path}: of a rehearsal with narrow networks, which prices no run; measure on a card with "
            "`scenesweep bench gpu`"
        )
    rates = values.get("rates")
    if not isinstance(rates, dict) or not rates:
        raise ValueError(f"--rates {path}: holds no rate: {_why(values)}; measure again")
    if unknown := [name for name, rate in rates.items() if name not in UNITS or not _positive(rate)]:
        raise ValueError(f"--rates {path}: {unknown[0]}={rates[unknown[0]]}: no rate; measure again")
    card = values.get("machine", {}).get("card", "a card without a name")
    return Measured(str(card), values["model"], int(values["steps"]), Rates.read(rates))


def _positive(rate: Any) -> bool:
    return isinstance(rate, int | float) and 0 < rate < float("inf")


def _why(values: dict[str, Any]) -> str:
    errors = [f"{name}: {piece['error']}" for name, piece in values.get("pieces", {}).items() if piece.get("error")]
    return errors[0] if errors else "nothing was measured"
