"""Which sampler runs, how many network calls it makes, and the noise level of each call.

The network's input is alpha x0 + sigma noise; a call's noise level is the pair (alpha, sigma). Imports neither torch
nor diffusers unless a scheduler is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LMS, OWN = "lms", "own"
"""values of `sampling.scheduler` beside class names: the paper's sampler, and that of the model's files"""
SUFFIX = "Scheduler"


@dataclass(frozen=True)
class Kind:
    """How a scheduler of diffusers stands to the network that it calls."""

    levels: str
    """where a call's noise level comes from: `scaled` (sigmas of unscaled latents), `times` (alphas_cumprod at the
    timestep), `solver` (sigmas that it converts itself), `flow`, or `edm`"""
    training: str
    """what the noise schedule is trained for: `betas`, `flow`, `edm`; `solver` ones can do betas and flow"""
    calls: str = "one"
    """network calls: `one` a step, `two` a step but the last, or those of PNDM"""


KINDS: Mapping[str, Kind] = {
    "LMSDiscrete": Kind("scaled", "betas"),
    "EulerDiscrete": Kind("scaled", "betas"),
    "EulerAncestralDiscrete": Kind("scaled", "betas"),
    "HeunDiscrete": Kind("scaled", "betas", "two"),
    "DDIM": Kind("times", "betas"),
    "DDPM": Kind("times", "betas"),
    "PNDM": Kind("times", "betas", "pndm"),
    "LCM": Kind("times", "betas"),
    "TCD": Kind("times", "betas"),
    "DPMSolverMultistep": Kind("solver", "solver"),
    "DPMSolverSinglestep": Kind("solver", "solver"),
    "DEISMultistep": Kind("solver", "solver"),
    "UniPCMultistep": Kind("solver", "solver"),
    "FlowMatchEulerDiscrete": Kind("flow", "flow"),
    "FlowMatchHeunDiscrete": Kind("flow", "flow", "two"),
    "EDMEuler": Kind("edm", "edm"),
    "EDMDPMSolverMultistep": Kind("edm", "edm"),
}
"""schedulers of diffusers that can sample here, without the word Scheduler"""


def plain(name: object) -> str:
    """A scheduler's class without the word Scheduler."""
    return str(name).removesuffix(SUFFIX)


def check_name(name: str) -> None:
    """Raise ValueError for a value of `sampling.scheduler` that is none."""
    if name not in (LMS, OWN) and plain(name) not in KINDS:
        raise ValueError(f"sampling.scheduler={name!r}: unknown; use lms, own, or {', '.join(KINDS)}")


def kind_of(sampler: str, config: Mapping[str, Any]) -> str:
    """The scheduler class that a run uses, without the word Scheduler; config: the model's scheduler file."""
    if sampler == LMS:
        return "LMSDiscrete"
    return plain(config.get("_class_name", "LMSDiscrete") if sampler == OWN else sampler)


def trained_for(config: Mapping[str, Any]) -> str:
    """What a model's scheduler file says its network was trained for: `betas`, `flow` or `edm`."""
    training = KINDS[plain(config["_class_name"])].training if plain(config.get("_class_name")) in KINDS else "betas"
    if training == "solver":
        flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
        return "flow" if flow else "betas"
    return training


def check(sampler: str, config: Mapping[str, Any]) -> str:
    """The scheduler class of a run. Raises ValueError if it cannot sample what the model was trained for."""
    kind, training = kind_of(sampler, config), trained_for(config)
    if kind not in KINDS:
        raise ValueError(
            f"scheduler/scheduler_config.json: _class_name={config.get('_class_name')} is not supported; set "
            f"sampling.scheduler to lms or one of {', '.join(KINDS)}"
        )
    can = KINDS[kind].training
    if can != training and not (can == "solver" and training in ("betas", "flow")):
        words = {"flow": "flow matching", "edm": "EDM's preconditioning", "betas": "a schedule of betas"}
        raise ValueError(
            f"scheduler/scheduler_config.json: _class_name={config.get('_class_name')} samples a model trained for "
            f"{words[training]}, which sampling.scheduler={sampler} cannot; set sampling.scheduler=own"
        )
    return kind


def calls(sampler: str, steps: int, config: Mapping[str, Any]) -> int:
    """Network calls of a sample: more than its steps for Heun's method and PNDM."""
    way = KINDS[kind_of(sampler, config)].calls
    if way == "two":
        return 2 * steps - 1
    if way == "pndm":
        return steps + (1 if config.get("skip_prk_steps") else 9)
    return steps


@dataclass(frozen=True)
class Level:
    """The noise level of one network call, whose input is alpha x0 + sigma noise."""

    alpha: float
    sigma: float


def levels(scheduler: Any) -> list[Level]:
    """The noise level of each call of a scheduler of diffusers whose timesteps are set."""
    kind = KINDS[plain(type(scheduler).__name__)]
    found = []
    for index, time in enumerate(scheduler.timesteps):
        if kind.levels == "times":
            kept = float(scheduler.alphas_cumprod[int(time)])
            found.append(Level(kept**0.5, (1 - kept) ** 0.5))
            continue
        sigma = float(scheduler.sigmas[index])
        if kind.levels == "flow":
            found.append(Level(1 - sigma, sigma))
        elif kind.levels == "solver" and scheduler.config.get("use_flow_sigmas"):
            found.append(Level(1 - sigma, sigma))
        elif kind.levels == "edm":
            data = scheduler.config.sigma_data
            found.append(Level((data**2 / (sigma**2 + data**2)) ** 0.5, (sigma**2 / (sigma**2 + data**2)) ** 0.5))
        else:
            found.append(Level((sigma**2 + 1) ** -0.5, sigma * (sigma**2 + 1) ** -0.5))
    return found


def own_scale(scheduler: Any, index: int) -> tuple[float, float]:
    """(alpha, sigma) of the latents that enter a call, in the scheduler's own scale: alpha x0 + sigma noise."""
    if KINDS[plain(type(scheduler).__name__)].levels in ("scaled", "edm"):
        return 1.0, float(scheduler.sigmas[index])
    level = levels(scheduler)[index]
    return level.alpha, level.sigma


def prediction(scheduler: Any) -> str:
    """What the network predicts: `epsilon`, `v_prediction`, `flow_prediction` or `sample`."""
    if KINDS[plain(type(scheduler).__name__)].training == "flow":
        return "flow_prediction"
    return str(scheduler.config.get("prediction_type", "epsilon"))


def clean_estimate(scheduler: Any, index: int, level: Level, latents: Tensor, inputs: Tensor, output: Tensor) -> Tensor:
    """The clean latents (n, C, h, w) that a network call implies.

    latents: those that enter the step, in the scheduler's own scale. inputs: what enters the network, of level
    `level`. output: the network's, after guidance.
    """
    if KINDS[plain(type(scheduler).__name__)].levels == "edm":
        return scheduler.precondition_outputs(latents, output, scheduler.sigmas[index])
    kind = prediction(scheduler)
    if kind == "sample":
        return output
    if KINDS[plain(type(scheduler).__name__)].levels == "scaled":
        # in the scheduler's own scale, as it computes it itself
        sigma = scheduler.sigmas[index]
        if kind == "v_prediction":
            return output * (-sigma / (sigma**2 + 1) ** 0.5) + (latents / (sigma**2 + 1))
        return latents - sigma * output
    if kind == "v_prediction":
        return level.alpha * inputs - level.sigma * output
    if kind == "flow_prediction":
        return inputs - level.sigma * output
    return (inputs - level.sigma * output) / level.alpha
