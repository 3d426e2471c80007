"""The CSV of manual decisions: what a spreadsheet would run as a formula is shown as text and read back as it was."""

from __future__ import annotations

import csv
import io

import pytest

from probing.dataset.manual_decisions import Choice, parse, render


@pytest.mark.parametrize(
    "text", ['=HYPERLINK("http://x")', "+1", "-2+3", "@SUM(A1)", "'quoted'", "a = b", "two, three"]
)
def test_no_cell_is_a_formula(text: str) -> None:
    choices = {0: Choice(False, text), 1: Choice(True)}
    data = render(choices, [5, 6], [text, "plain"])
    _, row, _ = csv.reader(io.StringIO(data.decode(), newline=""))
    assert all(not cell.startswith(("=", "+", "-", "@")) for cell in row)
    assert parse(data, "decisions.csv", [5, 6]) == choices
