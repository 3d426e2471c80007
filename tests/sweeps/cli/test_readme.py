"""Every command of the README runs here, or is marked with what it needs and is at least understood."""

from __future__ import annotations

import re
import shlex
import shutil
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sweeps.cli.main import main, parse
from sweeps.config.load import load

ROOT = Path(__file__).parents[3]
PAGES = ("README.md", "cluster/README.md", "sweeps/README.md", "CONTRIBUTING.md", "SETTINGS.md")
ELSEWHERE = ("run", "tests")
"""marks of blocks that tests of the whole pipeline, and CI, run"""
BLOCK = re.compile(r"^(?:<!-- (?P<mark>[^\n]+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of the README."""

    mark: str
    language: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of its commands."""
        lines = [part for line in self.text.splitlines() for part in line.split("&&")]
        return [words for line in lines if (words := shlex.split(line, comments=True))]

    @property
    def runs(self) -> bool:
        """Whether its commands can run here."""
        return self.mark not in ELSEWHERE and not self.mark.startswith("needs: ")


def blocks() -> list[Block]:
    text = (ROOT / "README.md").read_text()
    found = [Block(one["mark"] or "", one["language"], one["text"]) for one in BLOCK.finditer(text)]
    return [block for block in found if block.language != "mermaid"]


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose runs are made when a command needs them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(webbrowser, "open", lambda link: True)
    return tmp_path


def make_runs(folder: Path, finished: Path) -> None:
    for name in ("scenes", "guided"):
        shutil.copytree(finished, folder / "runs" / name, dirs_exist_ok=True)


@pytest.mark.parametrize("block", [b for b in blocks() if b.runs and not b.language], ids=lambda b: b.text[:30])
def test_the_readme_s_commands_run(block: Block, folder: Path, finished: Path, capsys: Any) -> None:
    for program, *words in block.commands:
        assert program == "scenesweep"
        if words[1:] and words[1].startswith("runs/"):
            make_runs(folder, finished)
        assert main(words) == 0, capsys.readouterr().err
        assert capsys.readouterr().out


@pytest.mark.parametrize("block", [b for b in blocks() if b.language == "python"], ids=lambda b: b.text[:30])
def test_the_readme_s_python_runs(block: Block, folder: Path, finished: Path) -> None:
    if block.runs:
        make_runs(folder, finished)
        exec(block.text, {})


@pytest.mark.parametrize("block", [b for b in blocks() if not b.runs], ids=lambda b: b.mark)
def test_commands_that_need_more_are_understood(block: Block) -> None:
    ours = [words for program, *words in block.commands if Path(program).name == "scenesweep"]
    assert ours or block.mark == "tests" or "ray" in block.text
    for words in ours:
        parsed = parse(words)
        if hasattr(parsed, "overrides"):
            load(parsed.preset, parsed.overrides)


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_are_there(name: str) -> None:
    page = ROOT / name
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert missing == []


def test_pictures_are_small() -> None:
    shown = re.findall(r"!\[[^\]]*\]\((?!https?:)([^)]+)\)", (ROOT / "README.md").read_text())
    assert sum((ROOT / path).stat().st_size for path in shown) < 400_000
