"""The report's strips of pictures, read back from its page: each as one image with its words."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import unescape

import numpy as np
from PIL import Image

from sweeps.report.figures.base import ink

HEIGHT = 128
"""pixels of every picture in a sheet"""
GAP = 4
_PARTS = re.compile(
    r'<section id="(?P<section>[^"]+)"|<h(?P<level>[23])[^>]*>(?P<heading>.*?)</h[23]>'
    r'|<p class="strip-name">(?P<name>.*?)</p>|<div class="(?:strip|photos)[^"]*">(?P<cells>.*?)</div>',
    re.DOTALL,
)
_CELL = re.compile(
    r'<figure><img(?P<map> class="map")? src="data:image/\w+;base64,(?P<data>[^"]+)" alt="(?P<alt>[^"]*)">'
    r"(?:<figcaption>(?P<caption>.*?)</figcaption>)?</figure>",
    re.DOTALL,
)


@dataclass(frozen=True)
class Cell:
    """One picture of a strip."""

    data: bytes
    """JPEG, PNG or GIF, as embedded in the page"""
    caption: str
    is_map: bool
    """whether its pixels are cells, to be enlarged as they are"""


@dataclass(frozen=True)
class Strip:
    """A row of pictures under its headings."""

    section: str
    """key of the page's section"""
    title: str
    cells: tuple[Cell, ...]

    @property
    def words(self) -> str:
        """Title, and the captions from left to right."""
        captions = " | ".join(cell.caption for cell in self.cells if cell.caption)
        return f"{self.title}: {captions}" if captions else self.title


def strips(page: str) -> Iterator[Strip]:
    """All strips of a report's page, in its order."""
    section, headings, name = "", {"2": "", "3": ""}, ""
    for part in _PARTS.finditer(page):
        if part["section"] is not None:
            section, headings, name = part["section"], {"2": "", "3": ""}, ""
        elif part["level"] is not None:
            headings |= {"3": "", part["level"]: _text(part["heading"])}
        elif part["name"] is not None:
            name = _text(part["name"])
        else:
            title = ", ".join(filter(None, (headings["3"] or headings["2"], name)))
            cells = tuple(_cell(found) for found in _CELL.finditer(part["cells"]))
            name = ""
            if cells:
                yield Strip(section, title, cells)


def _cell(found: re.Match[str]) -> Cell:
    return Cell(base64.b64decode(found["data"]), _text(found["caption"] or ""), found["map"] is not None)


def _text(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def sheets(found: Sequence[Strip]) -> list[np.ndarray]:
    """Each strip as uint8 (H, W, 3), all of one size: pictures side by side, of an animation its first frame."""
    rows = [[_scaled(cell) for cell in strip.cells] for strip in found]
    width = max((sum(one.width + GAP for one in row) - GAP for row in rows), default=0)
    return [_sheet(row, width) for row in rows]


def _sheet(row: Sequence[Image.Image], width: int) -> np.ndarray:
    whole, left = Image.new("RGB", (width, HEIGHT), ink("paper")), 0
    for one in row:
        whole.paste(one, (left, 0))
        left += one.width + GAP
    return np.asarray(whole)


def _scaled(cell: Cell) -> Image.Image:
    picture = Image.open(io.BytesIO(cell.data)).convert("RGB")
    width = max(1, round(picture.width * HEIGHT / picture.height))
    how = Image.Resampling.NEAREST if cell.is_map else Image.Resampling.BILINEAR
    return picture.resize((width, HEIGHT), how)
