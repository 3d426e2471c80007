"""The on-disk format as dataclasses: what determines a store, its arrays, and the files of their metadata.

FORMAT.md is the normative text; if a module here differs from it, the module is wrong.
"""

from storage.format.arrays import ArraySpec, Coordinate, SiteShape, encode_json, grid_of
from storage.format.layout import FORMAT_VERSION, KINDS, Layout

__all__ = ["FORMAT_VERSION", "KINDS", "ArraySpec", "Coordinate", "Layout", "SiteShape", "encode_json", "grid_of"]
