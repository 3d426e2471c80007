"""Versions of Ray and Python, which must agree between a cluster, this process and submitted jobs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping

SUBMITTED_FROM = "SCENESWEEP_SUBMITTED_FROM"
"""Environment variable of a job: versions on the machine that submitted it, as JSON."""


def versions() -> dict[str, str]:
    """Ray and Python of this process."""
    import ray

    return {"ray": ray.__version__, "python": platform.python_version()}


def check_versions(cluster: Mapping[str, str], where: str) -> None:
    """Raise ValueError, naming both sides, if Ray or Python of a cluster differs from this process.

    Only the entries of `cluster` ("ray", "python") are compared.
    """
    here = versions()
    if any(here[name] != version for name, version in cluster.items()):
        ours = _text({name: here[name] for name in cluster})
        raise ValueError(f"the cluster at {where} runs {_text(cluster)}, this process {ours}: use the same on both")


def check_arrival() -> None:
    """Raise ValueError inside a job whose Ray or Python differs from the machine that submitted it.

    Ray must be equal, Python up to its last number. Does nothing outside a job.
    """
    sent = json.loads(os.environ.get(SUBMITTED_FROM, "{}"))
    if not sent:
        return
    here = versions()
    if sent["ray"] != here["ray"] or sent["python"].rpartition(".")[0] != here["python"].rpartition(".")[0]:
        raise ValueError(
            f"submitted from {_text(sent)}, the cluster runs {_text(here)}: use the same on both, see the image"
        )


def _text(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name.title()} {versions[name]}" for name in ("ray", "python") if name in versions)
