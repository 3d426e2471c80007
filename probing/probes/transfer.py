"""Probes of one denoising step applied to the activations of the others: is the representation shared between steps?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.probes.batched import predict
from probing.scoring import metrics
from probing.scoring.targets import SaliencyTargets, Targets

Scores = dict[str, NDArray[np.float64]]
"""name -> (probes, steps), mean over images, undefined scores left out"""


def transfer(
    weights: Sequence[NDArray], acts: Sequence[NDArray], targets: Targets, samples: NDArray[np.int64]
) -> Scores:
    """Score every probe on the activations of every step.

    weights: probes (O, C [+ 1]) for raw activations, one per step they were trained at. acts: (n, T, C) of
    each step they are applied at. targets: pooled labels; `samples` (n) are the numbers of those with activations.
    """
    tensors = [torch.from_numpy(np.ascontiguousarray(values)) for values in acts]
    rows = [_scores(torch.stack([_output(w, values) for values in tensors]), targets, samples) for w in weights]
    means = [{name: values.nanmean(-1).numpy() for name, values in row.items()} for row in rows]
    return {name: np.stack([row[name] for row in means]) for name in means[0]}


def _output(weights: NDArray, acts: Tensor) -> Tensor:
    """Logit difference or depth (n, T)."""
    out = predict(weights, acts)
    return out[..., 1] - out[..., 0] if out.shape[-1] == 2 else out[..., 0]


def _scores(output: Tensor, targets: Targets, samples: NDArray[np.int64]) -> dict[str, Tensor]:
    """Scores (steps, n) of outputs (steps, n, T)."""
    if isinstance(targets, SaliencyTargets):
        counts = torch.from_numpy(targets.counts[samples])
        return {
            "dice": metrics.dice(output > 0, counts, targets.pixels),
            "ap": metrics.average_precision(output, counts, targets.pixels),
        }
    mean, variance = (torch.from_numpy(a[samples]) for a in (targets.mean, targets.variance))
    return {
        "rmse": metrics.squared_error(output, mean, variance).sqrt(),
        "rmse_aligned": metrics.rmse_aligned(output, mean, variance),
        "pearson": metrics.pearson(output, mean, variance),
    }
