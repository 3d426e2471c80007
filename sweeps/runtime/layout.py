"""Names and paths inside an output that stages write and analysis, planning and report read."""

from __future__ import annotations

import hashlib
import os

PAGE = "report/index.html"
PREDICTIONS = "report/predictions.safetensors"
"""predictions on the page, for when the activations are gone"""
TRAINED = "trained"
"""the variant that every experiment beside the main grid studies"""
EMERGENCE = "emergence"
EMERGENCE_FOLDER = "experiments/emergence"
"""decoded images and their labels, one file per sample"""
LATENT_KINDS = ("xt", "x0")
"""the noisy latent after a step, and the clean estimate of the same call"""


def page_link(url: str) -> str:
    """Link to the report in an output: a file:// URL, or that of an object store."""
    from storage.backends import local_folder

    folder = local_folder(url)
    return f"{url.rstrip('/')}/{PAGE}" if folder is None else (folder.resolve() / PAGE).as_uri()


def wandb_group(name: str, url: str) -> str:
    """W&B group of a sweep: its name, and a hash of its output's full path or URL: two outputs never share it."""
    # W&B allows 128 characters
    return f"{name[:119]}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def wandb_page(entity: str, project: str, group: str) -> str:
    """Address of a group in W&B, or where to look for it if the account is not known."""
    server = os.environ.get("WANDB_BASE_URL", "https://wandb.ai").replace("https://api.", "https://").rstrip("/")
    return f"{server}/{entity}/{project}/groups/{group}" if entity else f"{server}, project {project}, group {group}"


def transfer_control(step: int) -> str:
    """Value of column `control` for a probe that was trained at `step` and applied at another."""
    return f"from_{step:02d}"


def trained_at(control: str) -> int | None:
    """The step in a value of `transfer_control`; None for any other control."""
    prefix, _, number = control.partition("_")
    return int(number) if prefix == "from" and number.isdigit() else None
