"""Markup in a run's name is text wherever it is shown: report, W&B, terminal."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from support.report_store import CONFIG, Made, make_store
from sweeps.analysis import tables
from sweeps.cli.main import main
from sweeps.report import build
from sweeps.tracking.mirror import mirror

NAME = """<img src=x onerror=alert(1)>&amp; '"{{7*7}} [a](b) *c*"""
SMALL = Made(train=2, test=4, sites=("mid.0",), steps=(1,), extras=False, pictures=False)


class Reader(HTMLParser):
    """What a browser makes of a page: elements with handlers, and text."""

    def __init__(self) -> None:
        super().__init__()
        self.handlers: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_in_the_report(tmp_path: Path) -> None:
    store = make_store(tmp_path, SMALL)
    reader = Reader()
    reader.feed(build.draw(tables.load(store, {**CONFIG, "name": NAME}), store).html)
    assert reader.handlers == []
    assert NAME in reader.text


@pytest.mark.slow
def test_in_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the offline runs hold the name as the group, unchanged; W&B's page shows groups as text."""
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    store = make_store(tmp_path / "run", SMALL)
    found = mirror(store, {**CONFIG, "name": NAME}, "offline", "site")
    assert found.problem == ""
    kept = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*.wandb"))
    assert NAME.encode() in kept


def test_on_the_terminal(capsys: Any) -> None:
    assert main(["config", "scenes", f"name={NAME}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"]["value"] == NAME
    assert main(["config", "scenes", f"name={NAME}", "--changed"]) == 0
    assert f"command line   name={NAME}" in capsys.readouterr().out.splitlines()
    assert main(["config", "scenes", "name=a\x1b[31mred"]) == 2  # would colour or move what follows
    assert "name='a\\x1b[31mred': has line breaks or other control characters" in capsys.readouterr().err
