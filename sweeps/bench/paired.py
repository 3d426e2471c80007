"""Measurements in pairs: two ways to do the same work, timed in turn, with their medians and ratio."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
KEYS = ("what", "ratio", "of", "to", "seconds", "pairs")
"""keys of each row; a bench may add more"""
Pairs = list[tuple[float, float]]
Action = Callable[[], object]


def seconds(action: Action) -> float:
    """Wall seconds that an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def timed_pairs(
    first: Action,
    second: Action,
    count: int,
    warm_up: bool = True,
    before: Action = lambda: None,
    until: float = math.inf,
) -> Pairs:
    """Seconds of (first, second), `count` times in turn; `before` runs untimed before each action.

    With `warm_up` one more pair runs first and is dropped. Fewer pairs, but at least one, if another would not end
    before `until`, a time of `time.monotonic`.
    """
    pairs: Pairs = []
    for _ in range(count + warm_up):
        if len(pairs) > warm_up and time.monotonic() + sum(pairs[-1]) > until:
            break
        before()
        first_seconds = seconds(first)
        before()
        pairs.append((first_seconds, seconds(second)))
    return pairs[warm_up:]


def row(what: str, of: str, to: str, pairs: Sequence[tuple[float, float]], **more: object) -> Row:
    """A row of a bench; each pair is (seconds of `of`, seconds of `to`), measured one after the other.

    `ratio` is the median over pairs of their ratio, above 1 if `of` takes longer; `seconds` are both medians.
    """
    of_seconds, to_seconds = zip(*pairs, strict=True)
    return {
        "what": what,
        "ratio": statistics.median(first / second for first, second in pairs),
        "of": of,
        "to": to,
        "seconds": [statistics.median(of_seconds), statistics.median(to_seconds)],
        "pairs": [list(pair) for pair in pairs],
        **more,
    }
