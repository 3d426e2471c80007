"""Accessible HTML tables: captions, scoped headers, tabular figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from probing.statistics import Interval

DASH = "–"
MISSING = "—"
MINUS = "−"


class Raw(str):
    """Text that is HTML already."""


class Num(Raw):
    """HTML of a number, set flush right."""


def markup(value: Any) -> str:
    """HTML of a cell: escaped text, two decimals for floats, a dash for what is absent."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, Interval):
        return interval(value)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    if isinstance(value, float):
        return number(value)
    return escape(str(value))


def number(value: float, digits: int = 2) -> str:
    """A number with a true minus sign, or a dash where it is not finite."""
    if not math.isfinite(value):
        return MISSING
    text = f"{value:.{digits}f}"
    zero = not text.strip("-0.")
    return text.lstrip("-") if zero else text.replace("-", MINUS)


def interval(estimate: Interval, digits: int = 2) -> str:
    """``0.83 (0.81-0.85)``; without the brackets where there is no interval."""
    value = number(estimate.estimate, digits)
    if not math.isfinite(estimate.low):
        return value
    low, high = number(estimate.low, digits), number(estimate.high, digits)
    joint = " to " if MINUS in low + high else DASH
    return f'{value} <span class="ci">({low}{joint}{high})</span>'


def p_value(p: float) -> Num:
    """Three decimals, or a bound."""
    if not math.isfinite(p):
        return Num(MISSING)
    return Num("&lt; 0.001" if p < 0.001 else f"{p:.3f}")


def steps(estimate: Interval) -> str:
    """A step with its interval, whole numbers."""
    return interval(estimate, 0) if math.isfinite(estimate.estimate) else MISSING


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    groups: Sequence[tuple[str, int]] = (),
    marked: Sequence[int] = (),
    kind: str = "",
) -> str:
    """A table whose first column heads its rows; `groups` spans columns, `marked` rows stand out.

    Numbers (floats, estimates) are set flush right with equal-width digits.
    """
    body = "".join(_row(row, i in marked) for i, row in enumerate(rows))
    head = _groups(groups) + _columns(columns, rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f'<table class="{kind}"><caption><span>{escape(caption)}</span></caption>'
        f"<thead>{head}</thead><tbody>{body}</tbody></table></div>"
    )


def _groups(groups: Sequence[tuple[str, int]]) -> str:
    if not groups:
        return ""
    cells = "".join(
        f'<th scope="colgroup" colspan="{span}">{escape(label)}</th>' if label else f'<td colspan="{span}"></td>'
        for label, span in groups
    )
    return f'<tr class="groups">{cells}</tr>'


def _columns(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    numeric = [any(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    cells = "".join(
        f'<th scope="col"{_class(flag)}>{escape(name)}</th>' for name, flag in zip(columns, numeric, strict=True)
    )
    return f"<tr>{cells}</tr>"


def _row(row: Sequence[Any], marked: bool) -> str:
    first, *others = row
    cells = "".join(f"<td{_class(_is_number(v))}>{markup(v)}</td>" for v in others)
    mark = ' class="marked"' if marked else ""
    return f'<tr{mark}><th scope="row">{markup(first)}</th>{cells}</tr>'


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int | Interval | Num) and not isinstance(value, bool)


def _class(numeric: bool) -> str:
    return ' class="n"' if numeric else ""
