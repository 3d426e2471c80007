"""Is the representation shared between steps? A probe of one step applied to the activations of the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.probes.batched import predict
from probing.scoring import metrics
from probing.scoring.targets import DepthTargets, SaliencyTargets, Targets

Scores = dict[str, NDArray[np.float64]]
"""name -> (probes, steps), mean over images, undefined scores left out"""


def transfer(
    weights: Sequence[NDArray], acts: Sequence[NDArray], targets: Targets, samples: NDArray[np.int64]
) -> Scores:
    """Scores of every probe on the activations of every step.

    weights: probes (O, C [+ 1]) for raw activations, one per step they were trained at. acts: (n, T, C) of
    each step they are applied at. targets: pooled labels, of which `samples` (n) are those of the activations.
    """
    rows = [_row([_read(w, values) for values in acts], targets, samples) for w in weights]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _read(weights: NDArray, acts: NDArray) -> Tensor:
    """Logit difference or depth (n, T)."""
    out = predict(weights, torch.from_numpy(np.ascontiguousarray(acts)))
    return out[..., 1] - out[..., 0] if out.shape[-1] == 2 else out[..., 0]


def _row(predictions: Sequence[Tensor], targets: Targets, samples: NDArray[np.int64]) -> Scores:
    read = torch.stack(list(predictions))
    if isinstance(targets, SaliencyTargets):
        found = _saliency(read, targets, samples)
    else:
        found = _depth(read, targets, samples)
    return {name: values.nanmean(-1).numpy() for name, values in found.items()}


def _saliency(read: Tensor, targets: SaliencyTargets, samples: NDArray[np.int64]) -> dict[str, Tensor]:
    counts = torch.from_numpy(targets.counts[samples])
    return {
        "dice": metrics.dice(read > 0, counts, targets.pixels),
        "ap": metrics.average_precision(read, counts, targets.pixels),
    }


def _depth(read: Tensor, targets: DepthTargets, samples: NDArray[np.int64]) -> dict[str, Tensor]:
    mean, variance = (torch.from_numpy(a[samples]) for a in (targets.mean, targets.variance))
    return {
        "rmse": metrics.squared_error(read, mean, variance).sqrt(),
        "rmse_aligned": metrics.rmse_aligned(read, mean, variance),
        "pearson": metrics.pearson(read, mean, variance),
    }
