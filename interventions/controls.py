"""What the real edit is compared with: edits of the same size that should not move the scene.

Shapes: n trials, T tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # the planner and the report need the names alone, without torch
    from torch import Tensor

EDIT = "edit"
"""the real edit"""
STEERED = {
    EDIT: ("trained", "none"),
    "random_probe": ("random", "none"),
    "shuffled_probe": ("trained", "shuffled"),
    "late_steps": ("trained", "none"),
}
"""(variant, control) of the probe that a steered row follows"""


VARIATIONS = ("rank_one", "natural")
"""the real edit by other means, at its norm and with its signs: along the probe itself, and along the way in
which activations vary with the probe's reading (covariance times probe), which stays closer to normal"""


def probes_of(controls: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(variant, control) of the probes that the real edit and its controls need, the real one first."""
    named = [EDIT, *(name for name in controls if name in STEERED)]
    return tuple(dict.fromkeys(STEERED[name] for name in named))


def late_steps(steps: Sequence[int], total: int) -> tuple[int, ...]:
    """As many steps as the real edit has, at the end of `total`."""
    return tuple(range(total - len(steps) + 1, total + 1))


def rescaled(edit: Tensor, strength: Tensor) -> Tensor:
    """An edit (n, T, C) with each token's norm set to `strength` (n, T); a token left alone stays so."""
    norm = edit.norm(dim=-1)
    factor = (strength / norm.clamp(min=1e-30)).where(norm > 0, 0.0)
    return edit * factor[..., None]


def random_direction(centred: NDArray, probe: NDArray, generator: np.random.Generator) -> NDArray[np.float64]:
    """A unit vector (C) orthogonal to `probe` (C), drawn from the covariance of vectors (m, C).

    A Gaussian mixture of centred samples has exactly their covariance.
    """
    drawn = generator.standard_normal(len(centred)) @ centred.astype(np.float64)
    square = probe @ probe
    if square > 0:
        drawn = drawn - (drawn @ probe) / square * probe
    size = np.linalg.norm(drawn)
    if not size > 0:
        raise ValueError("control random_direction: the activations vary along the probe alone")
    return drawn / size


def probe_direction(name: str, centred: NDArray, probe: NDArray) -> NDArray[np.float64]:
    """Unit vector (C) of a variation: the probe (C), or the covariance of vectors (m, C) times the probe."""
    direction = probe if name == "rank_one" else centred.T.astype(np.float64) @ (centred @ probe)
    size = np.linalg.norm(direction)
    return direction / size if size > 0 else np.zeros_like(probe)


def along(direction: Tensor, real: Tensor, probe: Tensor) -> Tensor:
    """The real edit (n, T, C) turned into `direction` (n, C): its sign along the probe (C), its norm."""
    sign = (real @ probe).sign()
    return (sign * real.norm(dim=-1))[..., None] * direction[:, None, :]
