"""What a preset does and what it costs, from the comment at the top of its file."""

from __future__ import annotations

import re
from dataclasses import dataclass

SENTENCE = re.compile(r"(.+?[.:])(?=\s+[A-Z]|$)")


@dataclass(frozen=True)
class Summary:
    """A preset in two lines."""

    what: str
    """first sentence below the first line, which is the command"""
    cost: str
    """first sentence after `Cost`"""


def summary(text: str) -> Summary:
    """The summary in the leading comment of a preset's YAML."""
    comment = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# ").rstrip())
    body = " ".join(comment[1:])
    return Summary(_sentence(body), _sentence(body[body.index("Cost") :]) if "Cost" in body else "")


def _sentence(text: str) -> str:
    found = SENTENCE.match(text)
    return found[1].rstrip(".:") if found else text
