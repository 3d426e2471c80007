"""Small pictures as data addresses: photographs as JPEG, maps as PNG in fixed colour scales."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
from PIL import Image

SCALES = {"saliency": "cividis", "depth": "magma"}
LONGEST = 256


def photo(pixels: np.ndarray, longest: int = LONGEST) -> str:
    """Data address of uint8 (H, W, 3), no side longer than `longest`."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return _address(picture, "JPEG", quality=88)


def colour_map(values: np.ndarray, task: str, low: float, high: float) -> np.ndarray:
    """uint8 (h, w, 3): values from `low` to `high` in the task's colour scale."""
    share = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    return (matplotlib.colormaps[SCALES[task]](share)[..., :3] * 255).round().astype(np.uint8)


def map_picture(values: np.ndarray, task: str, low: float, high: float, longest: int = 128) -> str:
    """Data address of a map (h, w); one with sides over `longest` is thinned."""
    stride = max(1, int(np.ceil(max(values.shape) / longest)))
    colours = colour_map(values[::stride, ::stride], task, low, high)
    return _address(Image.fromarray(colours), "PNG", optimize=True)


def _address(picture: Image.Image, kind: str, **options: object) -> str:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    text = base64.b64encode(out.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{text}"
