"""Where the W&B mirror of a run is written and sent; imports nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path

from storage.backends import local_folder as folder_at

MARKER = "mirror.json"


def local_folder(url: str) -> Path:
    """Folder of the offline runs: OUT/wandb, or ./wandb if the output is an object store."""
    return (folder_at(url) or Path.cwd()) / "wandb"


def server() -> str:
    """The W&B server that runs are sent to."""
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")


def is_written(url: str) -> bool:
    """Whether the folder of a store's offline runs holds any."""
    return (local_folder(url) / MARKER).is_file()
