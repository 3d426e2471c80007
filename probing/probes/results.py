"""Results of fitted probes, and the rows of the results tables that they make."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.dataset.split import Split
from probing.probes.batched import Weights
from probing.probes.tasks.heads import Scores
from probing.probes.training import History

IMAGE_COLUMNS = (
    "dice",
    "oracle_dice",
    "ap",
    "rmse",
    "oracle_rmse",
    "rmse_aligned",
    "spearman",
    "pearson",
    "rmse_object",
    "rmse_background",
    "spearman_residual",
)
"""scores of every test image that results/images has columns for"""


@dataclass(frozen=True, order=True)
class FitSpec:
    """One probe within the fit of a (variant, site)."""

    step: int
    """denoising step, as given in `steps`"""
    task: str
    """name in the task registry"""
    control: str = "none"
    """see controls.CONTROLS"""
    seed: int = 0
    """of the start, of the order of samples and of the control's permutation"""

    @property
    def key(self) -> dict[str, object]:
        """The columns that identify the probe in every results table."""
        return {"step": self.step, "task": self.task, "control": self.control, "seed": self.seed}


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """A fitted probe with its scores; a failed one has no weights, and the reason in its row."""

    spec: FitSpec
    weights: NDArray | None
    """(O, C), or (O, C + 1) with the bias last, for raw activations; position: (O, T [+ 1]); position_activation:
    (O, C + T [+ 1]); with a hidden layer (O, units [+ 1])"""
    hidden: NDArray | None
    """(units, C [+ 1]) hidden layer of an MLP probe, else None"""
    scale: float
    """the activations' root mean square, already folded into the weights (1 without normalising)"""
    row: dict[str, object]
    """columns of results/probes; None if undefined"""
    images: list[dict[str, object]] = field(default_factory=list)
    """columns of results/images, one row per test image"""
    epochs: list[dict[str, object]] = field(default_factory=list)
    """columns of results/epochs, epochs counted from 1"""
    dropped: dict[str, int] = field(default_factory=dict)
    """score -> test images on which it is undefined, left out of its mean"""

    @property
    def ok(self) -> bool:
        """Whether the probe was fitted."""
        return self.row["status"] == "done"


def failed(columns: dict[str, object], spec: FitSpec, reason: str) -> ProbeResult:
    """The result of a probe that could not be fitted; columns: those that all probes of the site share."""
    row = {**spec.key, **columns, "seconds": 0.0, "status": "failed", "error": reason}
    return ProbeResult(spec, None, None, 1.0, row)


@dataclass(frozen=True, eq=False)
class Fitted:
    """The outcome of a batched problem of S steps and K heads."""

    columns: dict[str, object]
    """columns of results/probes that all probes of the site share"""
    split: Split
    """sample numbers"""
    specs: list[list[FitSpec]]
    """[step][head]"""
    weights: Weights
    """[step][head] last layer and hidden layer"""
    scale: list[float]
    """[step] root mean square folded into the weights"""
    history: History
    """losses of every epoch"""
    test_loss: Tensor
    """(S, K)"""
    scores: list[Scores]
    """of each task's heads, in order"""
    finite: dict[str, Tensor]
    """part of the split -> (S, K, samples) whether all predictions are finite"""

    def results(self, seconds: float) -> dict[FitSpec, ProbeResult]:
        """One result per probe; each has an equal share of the seconds."""
        tables = _Tables(self)
        share = seconds / sum(len(row) for row in self.specs)
        return {
            spec: self._result(s, k, spec, share, tables)
            for s, row in enumerate(self.specs)
            for k, spec in enumerate(row)
        }

    def _result(self, s: int, k: int, spec: FitSpec, seconds: float, tables: _Tables) -> ProbeResult:
        weights, hidden = self.weights[s][k]
        reason = self._failure(s, k, weights)
        if reason:
            return failed(self.columns, spec, reason)
        epochs = tables.epochs(s, k, spec)
        chosen = epochs[tables.chosen[s][k]]
        test_loss = tables.test_loss[s][k]
        losses = {"train_loss": chosen["train_loss"], "val_loss": chosen["val_loss"], "test_loss": test_loss}
        if spec.task == "saliency":
            losses["crossentropy"] = test_loss
        images, dropped = tables.images(s, k, spec)
        scores = {name: values[s] for name, values in tables.probe_scores[k].items()}
        status = {"seconds": seconds, "status": "done", "error": None, "dropped": max(dropped.values(), default=0)}
        row = {**spec.key, **self.columns, **losses, **scores, **status}
        return ProbeResult(spec, weights, hidden, self.scale[s], row, images, epochs, dropped)

    def _failure(self, s: int, k: int, weights: NDArray) -> str | None:
        """Why a probe failed, if it did."""
        if not np.isfinite(weights).all():
            return "the weights are no longer finite: lower probe.lr"
        for part, finite in self.finite.items():
            bad = (~finite[s, k]).nonzero().flatten().tolist()
            if bad:
                sample = getattr(self.split, part)[bad[0]]
                return f"{part} sample {sample}: the prediction is not finite, so its activation is not either"
        return None


class _Tables:
    """A batched problem's numbers as nested lists, copied from the device once."""

    def __init__(self, fitted: Fitted) -> None:
        history = fitted.history
        self.samples = fitted.split.test.tolist()
        self.train = history.train.permute(1, 2, 0).tolist()
        undefined = torch.full_like(history.train, torch.nan)
        self.val = _plain((undefined if history.val is None else history.val).permute(1, 2, 0))
        self.chosen, self.test_loss = history.chosen.tolist(), fitted.test_loss.tolist()
        self.probe_scores = [table for scores in fitted.scores for table in _by_head(scores.probes)]
        self.image_scores = [table for scores in fitted.scores for table in _by_head(scores.images)]

    def epochs(self, s: int, k: int, spec: FitSpec) -> list[dict[str, object]]:
        """Rows of results/epochs."""
        losses = zip(self.train[s][k], self.val[s][k], strict=True)
        return [
            {**spec.key, "epoch": number, "train_loss": train, "val_loss": val}
            for number, (train, val) in enumerate(losses, 1)
        ]

    def images(self, s: int, k: int, spec: FitSpec) -> tuple[list[dict[str, object]], dict[str, int]]:
        """Rows of results/images, and on how many images each score is undefined."""
        table = self.image_scores[k]
        columns = {name: table[name][s] for name in IMAGE_COLUMNS if name in table}
        dropped = {name: values.count(None) for name, values in columns.items() if None in values}
        names = ("sample", *columns)
        values = zip(self.samples, *columns.values(), strict=True)
        return [{**spec.key, **dict(zip(names, row, strict=True))} for row in values], dropped


def _by_head(scores: dict[str, Tensor]) -> list[dict[str, list]]:
    """Tables (S, H, ...) as one dictionary per head of lists by step."""
    moved = {name: _plain(values.transpose(0, 1)) for name, values in scores.items()}
    heads = len(next(iter(moved.values())))
    return [{name: values[head] for name, values in moved.items()} for head in range(heads)]


def _plain(values: Tensor) -> list:
    """Nested lists of floats, None if undefined."""
    array = values.cpu().numpy()
    undefined = ~np.isfinite(array)
    if not undefined.any():
        return array.tolist()
    plain = array.astype(object)
    plain[undefined] = None
    return plain.tolist()
