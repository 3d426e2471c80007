"""The on-disk format as dataclasses: what determines a store, its arrays, and the files of their metadata.

FORMAT.md is the normative text; if a module here differs from it, the module is wrong.
"""

from storage.format.arrays import ArraySpec, Coordinate, SiteShape, encode_json, grid_of
from storage.format.layout import FORMAT_VERSION, KINDS, Layout
from storage.format.numbers import ChunkNumbers

__all__ = [
    "FORMAT_VERSION", "KINDS", "ArraySpec", "ChunkNumbers", "Coordinate", "Layout", "SiteShape", "encode_json",
    "grid_of",
]  # fmt: skip
