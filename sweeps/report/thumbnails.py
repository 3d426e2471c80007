"""Small pictures for the page and the W&B mirror: photographs as JPEG, maps as PNG in fixed colour scales."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image

from sweeps.report.figures.base import ink

SCALES = {"saliency": "cividis", "depth": "magma"}
"""Matplotlib colour map of each task"""
SHEET_HEIGHT = 128
"""height of the pictures in a sheet, in pixels"""
SHEET_GAP = 4
"""pixels between two pictures in a sheet"""


@dataclass(frozen=True)
class Picture:
    """One embedded picture."""

    data: bytes
    """the encoded file"""
    format: str
    """`jpeg`, `png` or `gif`"""
    alt: str
    """text for readers who do not see it"""
    caption: str = ""
    """may have several lines"""
    is_map: bool = False
    """whether its pixels are patches, which are enlarged without smoothing"""

    @property
    def address(self) -> str:
        """Data URL of the picture."""
        return f"data:image/{self.format};base64,{base64.b64encode(self.data).decode()}"


def photo(pixels: np.ndarray, alt: str, caption: str = "", longest: int = 256) -> Picture:
    """A JPEG of uint8 (H, W, 3), no side longer than `longest`."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return Picture(_encode(image, "JPEG", quality=88), "jpeg", alt, caption)


def map_picture(
    values: np.ndarray, task: str, limits: tuple[float, float], alt: str, caption: str = "", longest: int = 128
) -> Picture:
    """A PNG of a map (h, w) in the task's colour scale from `limits[0]` to `limits[1]`.

    If a side is longer than `longest`, only every n-th row and column is kept.
    """
    stride = max(1, -(-max(values.shape) // longest))
    colours = colour_map(values[::stride, ::stride], task, *limits)
    return Picture(_encode(Image.fromarray(colours), "PNG", optimize=True), "png", alt, caption, is_map=True)


def colour_map(values: np.ndarray, task: str, low: float, high: float) -> np.ndarray:
    """uint8 (h, w, 3): values from `low` to `high` in the task's colour scale."""
    share = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    return (matplotlib.colormaps[SCALES[task]](share)[..., :3] * 255).round().astype(np.uint8)


def sheets(rows: Sequence[Sequence[Picture]]) -> list[np.ndarray]:
    """Each row of pictures side by side as uint8 (H, W, 3), all of one size; an animation shows its first frame."""
    scaled = [[_scaled(picture) for picture in row] for row in rows]
    width = max((sum(image.width + SHEET_GAP for image in row) - SHEET_GAP for row in scaled), default=0)
    found = []
    for row in scaled:
        sheet, left = Image.new("RGB", (width, SHEET_HEIGHT), ink("paper")), 0
        for image in row:
            sheet.paste(image, (left, 0))
            left += image.width + SHEET_GAP
        found.append(np.asarray(sheet))
    return found


def _scaled(picture: Picture) -> Image.Image:
    image = Image.open(io.BytesIO(picture.data)).convert("RGB")
    width = max(1, round(image.width * SHEET_HEIGHT / image.height))
    method = Image.Resampling.NEAREST if picture.is_map else Image.Resampling.BILINEAR
    return image.resize((width, SHEET_HEIGHT), method)


def data_url(pixels: np.ndarray, format: str, **options: object) -> str:
    """Data URL of uint8 pixels (H, W) or (H, W, 3)."""
    data = _encode(Image.fromarray(pixels), format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(data).decode()}"


def _encode(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()
