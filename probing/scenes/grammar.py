"""The caption grammar of the scenes world: its words, and the sentence that describes a scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.82, 0.14, 0.14),
    "green": (0.16, 0.58, 0.20),
    "blue": (0.16, 0.28, 0.82),
    "yellow": (0.92, 0.82, 0.18),
    "purple": (0.52, 0.20, 0.68),
    "orange": (0.94, 0.50, 0.12),
    "cyan": (0.22, 0.74, 0.80),
    "white": (0.92, 0.92, 0.92),
}
"""RGB in 0..1, the same for objects, floors and walls, so that colour alone does not identify any of them."""

SHAPES = ("sphere", "box", "cylinder")
RELATIONS = ("in front of", "behind", "left of", "right of")
VIEWS = ("seen from below", "seen from above")
WALL_DISTANCES = ("near", "far")
_GLUE = "a an large small floating checkered on and floor wall under sky with picture".split()

WORDS: tuple[str, ...] = tuple(
    sorted({*_GLUE, *PALETTE, *SHAPES, *WALL_DISTANCES, *(w for p in (*RELATIONS, *VIEWS) for w in p.split())})
)
"""Every word that a caption may contain"""

MAX_WORDS = 42
"""Longest caption in words; with start and end marks it fits the text encoder's 44 positions"""


@dataclass(frozen=True)
class Thing:
    """What a caption states about one object, and where it is (for the relations)."""

    shape: str
    colour: str
    large: bool
    checkered: bool
    floating: bool
    column: float
    """horizontal image position of its centre, 0 (left) to 1 (right)"""
    distance: float
    """distance of its centre along the viewing axis, scene units"""


def describe_thing(thing: Thing) -> str:
    """Noun phrase for one object, such as `a large checkered red sphere`."""
    words = ["a", "large" if thing.large else "small"]
    words += ["floating"] if thing.floating else []
    words += ["checkered"] if thing.checkered else []
    return " ".join([*words, thing.colour, thing.shape])


def relation(first: Thing, second: Thing) -> str:
    """Relation of the first object to the second: by depth if that differs clearly, else left or right."""
    ratio = first.distance / second.distance
    if ratio < 0.72:
        return "in front of"
    if ratio > 1.39:
        return "behind"
    return "left of" if first.column < second.column else "right of"


def wall_distance(inverse: float) -> str:
    """`near`, `far` or nothing, for a wall's relative inverse depth (see `render.relative_inverse`)."""
    return "near" if inverse > 0.8 else "far" if inverse < 0.45 else ""


def view(pitch: float) -> str:
    """The camera's pitch in degrees, positive down, as a phrase or nothing."""
    return VIEWS[0] if pitch < 0 else VIEWS[1] if pitch > 20 else ""


def _surface(name: str, colour: str, checkered: bool, place: str = "") -> str:
    return " ".join(word for word in ("a", place, "checkered" if checkered else "", colour, name) if word)


def caption(
    things: Sequence[Thing],
    floor: tuple[str, bool],
    wall: tuple[str, bool, str] | None,
    picture: str | None,
    seen: str = "",
) -> str:
    """Caption of a scene: its objects, their relations, the floor, wall or sky, and the view.

    `floor` is (colour, checkered), `wall` has its `wall_distance` as well; no wall means open ground under a sky.
    """
    parts = [describe_thing(things[0])]
    for before, after in zip(things, things[1:], strict=False):
        parts += [relation(before, after), describe_thing(after)]
    parts += ["on", _surface("floor", *floor)]
    parts += ["and", _surface("wall", *wall)] if wall else ["under a sky"]
    parts += [f"with a {picture} picture"] if picture else []
    parts += [seen] if seen else []
    return " ".join(parts)
