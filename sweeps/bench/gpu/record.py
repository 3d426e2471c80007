"""The file of a bench on a card: everything that was measured so far, rewritten atomically after every number."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.bench.paired import Row

VERSION = 1
RUNNING, DONE, FAILED, SKIPPED = "running", "done", "failed", "skipped"
"""states of a piece"""


@dataclass(eq=False)
class Record:
    """A file and what it holds."""

    path: Path
    document: dict[str, Any]

    @staticmethod
    def begin(path: Path, **about: object) -> Record:
        """Write the file of a bench that has measured nothing yet."""
        record = Record(path, {"bench": "gpu", "version": VERSION, **about, "machine": {}, "pieces": {}, "rates": {}})
        record.write()
        return record

    @staticmethod
    def read(path: Path) -> Record:
        """Read the file of a bench that has begun."""
        return Record(path, json.loads(path.read_text()))

    @property
    def pieces(self) -> dict[str, dict[str, Any]]:
        """Name of a piece -> its state, seconds, peak memory, rows and numbers; in order of execution."""
        return self.document["pieces"]

    def write(self) -> None:
        """Replace the file."""
        partial = self.path.with_name(f"{self.path.name}.partial")
        with partial.open("w") as file:
            json.dump(self.document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)

    def start(self, name: str, deadline: float) -> None:
        """Note that a piece has begun, and when it must end, in seconds since the epoch."""
        self.pieces[name] = {"state": RUNNING, "deadline": deadline, "rows": [], "numbers": {}}
        self.write()

    def end(self, name: str, state: str, error: str = "", **more: object) -> None:
        """Note that a piece has ended, or is left out."""
        piece = self.pieces.setdefault(name, {"rows": [], "numbers": {}})
        piece.pop("deadline", None)
        piece |= {"state": state, **({"error": error} if error else {}), **more}
        self.write()

    @property
    def running(self) -> str | None:
        """The piece that has begun and not ended."""
        return next((name for name, piece in self.pieces.items() if piece["state"] == RUNNING), None)

    @property
    def rows(self) -> list[Row]:
        """The rows of all pieces."""
        return [row for piece in self.pieces.values() for row in piece["rows"]]

    def number(self, piece: str, name: str) -> float | None:
        """A number of a piece, if it was measured."""
        return self.pieces.get(piece, {}).get("numbers", {}).get(name, {}).get("value")
