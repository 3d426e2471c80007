"""How long a run takes: expected seconds by stage, for the plan's first line and for the time left of a run.

With the embedded model they come from measurements of the default run on 2 CPU cores; with other models from the rates
of a card, measured or assumed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from probing.diffusion.config import SCENES, SCENES_DIT
from sweeps.config.schema import Config
from sweeps.planning import cluster_costs, measured
from sweeps.planning.measured import Measured
from sweeps.planning.rates import ASSUMPTIONS, SUSTAINED, Rates, sample_tflop
from sweeps.runtime import experiments
from sweeps.runtime.grid import pack, picture_steps, probe_specs
from sweeps.runtime.live_status import LiveStatus
from sweeps.runtime.run import Run
from sweeps.stages import curate, intervene, replay, sample
from sweeps.stages.all import STAGES
from sweeps.stages.base import PlanInput, Stage
from sweeps.stages.experiments import stage as experiments_stage

START = 8.0
"""seconds until the workers of a stage have loaded what they need"""
PER_CALL = {
    SCENES: {"sample": 0.046, "intervene": 0.07, "experiments": 0.046},
    SCENES_DIT: {"sample": 0.08, "intervene": 0.09, "experiments": 0.08},
}
"""seconds of one core for a network call of an embedded model; those of edits include the inner optimisation"""
PER_LABEL, PER_REPLAY, PER_DECODE, PER_EMERGENCE = 0.03, 0.011, 0.03, 0.06
"""seconds of one core for a sample, or for a sample at one step"""
PER_PROBE, PER_FIT = 0.015, 1.1e-5
"""seconds of one core for a probe, and for a training sample in one of its epochs"""
REPORT, TRACK = 8.0, 15.0


def cores(config: Config) -> int:
    """Number of CPU cores that the work runs on here."""
    here = os.cpu_count() or 1
    return 1 if config.ray.address == "none" else config.ray.num_cpus or here


def embedded(config: Config) -> bool:
    """Whether a run is of the embedded models, whose speed was measured."""
    return config.model.name in PER_CALL


def card_rates(plan: PlanInput, given: Rates | None = None, card: Measured | None = None) -> Rates:
    """The rates of a run on GPUs: those given, else those measured on a card, else assumptions.

    card: without one, that whose rates ship with the package, if there is one. Its rate of sampling is that of one
    model; for another model or number of steps it is scaled by the operations of a sample.
    """
    config, (height, width) = plan.config, plan.model_info.image
    tflop = sample_tflop(config.model.name, config.total_steps, height * width)
    rates, card = given or Rates(), card or measured.shipped()
    if card:
        own = sample_tflop(card.model, card.steps, 512**2) / tflop
        rates = rates.over(replace(card.rates, sampling=card.rates.sampling * own), "measured")
    return rates.over(replace(ASSUMPTIONS, sampling=SUSTAINED / tflop), "assumed")


def expected(plan: PlanInput, rates: Rates | None = None) -> dict[str, float]:
    """Seconds by name of the stage that runs, in the order of the stages; then of report and W&B mirror.

    rates: of a card, as `card_rates` returns them, its default without.
    """
    seconds = _on_cores(plan) if embedded(plan.config) else _on_gpu(plan, rates or card_rates(plan))
    names = [stage.INFO.name for stage in STAGES if stage is curate or stage.INFO.name in seconds or stage.prices(plan)]
    found = {name: seconds.get(name, 0.0) for name in names} | {"report": REPORT}
    return found | ({} if plan.config.tracking.mode == "disabled" else {"track": TRACK})


def left(run: Run, stages: Sequence[Stage[Any]], plan: PlanInput, report: bool) -> dict[str, float]:
    """The same for what is left of a run that has begun: stages with missing tasks, and all that follow them."""
    whole, found = expected(plan), {}
    for stage in stages:
        name, missing = stage.INFO.name, len(stage.missing(run))
        if missing:
            total = sum(row.total or 0 for row in stage.status(run, LiveStatus()).rows)
            found[name] = whole.get(name, 0.0) * (min(1.0, missing / total) if total else 1.0)
        elif found and name in whole:
            found[name] = whole[name]  # its tasks are not known before the stages above are done
    return found | {name: whole[name] for name in ("report", "track") if report and name in whole}


def _on_cores(plan: PlanInput) -> dict[str, float]:
    config, samples = plan.config, plan.samples
    calls = {stage.INFO.name: sum(p.calls for p in stage.prices(plan)) for stage in (sample, intervene)}
    calls["experiments"] = sum(price.calls for price in experiments_stage.prices(plan))
    work = {name: PER_CALL[config.model.name][name] * count for name, count in calls.items()}
    work["label"] = PER_LABEL * samples
    stepped = {*replay.FAMILIES, "emergence"} & set(config.experiments.names)
    steps = {name: experiments.steps(config, name) for name in stepped}
    work["family"] = PER_REPLAY * samples * sum(len(steps.get(family, ())) for family in replay.FAMILIES)
    work["decoded"] = PER_DECODE * samples * len(picture_steps(config.sweep))
    probes = len(probe_specs(config.sweep, config.sampling.variants, plan.sites))
    probes += len(experiments.probe_specs(config, plan.model_info))
    train = config.curation.train if config.curation.train >= 1 else config.curation.train * samples
    work["probe"] = probes * (PER_PROBE + PER_FIT * config.probe.epochs * train)
    images = min(config.experiments.emergence_images or plan.test, plan.test)
    work["experiments"] += PER_EMERGENCE * 2 * images * len(steps.get("emergence", ()))
    return {name: START + seconds / cores(config) for name, seconds in work.items() if seconds} | {"curate": 1.0}


def _on_gpu(plan: PlanInput, rates: Rates) -> dict[str, float]:
    probes = probe_specs(plan.config.sweep, plan.config.sampling.variants, plan.sites)
    trials = len(pack(probes, plan.config.sweep.trial_axes))
    names = {"sampling": "sample", "labelling": "label", "probing": "probe", "editing": "intervene"}
    return {
        names[one.name]: one.wall_seconds(1, rates.storage * 1e9, rates.start)
        for one in cluster_costs.stages(plan, trials, len(probes), rates)
    }
