"""A scheduler's file: what it says about the noise that a model was trained with, and whether a sampler fits it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probing.diffusion import schedules
from probing.diffusion.config import PAPER_STEPS
from probing.diffusion.parts.fields import (
    BETA,
    FLAG,
    NO_EFFECT,
    NULL,
    NUMBER,
    POSITIVE,
    SHARE,
    Field,
    check_fields,
    each,
    only,
    refuse,
    whole,
)
from probing.diffusion.parts.reading import read_json
from probing.diffusion.schedules import LMS

SCHEDULER_FILE = "scheduler/scheduler_config.json"
PREDICTIONS = ("epsilon", "v_prediction", "flow_prediction", "sample")
"""of which the clean estimate is known"""
NOISE = {
    "num_train_timesteps": whole(1),
    "beta_start": BETA,
    "beta_end": BETA,
    "beta_schedule": only("linear", "scaled_linear", "squaredcos_cap_v2"),
    "trained_betas": each(BETA) | NULL,
    "prediction_type": only("epsilon", "v_prediction"),
    "timestep_spacing": only("linspace", "leading", "trailing"),
    "steps_offset": whole(0),
    "use_karras_sigmas": FLAG,
    "use_exponential_sigmas": FLAG,
    "use_beta_sigmas": FLAG,
}
"""fields of a scheduler that are honoured: the noise schedule that the model was trained with, and the places of steps
in it. They are all that diffusers' LMSDiscreteScheduler takes"""

SCHEDULER = (
    NOISE
    | {
        "rescale_betas_zero_snr": only(False),  # LMS cannot start from pure noise, of infinite sigma
        "use_flow_sigmas": only(False),
        "use_dynamic_shifting": only(False),
        "shift_terminal": NULL,
        "sigma_min": NULL,
        "sigma_max": NULL,
        "timestep_type": only("discrete"),
    }
    | dict.fromkeys(
        # of the samplers that LMS takes the place of
        "algorithm_type clip_sample clip_sample_range corrector_order disable_corrector dynamic_thresholding_ratio "
        "euler_at_final final_sigmas_type flow_shift interpolation_type lambda_min_clipped lower_order_final "
        "noise_sampler_seed predict_x0 predictor_order sample_max_value set_alpha_to_one skip_prk_steps solver_order "
        "solver_p solver_type tau_func tensor_format thresholding time_shift_type use_lu_lambdas variance_type".split(),
        NO_EFFECT,
    )
)
"""fields of the schedulers in SCHEDULERS"""

BUILT = (
    dict.fromkeys(SCHEDULER, NO_EFFECT)
    | NOISE
    | {
        "beta_schedule": only("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
        "prediction_type": only(*PREDICTIONS),
        "algorithm_type": only("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis"),
        "disable_corrector": each(whole(0)) | only([]),
        "dynamic_thresholding_ratio": SHARE,
        "final_sigmas_type": only("zero", "sigma_min"),
        "interpolation_type": only("linear", "log_linear"),
        "lambda_min_clipped": Field("a number", lambda v: type(v) in (int, float) and not math.isnan(v)),
        "sigma_schedule": only("karras", "exponential"),
        "solver_order": only(1, 2, 3),
        "solver_p": NULL,
        "solver_type": only("midpoint", "heun", "logrho", "bh1", "bh2"),
        "time_shift_type": only("exponential", "linear"),
        "timestep_type": only("discrete", "continuous"),
        "variance_type": only(
            "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range", None
        ),
    }
    | dict.fromkeys(("base_image_seq_len", "max_image_seq_len", "original_inference_steps"), whole(1))
    | dict.fromkeys(("clip_sample_range", "flow_shift", "rho", "sample_max_value", "shift", "sigma_data"), POSITIVE)
    | dict.fromkeys(("base_shift", "max_shift"), NUMBER | NULL)
    | dict.fromkeys(("shift_terminal", "sigma_max", "sigma_min"), POSITIVE | NULL)
    | {"timestep_scaling": POSITIVE}
    | dict.fromkeys(
        "clip_sample euler_at_final invert_sigmas lower_order_final predict_x0 rescale_betas_zero_snr set_alpha_to_one "
        "skip_prk_steps stochastic_sampling thresholding use_dynamic_shifting use_flow_sigmas use_lu_lambdas".split(),
        FLAG,
    )
)
"""fields of the schedulers in schedules.KINDS, which diffusers builds from the whole file: each class takes some of
them, and those of other classes have no effect on it. diffusers would drop what is not here"""

_BETAS = {"beta_start": 0.0001, "beta_end": 0.02}
_LATENT_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS = {
    **dict.fromkeys(
        "DDIM DDIMParallel DDPM DDPMParallel DEISMultistep DPMSolverMultistep DPMSolverSinglestep "
        "EulerAncestralDiscrete EulerDiscrete LMSDiscrete PNDM SASolver UniPCMultistep".split(),
        _BETAS,
    ),
    **dict.fromkeys("DPMSolverSDE HeunDiscrete KDPM2AncestralDiscrete KDPM2Discrete".split(), _LATENT_BETAS),
}
"""schedulers of a discrete noise schedule, without the word Scheduler, and the betas of a file that names none"""


def lms_settings(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of diffusers' LMSDiscreteScheduler for a pipeline's scheduler configuration.

    The protocol samples every model with LMS (section 3.1: 15 steps), whichever sampler its file names. The model's
    noise schedule, what it predicts and the spacing of steps are taken from the file; fields of the replaced sampler
    have no effect. A missing spacing is LMS's own, evenly spaced, as in the paper.
    """
    kind = str(scheduler.get("_class_name", "LMSDiscreteScheduler")).removesuffix("Scheduler")
    return SCHEDULERS.get(kind, _BETAS) | {name: scheduler[name] for name in NOISE if name in scheduler}


def unlike_earlier(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a scheduler that runs of earlier versions dropped, where they differ from what was used."""
    settings = lms_settings(scheduler)
    used: dict[str, Any] = {"trained_betas": None, "timestep_spacing": "linspace"}
    used |= dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), False)
    found = {name: settings[name] for name, value in used.items() if settings.get(name, value) != value}
    if "timestep_spacing" in found and settings.get("steps_offset", 0) != 0:
        found["steps_offset"] = settings["steps_offset"]
    if "beta_start" not in scheduler and settings["beta_start"] != _BETAS["beta_start"]:
        found["beta_start"] = settings["beta_start"]
    return found


def read_scheduler(folder: Path, sampler: str = LMS, steps: int = PAPER_STEPS) -> dict[str, Any]:
    """The scheduler's configuration, for a value of `sampling.scheduler`.

    LMS takes only the noise schedule from the file; another sampler is built by diffusers from the whole file.
    steps: of sampling. Raises ValueError for a scheduler or a field that is not supported, or that does not fit the
    sampler.
    """
    name = SCHEDULER_FILE
    values = read_json(folder, name)
    if "_class_name" not in values:
        component = read_json(folder, "model_index.json").get("scheduler")
        values["_class_name"] = component[1] if isinstance(component, list) and len(component) == 2 else None
    kind = values["_class_name"]
    if not isinstance(kind, str) or schedules.plain(kind) not in {*SCHEDULERS, *schedules.KINDS}:
        known = ", ".join(sorted({*SCHEDULERS, *schedules.KINDS}))
        raise refuse(name, "_class_name", f"={kind} is not supported; supported: {known}")
    if sampler == LMS and schedules.plain(kind) in ("LCM", "TCD"):
        raise refuse(name, "_class_name", f"={kind} is not what LMS can take the place of; set sampling.scheduler=own")
    schedules.check(sampler, values)
    edm = {"sigma_min": POSITIVE, "sigma_max": POSITIVE} if schedules.trained_for(values) == "edm" else {}
    check_fields(name, values, SCHEDULER if sampler == LMS else BUILT | edm)
    settings = lms_settings(values)
    if sampler != LMS:
        settings.pop("timestep_spacing", None)  # where steps may be differs from class to class
        if values.get("shift_terminal") is not None and schedules.trained_for(values) != "flow":
            raise refuse(name, "shift_terminal", f"={values['shift_terminal']} is of models trained by flow matching")
    _check_noise(name, settings, steps)
    return values


def _check_noise(name: str, settings: Mapping[str, Any], steps: int) -> None:
    count, betas = settings.get("num_train_timesteps", 1000), settings.get("trained_betas")
    if betas is not None and len(betas) != count:
        raise refuse(name, "trained_betas", f" has {len(betas)} values, num_train_timesteps is {count}")
    if steps > count:
        raise refuse(name, "num_train_timesteps", f"={count} are fewer than sampling.steps={steps}")
    if settings.get("timestep_spacing") == "leading":
        last = count // steps * (steps - 1) + settings.get("steps_offset", 0)
        if last >= count:
            raise refuse(name, "steps_offset", f" puts a step at {last}, num_train_timesteps is {count}")
    if sum(bool(settings.get(f"use_{which}_sigmas")) for which in ("karras", "exponential", "beta")) > 1:
        raise refuse(name, "use_karras_sigmas", ", use_exponential_sigmas and use_beta_sigmas exclude each other")
