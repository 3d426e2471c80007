"""References without an optimiser's budget: closed-form ridge for depth, converged logistic for saliency.

They read the same activations through the same linear map and get the same scores as fit_site's probes, so the
gap between both says how much of a score is the optimiser's. The penalty is chosen on validation samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.dataset.split import Split
from probing.probes.batched import LinearProbes, Probes
from probing.probes.config import ProbeConfig
from probing.probes.features import Activations, Features
from probing.probes.fit import fit_cells, make_site
from probing.probes.results import FitSpec, ProbeResult
from probing.probes.tasks.depth import DepthHeads
from probing.probes.tasks.heads import Heads
from probing.probes.tasks.saliency import SaliencyHeads
from probing.probes.training import Bank, History, mean_loss
from probing.scoring.targets import Grid, Targets

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
"""weights of the squared norm, in units of the activations' mean square; without validation samples the last"""
NEWTON_STEPS = 12
"""of the logistic fit, for each penalty, from the last one's solution"""

Cost = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(predictions, samples) -> first and second derivative (S, n) of the loss by each prediction"""


def fit_converged(
    acts: NDArray,
    steps: Sequence[int],
    grid: Grid,
    targets: Mapping[str, Targets],
    split: Split,
    bias: bool = False,
    device: str | torch.device = "cpu",
) -> list[ProbeResult]:
    """Best linear probes of activations (S, N, T, C): one result per step and task of `targets`, as fit_site's.

    Depth minimises the squared error (ridge), saliency the cross-entropy; one entry in the epochs, for the
    chosen penalty. Raises ValueError where the inputs do not fit together."""
    config = ProbeConfig(epochs=1, bias=bias, normalise="rms", dtype="float64")
    site = make_site(acts, steps, grid, targets, split, config, device)
    found: dict[FitSpec, ProbeResult] = {}
    for task in targets:
        cells = [FitSpec(step, task) for step in steps]
        found.update(zip(cells, fit_cells(site, cells, _solve), strict=True))
    return [found[FitSpec(step, task)] for step in steps for task in targets]


def _solve(
    probes: Probes, features: Features, bank: Bank, parts: dict[str, Tensor], _seed: int, _config: ProbeConfig
) -> History:
    """Sets one head's probes to the best penalty's solution."""
    assert isinstance(probes, LinearProbes)
    assert isinstance(features, Activations)
    ((_, heads),) = bank.runs
    cost, rounds = _cost(heads)
    probes.last.rest.zero_()
    for parameter in probes.parameters:
        parameter.zero_()
    lowest: Tensor | None = None
    kept = [p.clone() for p in probes.parameters]
    for penalty in PENALTIES:
        for _ in range(rounds):
            _newton_step(probes, features, cost, parts["train"], penalty)
        if "val" in parts:
            loss = mean_loss(probes, features, bank, parts["val"])
            better = torch.ones_like(loss, dtype=torch.bool) if lowest is None else loss < lowest
            lowest = loss if lowest is None else torch.where(better, loss, lowest)
            for old, new in zip(kept, probes.parameters, strict=True):
                old.copy_(torch.where(better.view(*better.shape, *[1] * (new.ndim - 2)), new, old))
    for old, new in zip(kept, probes.parameters, strict=True):
        if lowest is not None:
            new.copy_(old)
    train = mean_loss(probes, features, bank, parts["train"])
    return History(train[None], None if lowest is None else lowest[None], torch.zeros_like(train, dtype=torch.long))


def _cost(heads: Heads) -> tuple[Cost, int]:
    """Derivatives of a task's loss, and how many Newton steps reach its minimum."""
    if isinstance(heads, DepthHeads):
        mean = heads.shape[0, 0]

        def squares(prediction: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
            return prediction - mean.index_select(0, samples).flatten(), torch.ones_like(prediction)

        return squares, 1
    if not isinstance(heads, SaliencyHeads):
        raise ValueError("converged references exist for the tasks saliency and depth")
    fraction = heads.fraction[0]

    def logistic(prediction: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        share = prediction.sigmoid()
        return share - fraction.index_select(0, samples).flatten(), (share * (1 - share)).clamp(min=1e-9)

    return logistic, NEWTON_STEPS


def _newton_step(probes: LinearProbes, features: Activations, cost: Cost, samples: Tensor, penalty: float) -> None:
    """One Newton step on the mean loss + penalty/2 |w|^2, w in units of scaled activations (biases are free)."""
    size = features.acts.shape[-1] + (probes.last.bias is not None)
    steps = len(features.acts)
    gram = probes.scale.new_zeros(steps, size, size)
    slope = probes.scale.new_zeros(steps, size, 1)
    batch = features.batch(samples)
    first, second = cost(probes.forward(batch)[:, 0], samples)
    for columns, raw in batch.slabs():
        x = raw / probes.scale[:, None, None]
        if probes.last.bias is not None:
            x = torch.cat([x, torch.ones_like(x[..., :1])], 2)
        gram += (x * second[:, columns, None]).transpose(1, 2) @ x
        slope += x.transpose(1, 2) @ first[:, columns, None]
    cells = len(samples) * features.cells
    ridge = torch.full((size,), penalty, dtype=gram.dtype, device=gram.device)
    weights = probes.last.weight[:, 0]
    if probes.last.bias is not None:
        ridge[-1] = 1e-12
        weights = torch.cat([weights, probes.last.bias], 1)
    slope = slope / cells + (ridge * weights)[..., None]
    move = torch.linalg.solve(gram / cells + torch.diag(ridge), slope)[..., 0]
    probes.last.weight[:, 0] -= move[:, : features.acts.shape[-1]]
    if probes.last.bias is not None:
        probes.last.bias -= move[:, -1:]
