"""How numbers, intervals and steps are written in sentences, table cells and alternative texts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from probing.statistics import Interval

DASH = "–"
MISSING = "—"
MINUS = "−"


def number(value: float, digits: int = 2) -> str:
    """A number with a true minus sign and never a negative zero, or a dash if it is not finite."""
    if not math.isfinite(value):
        return MISSING
    text = f"{value:.{digits}f}"
    is_zero = not text.strip("-0.")
    return text.lstrip("-") if is_zero else text.replace("-", MINUS)


def bounds(estimate: Interval, digits: int = 2) -> str:
    """``0.81–0.85``, or ``−0.10 to 0.30`` beside minus signs; empty if there is no interval."""
    if not math.isfinite(estimate.low):
        return ""
    low, high = number(estimate.low, digits), number(estimate.high, digits)
    return f"{low}{' to ' if MINUS in low + high else DASH}{high}"


def with_bounds(estimate: Interval, digits: int = 2) -> str:
    """``0.83 (0.81–0.85)``, for plain text; ``unknown`` if there is no estimate."""
    if not math.isfinite(estimate.estimate):
        return "unknown"
    ends = bounds(estimate, digits)
    return number(estimate.estimate, digits) + (f" ({ends})" if ends else "")


def percent(share: float) -> str:
    """``48 %``; ``an unknown share`` if it is not finite."""
    return f"{number(100 * share, 0)} %" if math.isfinite(share) else "an unknown share"


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def step_words(step: float, steps: Sequence[int]) -> str:
    """``step 4``; ``at or before step 8`` if the step just before it was not measured."""
    before = max((s for s in steps if s < step), default=0)
    return f"{'at or before ' if step - before > 1 else ''}step {number(step, 0)}"
