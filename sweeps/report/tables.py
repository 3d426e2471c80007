"""Tables of the report, and the HTML of numbers in cells and sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup, escape

from probing.statistics import Interval
from sweeps.analysis.words import MISSING, bounds, number


class Num(Markup):
    """HTML of a number, aligned to the right."""


Cell = object
"""text, `Markup`, a number, an `Interval`, or None for a missing value"""


class Block:
    """A part of a section; each kind names the template that draws it."""

    template: ClassVar[str]


@dataclass(frozen=True)
class Table(Block):
    """A table whose first column heads its rows.

    Numbers (int, float, Interval, Num) are aligned to the right with equal-width digits.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    groups: Sequence[tuple[str, int]] = ()
    """labels above the columns, each with the number of columns that it spans"""
    marked: Sequence[int] = ()
    """indices of highlighted rows"""
    style: str = ""
    """CSS classes"""
    images: int | None = None
    """number of test images that the scores are of, shown in the caption"""
    template: ClassVar = "table.html"

    @property
    def header(self) -> list[tuple[str, bool]]:
        """Column names, each with whether the column holds a number."""
        return [(name, any(is_number(row[i]) for row in self.rows)) for i, name in enumerate(self.columns)]


def is_number(value: Cell) -> bool:
    """Whether a cell is aligned to the right."""
    return isinstance(value, float | int | Interval | Num) and not isinstance(value, bool)


def cell(value: Cell) -> Markup:
    """HTML of a cell: escaped text, two decimals for floats, a dash for a missing value."""
    if isinstance(value, Interval):
        return interval(value)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return Markup(MISSING)
    return escape(number(value) if isinstance(value, float) else value)


def interval(estimate: Interval, digits: int = 2) -> Num:
    """``0.83 (0.81–0.85)``; without the brackets if there is no interval."""
    value, ends = number(estimate.estimate, digits), bounds(estimate, digits)
    return Num(f'{value} <span class="ci">({ends})</span>' if ends else value)


def p_value(p: float) -> Num:
    """Three decimals, or an upper bound."""
    if not math.isfinite(p):
        return Num(MISSING)
    return Num("&lt; 0.001" if p < 0.001 else f"{p:.3f}")


def grid_size(grid: tuple[int, int]) -> str:
    """Rows and columns of a grid: ``8 × 12``."""
    return f"{grid[0]} × {grid[1]}"
