"""References without an optimiser's budget: closed-form ridge for depth, converged logistic for saliency.

They are the same linear map of the same activations, scored in the same way as fit_site's probes, so the difference
between both is the optimiser's. The penalty is chosen on validation samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.dataset.split import Split
from probing.probes.batched import LinearProbes, Probes
from probing.probes.config import ProbeConfig
from probing.probes.features import Activations
from probing.probes.fit import fit_site
from probing.probes.results import FitSpec, ProbeResult
from probing.probes.tasks.depth import DepthHeads
from probing.probes.tasks.heads import Heads
from probing.probes.tasks.saliency import SaliencyHeads
from probing.probes.training import BestParameters, HeadRuns, History, mean_loss
from probing.scoring.targets import Grid, Targets

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
"""weights of the squared norm, in units of the activations' mean square; without validation samples the last"""
NEWTON_STEPS = 12
"""Newton steps of the logistic fit for each penalty, starting at the solution for the last one"""

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
    """Fit the best linear probes on activations (S, N, T, C): one result per step and task of `targets`.

    Depth minimises the squared error (ridge), saliency the cross-entropy; the result has a single epoch, that of the
    chosen penalty. Raises ValueError if the inputs do not fit together."""
    config = ProbeConfig(epochs=1, bias=bias, normalise="rms", dtype="float64")
    results: dict[FitSpec, ProbeResult] = {}
    for task in targets:
        specs = [FitSpec(step, task) for step in steps]
        fitted = fit_site(acts, steps, grid, targets, split, specs, config, device, trainer=_solve)
        results.update(zip(specs, fitted, strict=True))
    return [results[FitSpec(step, task)] for step in steps for task in targets]


def _solve(
    probes: Probes, features: Activations, labels: HeadRuns, parts: dict[str, Tensor], _seed: int, _config: ProbeConfig
) -> History:
    """Set one head's probes to the solution of the best penalty."""
    assert isinstance(probes, LinearProbes)
    ((_, heads),) = labels.runs
    cost, rounds = _cost(heads)
    probes.last.rest.zero_()
    for parameter in probes.parameters:
        parameter.zero_()
    best = BestParameters(probes) if "val" in parts else None
    for penalty in PENALTIES:
        for _ in range(rounds):
            _newton_step(probes, features, cost, parts["train"], penalty)
        if best is not None:
            best.update(mean_loss(probes, features, labels, parts["val"]), epoch=0)
    if best is not None:
        best.restore()
    train = mean_loss(probes, features, labels, parts["train"])
    val = None if best is None or best.lowest is None else best.lowest[None]
    return History(train[None], val, torch.zeros_like(train, dtype=torch.long))


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
    """One Newton step on the mean loss + penalty/2 |w|^2, w for scaled activations; biases are not penalised."""
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
    patches = len(samples) * features.patches
    ridge = torch.full((size,), penalty, dtype=gram.dtype, device=gram.device)
    weights = probes.last.weight[:, 0]
    if probes.last.bias is not None:
        ridge[-1] = 1e-12
        weights = torch.cat([weights, probes.last.bias], 1)
    slope = slope / patches + (ridge * weights)[..., None]
    move = torch.linalg.solve(gram / patches + torch.diag(ridge), slope)[..., 0]
    probes.last.weight[:, 0] -= move[:, : features.acts.shape[-1]]
    if probes.last.bias is not None:
        probes.last.bias -= move[:, -1:]
