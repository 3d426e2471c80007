"""What every bench reports: seconds of one way and of another, measured in turn, their medians and their ratio."""

import statistics
from collections.abc import Sequence
from typing import Any

KEYS = ("what", "ratio", "of", "to", "seconds", "pairs")
"""of each row; a bench may add more"""


def row(what: str, of: str, to: str, pairs: Sequence[tuple[float, float]], **more: Any) -> dict[str, Any]:
    """A row of a bench: `pairs` hold (seconds of `of`, seconds of `to`), one after the other.

    `ratio` is the median over the pairs of their ratio, above 1 where `of` takes longer; `seconds` are both medians.
    """
    first, second = zip(*pairs, strict=True)
    ratio = statistics.median(one / other for one, other in pairs)
    seconds = [statistics.median(first), statistics.median(second)]
    return {"what": what, "ratio": ratio, "of": of, "to": to, "seconds": seconds,
            "pairs": [list(pair) for pair in pairs], **more}  # fmt: skip
