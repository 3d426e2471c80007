"""Colour on the terminal: only where it shows, and never against NO_COLOR (https://no-color.org)."""

from __future__ import annotations

import os
import sys
from typing import TextIO

CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}


def coloured(stream: TextIO) -> bool:
    """Whether a stream shows colour; NO_COLOR and FORCE_COLOR take precedence over what the stream is."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty() and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str, stream: TextIO | None = None) -> str:
    """The text in a style of CODES, if the stream (standard output by default) shows colour."""
    return f"\x1b[{CODES[style]}m{text}\x1b[0m" if coloured(stream or sys.stdout) else text
