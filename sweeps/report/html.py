"""The page around the report's sections, and the HTML of figures and picture strips."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from sweeps.report.figures.base import Panel
from sweeps.report.theme import sheet


@dataclass(frozen=True)
class Section:
    """A part of the page; one without a body is left out of page and contents."""

    key: str
    title: str
    short: str
    """its name in the contents"""
    body: str


def page(title: str, kicker: str, meta: str, sections: Sequence[Section], foot: str) -> str:
    """The whole document. `title` and `kicker` are text, the others HTML."""
    kept = [s for s in sections if s.body]
    links = "".join(f'<li><a href="#{s.key}">{escape(s.short)}</a></li>' for s in kept)
    body = "".join(
        f'<section id="{s.key}" aria-labelledby="{s.key}-h"><h2 id="{s.key}-h">{escape(s.title)}</h2>{s.body}</section>'
        for s in kept
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)} · {escape(kicker)}</title><style>{sheet()}</style>"
        '</head><body><a class="skip" href="#main">Skip to the results</a>'
        f'<header><p class="kicker">{escape(kicker)}</p><h1>{escape(title)}</h1>{meta}</header>'
        f'<nav aria-label="Contents"><ol>{links}</ol></nav>'
        f'<main id="main">{body}</main><footer>{foot}</footer></body></html>\n'
    )


def panels(found: Sequence[Panel], small: bool = False) -> str:
    """A grid of inline figures."""
    figures = "".join(f"<figure>{p.inline()}</figure>" for p in found)
    return f'<div class="panels{" small" if small else ""}">{figures}</div>' if figures else ""


def downloads(found: Sequence[Panel], name: str) -> str:
    """One link that carries the numbers of like figures as CSV inside the page."""
    if not found:
        return ""
    head, _, _ = found[0].csv().partition("\n")
    text = "\n".join([head, *(p.csv().partition("\n")[2].rstrip("\n") for p in found), ""])
    address = "data:text/csv;base64," + base64.b64encode(text.encode()).decode()
    return f'<p class="note download"><a download="{name}.csv" href="{address}">Numbers as {name}.csv</a></p>'


def picture(address: str, alt: str, caption: str = "", map_like: bool = False) -> str:
    """A figure with alternative text and, where given, a caption (HTML)."""
    kind = ' class="map"' if map_like else ""
    words = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure><img{kind} src="{address}" alt="{escape(alt)}">{words}</figure>'


def folded(summary: str, body: str) -> str:
    """Details that open on request."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>" if body else ""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of HTML."""
    return f'<p class="{kind}">{text}</p>' if kind else f"<p>{text}</p>"
