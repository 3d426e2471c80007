"""Take the pictures of the report in this folder: `python sweeps/report/pictures/make.py OUTPUT/report/index.html`.

Needs Chromium. The committed pictures are of the default run.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent
WIDTH = 1280
"""of the window"""
PARTS = {"first-screen": (0, 750), "explorer": (800, 1640)}
"""name: top and bottom of the part of the report in pixels"""
HEATMAPS, HEATMAPS_HEIGHT = ("heatmap-saliency-trained", "heatmap-depth-trained"), 564
"""figures that stand side by side in `heatmaps`, and the height of the picture"""
PALETTE = ("explorer", "heatmaps")
"""pictures that are saved with 256 colours, so that all together stay below 400 kB"""


def screenshot(page: Path, height: int, folder: Path) -> Image.Image:
    """A page in a window of WIDTH x height. Raises FileNotFoundError without Chromium."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise FileNotFoundError("chromium is not installed")
    target = folder / f"{page.stem}.png"
    flags = f"--headless --no-sandbox --disable-gpu --hide-scrollbars --window-size={WIDTH},{height}"
    options = [f"--user-data-dir={folder}/profile", "--virtual-time-budget=4000", f"--screenshot={target}"]
    subprocess.run([browser, *flags.split(), *options, page.resolve().as_uri()], check=True, capture_output=True)
    return Image.open(target).convert("RGB")


def save(picture: Image.Image, name: str) -> None:
    """Write one picture of this folder."""
    (picture.quantize(256) if name in PALETTE else picture).save(FOLDER / f"{name}.png", optimize=True)


def take(page: Path) -> None:
    """Write every picture: PARTS of the report's page, and its heatmaps."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        whole = screenshot(page, max(bottom for _, bottom in PARTS.values()) + 60, folder)
        for name, (top, bottom) in PARTS.items():
            save(whole.crop((0, top, WIDTH, bottom)), name)
        beside = folder / "heatmaps.html"
        figures = [(page.parent / "figures" / f"{name}.svg").resolve().as_uri() for name in HEATMAPS]
        images = "".join(f'<img style="width: 45%" src="{address}">' for address in figures)
        style = "margin: 0; display: flex; justify-content: space-around; align-items: start; background: white"
        beside.write_text(f'<body style="{style}">{images}</body>')
        save(screenshot(beside, HEATMAPS_HEIGHT, folder), "heatmaps")


if __name__ == "__main__":
    take(Path(sys.argv[1]))
