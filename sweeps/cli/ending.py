"""The last lines of a run: what was found, the paper's claims, and the link to the report."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from typing import Any

from sweeps.analysis.claims import CONTRADICTED, PARTLY, SUPPORTED
from sweeps.cli.style import paint
from sweeps.runtime.layout import page_link

STYLES = {SUPPORTED: "green", PARTLY: "yellow", CONTRADICTED: "red"}


def lines(ending: Mapping[str, Any], output: str) -> list[str]:
    """The lines of an ending as the report's record holds it; words are never broken."""
    findings, claims = ending.get("findings", {}), ending.get("claims", [])
    width = max((len(noun) for noun in findings), default=0) + 2
    columns = max(width + 40, min(100, shutil.get_terminal_size().columns))
    found = []
    for noun, text in findings.items():
        first, *rest = textwrap.wrap(text, columns - width, break_long_words=False, break_on_hyphens=False)
        found += [f"{paint(f'{noun:{width}}', 'bold')}{first}", *(" " * width + line for line in rest)]
    width = max((len(verdict) for verdict, _ in claims), default=0) + 2
    for verdict, name in claims:
        padded = f"{verdict:{width}}"
        found.append(f"{paint(padded, STYLES[verdict]) if verdict in STYLES else padded}{name}")
    return [*found, f"report: {page_link(output)}"]
