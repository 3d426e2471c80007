"""Configuration files of published models, as their hub ids hold them: enough to plan a run without network.

A folder is named after the id, with `--` for the slash, and holds the JSON files of the network, the VAE and the
scheduler. Nothing is sampled with them.
"""

from __future__ import annotations

from pathlib import Path


def folder(name: str) -> Path | None:
    """The folder of a hub id; None if it is not one of them."""
    found = Path(__file__).parent / name.replace("/", "--")
    return found if "/" in name and (found / "model_index.json").is_file() else None
