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
WIDTH, HEIGHT = 1280, 1700
"""of the window"""
PARTS = {"first-screen": (0, 750), "explorer": (800, 1640)}
"""name: top and bottom of the part of the window in pixels"""
PALETTE = ("explorer",)
"""parts that are saved with 256 colours, so that both together stay below 400 kB"""


def take(page: Path) -> None:
    """Write a PNG for each of PARTS, from top to bottom. Raises FileNotFoundError without Chromium."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise FileNotFoundError("chromium is not installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        whole = Path(folder) / "page.png"
        flags = f"--headless --no-sandbox --disable-gpu --hide-scrollbars --window-size={WIDTH},{HEIGHT}"
        options = [f"--user-data-dir={folder}/profile", "--virtual-time-budget=4000", f"--screenshot={whole}"]
        subprocess.run([browser, *flags.split(), *options, page.resolve().as_uri()], check=True, capture_output=True)
        image = Image.open(whole).convert("RGB")
        for name, (top, bottom) in PARTS.items():
            part = image.crop((0, top, WIDTH, bottom))
            (part.quantize(256) if name in PALETTE else part).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    take(Path(sys.argv[1]))
