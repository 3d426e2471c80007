"""The report's page: the blocks that its sections consist of, and the jinja2 templates that draw them.

Each block class names its template in `templates/`; a new kind of block is one class and one template.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sweeps.report.figures.base import INKS, Panel
from sweeps.report.tables import Block, cell, is_number
from sweeps.report.thumbnails import Picture


@dataclass(frozen=True)
class Heading(Block):
    """A heading below the section's title."""

    text: str
    template: ClassVar = "heading.html"


@dataclass(frozen=True)
class Paragraph(Block):
    """Running text; plain `str` is escaped, `Markup` is not."""

    text: str
    style: str = ""
    """CSS class: `lead`, `note` or none"""
    template: ClassVar = "paragraph.html"


@dataclass(frozen=True)
class Code(Block):
    """Preformatted text."""

    text: str
    template: ClassVar = "code.html"


@dataclass(frozen=True)
class Figures(Block):
    """A grid of inline figures."""

    panels: Sequence[Panel]
    small: bool = False
    template: ClassVar = "figures.html"


@dataclass(frozen=True)
class Download(Block):
    """One link that holds the numbers of similar figures as CSV inside the page."""

    name: str
    """file stem"""
    panels: Sequence[Panel]
    """at least one; all with the same columns"""
    template: ClassVar = "download.html"

    @property
    def address(self) -> str:
        """Data URL of the CSV: one header, then the rows of every panel."""
        header, _, _ = self.panels[0].csv().partition("\n")
        text = "\n".join([header, *(p.csv().partition("\n")[2].rstrip("\n") for p in self.panels), ""])
        return "data:text/csv;base64," + base64.b64encode(text.encode()).decode()


@dataclass(frozen=True)
class Strip(Block):
    """A row of pictures under a name."""

    name: str
    pictures: Sequence[Picture]
    style: str = "strip"
    """CSS classes: `strip`, `strip seven`, `photos` or `photos few`"""
    template: ClassVar = "strip.html"


@dataclass(frozen=True)
class StripGroup(Block):
    """Strips of one image under its prompt."""

    title: str
    note: str
    strips: Sequence[Strip]
    template: ClassVar = "strip_group.html"


@dataclass(frozen=True)
class Scale:
    """A colour scale and the meaning of its ends."""

    low: str
    high: str
    picture: Picture


@dataclass(frozen=True)
class ColourKey(Block):
    """The colour scales of the maps that follow."""

    scales: Sequence[Scale]
    template: ClassVar = "colour_key.html"


@dataclass(frozen=True)
class HeroColumn:
    """One denoising step of the picture at the top."""

    caption: str
    photo: Picture | None
    """the decoded clean estimate; None if none was decoded"""
    maps: Sequence[Picture]
    """of the probes, under it"""


@dataclass(frozen=True)
class Reading:
    """One number of an answer."""

    name: str
    value: str
    """may be `Markup`"""
    share: float | None = None
    """drawn as a bar from 0 to 1; None draws no bar"""


@dataclass(frozen=True)
class Answer:
    """One of the three questions, with a number for each task and a sentence or two."""

    question: str
    readings: Sequence[Reading]
    text: str


@dataclass(frozen=True)
class Chip:
    """A claim in three words and its verdict."""

    name: str
    verdict: str
    tone: str
    """`yes`, `partly`, `no` or `open`: how the verdict is drawn, beside its words"""


@dataclass(frozen=True)
class Overview(Block):
    """The first screen: pictures, three answers, verdicts."""

    prompt: str
    columns: Sequence[HeroColumn]
    answers: Sequence[Answer]
    chips: Sequence[Chip]
    template: ClassVar = "overview.html"


@dataclass(frozen=True)
class Explorer(Block):
    """The interactive scene explorer, and the strips that stand in its place without scripts."""

    data: Mapping[str, object]
    """what the script reads, see `sections.explorer`"""
    strips: Sequence[Strip]
    template: ClassVar = "explorer.html"


@dataclass(frozen=True)
class Compared:
    """An image before and after an edit, with the outline of the requested label."""

    before: Picture
    after: Picture
    title: str
    outline: str
    """SVG path of the outline, in units of the width and height; empty draws none"""


@dataclass(frozen=True)
class Comparisons(Block):
    """Images before and after an edit under a slider; side by side without scripts."""

    pairs: Sequence[Compared]
    template: ClassVar = "comparisons.html"


@dataclass(frozen=True)
class Folded(Block):
    """Blocks that a reader opens on request."""

    summary: str
    blocks: Sequence[Block]
    template: ClassVar = "folded.html"


@dataclass(frozen=True)
class Section:
    """A part of the page; one without blocks is left out of page and contents."""

    key: str
    title: str = ""
    short: str = ""
    """its name in the contents"""
    blocks: list[Block] = field(default_factory=list)
    appendix: bool = False
    """whether it is folded at the end of the page"""


@dataclass(frozen=True)
class TitledStrip:
    """A strip of pictures with its place in the page, for use outside the page."""

    section: str
    """key of the section"""
    title: str
    """the heading above the strip, and the strip's name"""
    pictures: Sequence[Picture]

    @property
    def words(self) -> str:
        """Title, and the captions from left to right."""
        captions = " | ".join(" ".join(p.caption.split()) for p in self.pictures if p.caption)
        return f"{self.title}: {captions}" if captions else self.title


def downloads(name: str, panels: Sequence[Panel]) -> list[Block]:
    """A download of the panels' numbers; empty without panels."""
    return [Download(name, panels)] if panels else []


def panels(sections: Sequence[Section]) -> list[Panel]:
    """All figures in the page's order."""
    return [p for s in sections for block in _flat(s.blocks) if isinstance(block, Figures) for p in block.panels]


def titled_strips(sections: Sequence[Section]) -> Iterator[TitledStrip]:
    """All strips of pictures in the page's order."""
    for section in sections:
        heading = section.title
        for block in _flat(section.blocks):
            if isinstance(block, Heading):
                heading = block.text
            elif isinstance(block, Explorer):
                yield from (TitledStrip(section.key, s.name, s.pictures) for s in block.strips)
            elif isinstance(block, StripGroup):
                heading = f"{block.title} {block.note}"
                yield from (TitledStrip(section.key, f"{heading}, {s.name}", s.pictures) for s in block.strips)
            elif isinstance(block, Strip):
                title = f"{heading}, {block.name}" if block.name else heading
                yield TitledStrip(section.key, title, block.pictures)


def _flat(blocks: Sequence[Block]) -> Iterator[Block]:
    for block in blocks:
        yield from _flat(block.blocks) if isinstance(block, Folded) else (block,)


def render(title: str, kicker: str, summary: str, sections: Sequence[Section]) -> str:
    """The whole document as HTML; `kicker` and `summary` stand above and below its title."""
    kept = [s for s in sections if s.blocks]
    template = _environment().get_template("page.html")
    parts = {"sections": [s for s in kept if not s.appendix], "appendix": [s for s in kept if s.appendix]}
    return template.render(title=title, kicker=kicker, summary=summary, **parts)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("sweeps.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False,
    )  # fmt: skip
    environment.filters["cell"] = cell
    environment.tests["numeric"] = is_number
    environment.globals["colours"] = lambda theme: Markup(
        "".join(f"--{role.replace('.', '-')}:{pair[theme]};" for role, pair in INKS.items())
    )
    return environment
