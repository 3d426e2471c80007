"""The pieces of the bench in order of importance, and how long each may take (imports no torch)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """Something that is measured."""

    name: str
    what: str
    """for the user"""
    function: str
    """module of this folder and function"""
    limit: float
    """seconds that it may take, the start of its models included"""
    least: float
    """seconds under which it is not begun"""
    arguments: tuple[str, ...] = ()


PIECES = (
    Piece("sampling", "sampling beside diffusers", "sampling.against_diffusers", 150, 20),
    Piece("capture", "recording beside sampling", "sampling.recording", 110, 20),
    Piece("labellers", "TRACER and MiDaS", "editing.labelling", 40, 10),
    Piece("edits", "edits of an image beside sampling", "editing.edits", 110, 20),
    Piece("probes", "the probe grid beside reading", "fitting.grid", 150, 20),
    Piece("authors_loop", "the authors' loop beside the grid", "fitting.against_authors", 40, 10),
    Piece("variants", "other ways to run the network", "sampling.variants", 130, 20),
    Piece("sdxl", "Stable Diffusion XL", "families.family", 70, 30, ("sdxl",)),
    Piece("pixart", "PixArt-sigma", "families.family", 50, 25, ("pixart",)),
)
GRACE = 6.0
"""seconds after the end of its time at which a piece is killed"""
EXIT_AGAIN = 75
"""exit code of a worker whose card no longer answers: the next piece needs a new process"""
