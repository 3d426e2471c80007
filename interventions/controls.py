"""Controls and variations of the real edit: edits of the same size in other directions, or at other times.

Shapes: n trials, T tokens, C channels, m activation vectors. The module itself needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # planning and the report need the names alone
    from torch import Tensor

EDIT = "edit"
"""the real edit"""
LATE_STEPS = "late_steps"
"""the real edit in the last steps. It compares timing and is no null: where late edits paint the picture as well, the
early ones are not refuted"""
MIRROR_TARGET, DECOY_PLACE = "mirror_target", "decoy_place"
SHUFFLED_PROBE = "shuffled_probe"
"""the probe of labels shuffled inside each image. It still knows each image's share of object and is no null: edits
along its pattern, or along what activations of such images share, paint objects as well"""
OTHER_PROBES = ("random_probe", SHUFFLED_PROBE, "permuted_probe")
"""edits that another network's probe drives, or one of moved labels"""
NULLS = ("random_direction", "random_probe", "permuted_probe", MIRROR_TARGET, DECOY_PLACE)
"""edits of the same size that should not reach the target: along other directions, towards the opposite move, and the
real edit shifted by half of the image in both axes"""
STEERED = {
    EDIT: ("trained", "none"),
    "random_probe": ("random", "none"),
    SHUFFLED_PROBE: ("trained", "shuffled"),
    "permuted_probe": ("trained", "permuted"),
    LATE_STEPS: ("trained", "none"),
    MIRROR_TARGET: ("trained", "none"),
}
"""edit or control -> (variant, control) of the probe that drives its inner optimisation"""
VARIATIONS = ("rank_one", "natural")
"""the real edit in one fixed direction, with its norms and signs: that of the probe, or covariance times probe, the
direction in which activations vary with the probe's output"""


def probes_of(controls: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(variant, control) of the probes that the real edit and its controls need; that of the real edit first."""
    steered = [EDIT, *(name for name in controls if name in STEERED)]
    return tuple(dict.fromkeys(STEERED[name] for name in steered))


def late_steps(steps: Sequence[int], total: int) -> tuple[int, ...]:
    """The last of `total` steps, as many as the real edit has."""
    return tuple(range(total - len(steps) + 1, total + 1))


def rescaled(edit: Tensor, strength: Tensor) -> Tensor:
    """An edit (n, T, C) with each token's norm set to `strength` (n, T); tokens without an edit stay zero."""
    norm = edit.norm(dim=-1)
    factor = (strength / norm.clamp(min=1e-30)).where(norm > 0, 0.0)
    return edit * factor[..., None]


def random_direction(
    centred: NDArray, avoided: Sequence[NDArray], generator: np.random.Generator
) -> NDArray[np.float64]:
    """Draw a unit vector (C) orthogonal to the avoided vectors (C) from the covariance of centred vectors (m, C).

    Raises ValueError if the vectors vary along the avoided ones alone.
    """
    # A sum of the centred vectors with Gaussian weights has exactly their covariance.
    drawn = generator.standard_normal(len(centred)) @ centred.astype(np.float64)
    scale = np.linalg.norm(drawn)
    basis: list[NDArray] = []
    for vector in avoided:
        length = np.linalg.norm(vector)
        for earlier in basis:
            vector = vector - (vector @ earlier) / (earlier @ earlier) * earlier
        if np.linalg.norm(vector) > 1e-9 * length:  # not a combination of the earlier ones, and not zero
            basis.append(vector)
            drawn = drawn - (drawn @ vector) / (vector @ vector) * vector
    norm = np.linalg.norm(drawn)
    if not norm > 1e-9 * scale:
        raise ValueError("control random_direction: the activations vary along the edit alone")
    return drawn / norm


def probe_direction(name: str, centred: NDArray, probe: NDArray) -> NDArray[np.float64]:
    """Unit vector (C) of a variation: the probe (C), or the covariance of centred vectors (m, C) times the probe.

    Zero if the probe is zero. The second is the pattern of a linear decoder (Haufe et al. 2014).
    """
    direction = probe if name == "rank_one" else centred.T.astype(np.float64) @ (centred @ probe)
    norm = np.linalg.norm(direction)
    return direction / norm if norm > 0 else np.zeros_like(probe)


def along(direction: Tensor, real: Tensor, probe: Tensor) -> Tensor:
    """The real edit (n, T, C) turned into `direction` (n, C): same norm, same sign along the probe (C)."""
    sign = (real @ probe).sign()
    return (sign * real.norm(dim=-1))[..., None] * direction[:, None, :]
