"""Scores of one prediction per patch against full-size labels, exact from pooled labels.

Every function scores single images along the last axis: predictions (..., T), labels broadcast against them,
results (...) in float64. Scores that are undefined (average precision without foreground, correlations of a constant
map) are NaN; callers leave them out of means and count them. K is the number of pixels in a patch (`pixels`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from probing.scoring.floors import QUANTILES, SMOOTH


def dice(chosen: Tensor, counts: Tensor, pixels: int) -> Tensor:
    """Dice of the mask that enlarges `chosen` (..., T) bool; counts: (..., T) foreground pixels of each patch."""
    counts = counts.double()
    overlap = (chosen * counts).sum(-1)
    size = chosen.sum(-1, dtype=torch.float64) * pixels + counts.sum(-1)
    return (2 * overlap + SMOOTH) / (size + SMOOTH)


def dice_background(chosen: Tensor, counts: Tensor, pixels: int) -> Tensor:
    """Dice of the complements: how well the background is predicted."""
    return dice(~chosen, pixels - counts, pixels)


def average_precision(score: Tensor, counts: Tensor, pixels: int) -> Tensor:
    """Area under the stepwise precision-recall curve over all pixels of an image, ties kept together.

    Equals scikit-learn's average_precision_score of the enlarged scores. NaN without foreground."""
    ordered, order = score.sort(dim=-1, descending=True)
    hits = counts.double().expand(score.shape).gather(-1, order).cumsum(-1)
    chosen = torch.arange(1, score.shape[-1] + 1, device=score.device) * float(pixels)
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[..., :-1] = ordered[..., :-1] != ordered[..., 1:]
    before = torch.where(last, hits, 0.0).cummax(-1).values.roll(1, -1)
    before[..., 0] = 0.0
    area = torch.where(last, (hits - before) * hits / chosen, 0.0).sum(-1)
    return area / hits[..., -1]


def dice_at_thresholds(score: Tensor, counts: Tensor, pixels: int, thresholds: Tensor) -> Tensor:
    """Dice of the masks score > threshold: score (..., T), thresholds (..., Q) -> (..., Q)."""
    ordered, order = score.sort(dim=-1)
    foreground = counts.double().expand(score.shape).gather(-1, order).cumsum(-1)
    below = torch.searchsorted(ordered, thresholds.contiguous(), right=True)
    missed = torch.where(below > 0, foreground.gather(-1, (below - 1).clamp(min=0)), 0.0)
    total = foreground[..., -1:]
    size = (score.shape[-1] - below).double() * pixels + total
    return (2 * (total - missed) + SMOOTH) / (size + SMOOTH)


def best_threshold(score: Tensor, counts: Tensor, pixels: int) -> Tensor:
    """The threshold (...) with the highest mean Dice over images; score, counts: (..., N, T).

    Candidates are zero (the argmax, which wins ties) and quantiles of all scores."""
    flat = score.flatten(-2).sort(dim=-1).values
    places = torch.linspace(0, flat.shape[-1] - 1, QUANTILES, device=score.device).long()
    candidates = torch.cat([torch.zeros_like(flat[..., :1]), flat[..., places]], -1)
    spread = candidates.unsqueeze(-2).expand(*score.shape[:-1], -1)
    quality = dice_at_thresholds(score, counts, pixels, spread).mean(-2)
    return candidates.gather(-1, quality.argmax(-1, keepdim=True)).squeeze(-1)


def oracle_dice(counts: Tensor, pixels: int) -> Tensor:
    """The best Dice that a mask made of whole patches can reach: the densest patches, the best number of them."""
    ordered = counts.double().sort(dim=-1, descending=True).values
    hits = torch.nn.functional.pad(ordered.cumsum(-1), (1, 0))
    size = torch.arange(hits.shape[-1], device=counts.device) * float(pixels) + hits[..., -1:]
    return ((2 * hits + SMOOTH) / (size + SMOOTH)).amax(-1)


def squared_error(prediction: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Mean squared error over an image's pixels, from the patches' label means and population variances."""
    return ((prediction.double() - mean).square() + variance).mean(-1)


def squared_error_inside(prediction: Tensor, pixels: Tensor, total: Tensor, squares: Tensor) -> Tensor:
    """Mean squared error over the pixels of a region; NaN if it is empty.

    pixels, total, squares: (..., T) the region's pixels in each patch, the sum of their labels and of its squares."""
    prediction = prediction.double()
    error = (prediction.square() * pixels - 2 * prediction * total + squares).sum(-1).clamp(min=0)
    size = pixels.sum(-1)
    return torch.where(size > 0, error / size.clamp(min=1), torch.nan)


def rmse_aligned(prediction: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """RMSE after the best scale and shift of each image's prediction; after the best shift if it is constant."""
    prediction = prediction.double()
    left = prediction - prediction.mean(-1, keepdim=True)
    right = mean - mean.mean(-1, keepdim=True)
    scale = (left * right).sum(-1, keepdim=True) / left.square().sum(-1, keepdim=True).clamp(min=1e-300)
    return squared_error(scale * left, right, variance).sqrt()


def pearson(prediction: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Pearson correlation over pixels; NaN if prediction or label is constant."""
    prediction = prediction.double()
    left = prediction - prediction.mean(-1, keepdim=True)
    right = mean - mean.mean(-1, keepdim=True)
    label = right.square().mean(-1) + variance.mean(-1)
    return _correlation((left * right).mean(-1), left.square().mean(-1), label)


def patch_ranks(prediction: Tensor, pixels: int) -> Tensor:
    """Tie-averaged rank (1 to H*W) that every pixel of a patch has within the enlarged prediction."""
    ordered, order = prediction.sort(dim=-1)
    patches = prediction.shape[-1]
    index = torch.arange(patches, device=prediction.device).expand(prediction.shape)
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    is_new[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    start = torch.where(is_new, index, 0).cummax(-1).values
    ends = torch.where(is_new.roll(-1, -1), index, patches).flip(-1).cummin(-1).values.flip(-1)
    ranks = ((start + ends + 1).double() * pixels + 1) / 2
    return torch.empty_like(ranks).scatter_(-1, order, ranks)


def spearman(prediction: Tensor, pixels: int, rank_sums: Tensor, rank_squares: Tensor) -> Tensor:
    """Spearman correlation over pixels from the patches' label rank sums (..., T) and centred squares (...).

    NaN if prediction or label is constant."""
    middle = (prediction.shape[-1] * pixels + 1) / 2
    ranks = patch_ranks(prediction, pixels) - middle
    joint = (ranks * (rank_sums - middle * pixels)).sum(-1)
    return _correlation(joint, ranks.square().sum(-1) * pixels, rank_squares)


def _correlation(joint: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """joint / sqrt(left right), NaN if either is numerically zero."""
    tiny = 1e-24
    ok = (left > tiny) & (right > tiny)
    return torch.where(ok, joint / (left * right).clamp(min=tiny * tiny).sqrt(), torch.nan)
