"""The plan of a run as text: what it costs before anything runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from probing.dataset.curation import SPLITS
from probing.diffusion import devices, metadata
from probing.diffusion.config import DTYPES
from probing.diffusion.schedules import LMS, OWN
from probing.diffusion.sites import ALL, ATTENTION, KINDS, SiteSpec
from storage import budget
from storage.budget import Budget, format_bytes
from storage.errors import Unavailable
from sweeps.config.schema import Config, previews
from sweeps.planning import checks, cluster_costs, durations, measured
from sweeps.planning.checks import Start, on_this_machine
from sweeps.planning.measured import Measured
from sweeps.planning.rates import CALL_TFLOP, Rates, hub_id
from sweeps.runtime import run
from sweeps.runtime.grid import pack, probe_specs
from sweeps.runtime.run import ModelInfo
from sweeps.runtime.units import about
from sweeps.stages import decode, preview, replay
from sweeps.stages.all import STAGES
from sweeps.stages.base import PlanInput, StagePrice

VERBS = tuple(dict.fromkeys(stage.INFO.verb for stage in STAGES))
EMBEDDED_RATE = 3.0
"""samples per second of the embedded models on a CPU core, assumed if none was measured"""


def site_table(model_info: ModelInfo, family: str) -> str:
    """Return a table of a family's sites with tokens, channels and bytes per image and step in fp16, and the setting
    that records them; `all` lists those of every kind that sampling can record.

    Raises ValueError if the model has no such sites.
    """
    families = {ATTENTION: model_info.sites, ALL: model_info.recordable} | model_info.families
    sites = families.get(family, ())
    if not sites:
        known = [name for name, found in families.items() if found]
        raise ValueError(
            f"--family={family}: a model of {model_info.family} has no such sites; it has {', '.join(known)}"
        )
    width = max(15, *(len(site.name) for site in sites))
    lines = [f"{'site':{width}} {'side':11} {'grid':>9} {'channels':>8} {'bytes':>9}  module"]
    for site in sites:
        grid = f"{site.height} x {site.width}"
        size = f"{grid:>9} {site.channels:>8} {site.values * 2:>9}"
        lines.append(f"{site.name:{width}} {site.side:11} {size}  {site.module}")
    total = sum(site.values for site in sites)
    lines.append(f"{len(sites)} sites, {total} values, {format_bytes(2 * total)} per image and step")
    kinds = ",".join(dict.fromkeys(site.family for site in sites))
    setting = f"sampling.sites=[{kinds}]" if family in (*KINDS, ALL) else f"experiments.names=[{family}]"
    return "\n".join([*lines, "recorded by default" if kinds == ATTENTION else f"recorded with {setting}"])


def plan_input(start: Start) -> PlanInput:
    """Return what prices are computed from."""
    samples, test = start.samples, test_count(start)
    price = budget.price(run.layout(start.config, start.model_info, samples))
    return PlanInput(start.config, start.model_info, samples, test, price)


def test_count(start: Start) -> int:
    """Return an upper bound of the number of test samples after curation."""
    config, samples = start.config, start.samples
    if config.prompts.test:
        return list(start.splits).count("test")
    sizes = [getattr(config.curation, part) for part in SPLITS]
    *others, test = (int(size * samples) if size < 1 else int(size) for size in sizes)
    return min(test or max(0, samples - sum(others)), samples)


def on_gpus(config: Config, gpus: int, given: Rates, card: Measured | None = None) -> str:
    """Return hours and price of a run on 1, 8 and `gpus` GPUs, as text; rates as in `durations.card_rates`.

    Raises ValueError if a number is out of range. Memory is not checked: it is that of the cluster's nodes.
    """
    if gpus < 1:
        raise ValueError(f"--gpus={gpus}: give a number above 0")
    plan = plan_input(checks.check(config, VERBS, plan=True))
    problem = _problem(check_disk, config, plan.budget, side_store_space(config, plan.model_info, plan.samples))
    probes = probe_specs(config.sweep, config.sampling.variants, plan.sites)
    trials = len(pack(probes, config.sweep.trial_axes))
    rates = durations.card_rates(plan, given, card)
    stages = cluster_costs.stages(plan, trials, len(probes), rates)
    table = cluster_costs.table(stages, cluster_costs.counts(gpus), rates)
    return "\n".join([*table, *problem, f"rates: {rates.describe()}", *_rates_from(plan, rates, card)])


def _rates_from(plan: PlanInput, rates: Rates, card: Measured | None) -> list[str]:
    """Return a line on the card that rates were measured on, and one if sampling is not that of the run's model."""
    card, model = card or measured.shipped(), hub_id(plan.config.model.name)
    if not (card and rates.measured):
        return ["nothing was measured on a card; `scenesweep bench gpu` measures rates, and --rates takes its file"]
    lines = [f"measured on {card.card}: {', '.join(rates.measured)}"]
    if "sampling" in rates.measured and (model, plan.config.total_steps) != (card.model, card.steps):
        counted = "counted operations" if model in CALL_TFLOP else "number of steps alone"
        lines.append(f"sampling was measured with {card.model}, {card.steps} steps, and is scaled by the {counted}")
    return lines


def _problem(check: Callable[..., None], *arguments: object) -> list[str]:
    """Return why a run would be refused, as a line of its plan, if so."""
    try:
        check(*arguments)
    except (ValueError, Unavailable) as error:
        return [f"a run would be refused: {error}"]
    return []


def as_json(config: Config, given: Rates | None = None, card: Measured | None = None) -> dict[str, object]:
    """Return the plan of a run as plain values; sizes in bytes, times in seconds. Arguments, errors as `describe`."""
    start = checks.check(config, VERBS, plan=True)
    plan = plan_input(start)
    rates = durations.card_rates(plan, given, card)
    used = {} if durations.embedded(config) else {"rates": rates.describe(), "card": _rates_from(plan, rates, card)}
    side_stores = side_store_space(config, plan.model_info, plan.samples)
    return {
        "seconds": durations.expected(plan, rates),
        **used,
        "bytes": plan.budget.total + side_stores,
        "samples": plan.samples,
        "variants": config.sampling.variants,
        "steps": run.layout(config, plan.model_info, plan.samples).steps,
        "files": plan.budget.files,
        "writer_bytes": plan.budget.peak_writer_bytes,
        "stages": [vars(price) for stage in STAGES for price in stage.prices(plan)],
        "arrays": plan.budget.families(),
        "sites": plan.budget.sites(),
        "notes": [*start.notes, *_problem(check_fits, config, plan.budget, side_stores)],
    }


def describe(
    config: Config, given: Rates | None = None, card: Measured | None = None, verbs: Sequence[str] = VERBS
) -> str:
    """Return the plan of a run in words and numbers; rates as in `durations.card_rates`.

    verbs: those that would run; the price is always that of the whole run.
    Raises ValueError if a check of the start fails. A run that does not fit disk or memory is told, and still shown.
    """
    start = checks.check(config, verbs, plan=True)
    plan = plan_input(start)
    side_stores = side_store_space(config, plan.model_info, plan.samples)
    first: list[str] = []
    price, more = plan.budget, side_stores
    if previews(config):
        first, price, previewed = with_preview(config, plan.model_info, plan.samples)
        first, more = [*first, "then, priced as if the preview kept every sample:"], side_stores + previewed
    problem = _problem(check_fits, config, price, more)
    rates = durations.card_rates(plan, given, card)
    lines = [headline(plan, rates, card), *problem, *first, *_costs(plan, rates)]
    lines += [] if durations.embedded(config) else [f"rates: {rates.describe()}", *_rates_from(plan, rates, card)]
    return "\n".join([*lines, *start.notes])


def headline(plan: PlanInput, rates: Rates, card: Measured | None = None) -> str:
    """Return time and disk of the whole run in a few words, and what the time is based on."""
    config, card = plan.config, card or measured.shipped()
    seconds = sum(durations.expected(plan, rates).values())
    size = format_bytes(plan.budget.total + side_store_space(config, plan.model_info, plan.samples))
    if durations.embedded(config):
        based = f"measured on 2 CPU cores, here {durations.cores(config)}"
    elif card and rates.measured:
        based = f"on one GPU, {', '.join(rates.measured)} measured on {card.card}"
    else:
        based = "on one GPU, assumed, not measured; --gpus and --rates take other rates"
    return f"{about(seconds)}, {size} of disk ({based})"


def _costs(plan: PlanInput, rates: Rates) -> list[str]:
    config, price = plan.config, plan.budget
    variants = config.sampling.variants
    probes = probe_specs(config.sweep, variants, plan.sites)
    trials = pack(probes, config.sweep.trial_axes)
    width = max([16, *(len(site.name) for site in plan.sites)])
    lines = [
        f"{plan.samples} samples x {len(variants)} variants ({', '.join(variants)}), "
        f"{config.total_steps} steps, shards of {config.sampling.shard}",
        f"network calls     {price.unet_calls} (both halves of guidance counted as one)",
        f"probes            {len(probes)} in {len(trials)} trials",
        f"experiments       {', '.join(config.experiments.names) or 'none'}",
        f"sampler           {_sampler(config)}",
        f"files             {price.files}, the largest {format_bytes(price.chunk_bytes)}",
        f"memory            {format_bytes(price.peak_writer_bytes)} of buffers per sampling worker",
        f"shard of {config.sampling.shard:<8} {_shard_memory(config, plan.sites)}",
        *_stage_table(plan, rates),
        f"disk              {format_bytes(price.total)}, of which:",
        *(f"  {name:16} {format_bytes(size)}" for name, size in price.families().items()),
        "sites, all variants and steps:",
        *(f"  {name:{width}} {format_bytes(size)}" for name, size in price.sites().items()),
        f"additional sites   {format_bytes(replay.space(config, plan.model_info, plan.samples))} of activations",
    ]
    if decoded := decode.space(config, plan.model_info, plan.samples):
        lines.append(f"decoded images     {format_bytes(decoded)} of their colours")
    return lines


def _sampler(config: Config) -> str:
    """Return the sampler and its steps in words."""
    name, steps, calls = config.sampling.scheduler, config.sampling.steps, config.total_steps
    if name == LMS:
        return f"LMS, {steps} steps, as in the paper, whichever sampler the model's files name"
    what = "that of the model's files" if name == OWN else name
    return f"{what}, {steps} steps" + (f", {calls} network calls" if calls != steps else "")


def _stage_table(plan: PlanInput, rates: Rates) -> list[str]:
    """Return the table of all stages: work, network calls and hours."""
    config = plan.config
    workers = max(1, config.ray.sampling_actors)
    rate, source = rates.sampling, "measured" if "sampling" in rates.measured else "given with --rate"
    if "sampling" in rates.assumed or (durations.embedded(config) and "sampling" in rates.measured):
        rate, source = EMBEDDED_RATE if durations.embedded(config) else rate, "assumed; --rate takes a measured one"
    prices = (
        [StagePrice("preview", f"{plan.samples} images", plan.samples * config.total_steps)] if previews(config) else []
    )
    prices += [price for stage in STAGES for price in stage.prices(plan)]
    name_width = max(len(price.name) for price in prices)
    work_width = max(len(price.work) for price in prices)

    def hours(calls: float) -> float:
        return calls / config.total_steps / rate / workers / 3600

    lines = [f"{'stage':{name_width}}  {'work':{work_width}}  {'network calls':>13}     hours"]
    for price in prices:
        shown = f"{hours(price.calls):>9.2f}{' or more' if price.more else ''}" if price.calls else f"{'-':>9}"
        lines.append(f"{price.name:{name_width}}  {price.work:{work_width}}  {price.calls:>13.0f} {shown}".rstrip())
    calls = sum(price.calls for price in prices)
    return [
        *lines,
        f"{'all network calls':{name_width}}  {'':{work_width}}  {calls:>13.0f} {hours(calls):>9.2f} or more",
        f"hours: network calls only, {config.total_steps} a sample, on {workers} worker(s) at {rate:.3g} samples/s "
        f"each ({source}); the inner optimisation of edits comes on top, and - has no rate",
    ]


def _shard_memory(config: Config, sites: tuple[SiteSpec, ...]) -> str:
    """Return how much memory a shard takes on this machine's device, and how many samples fit."""
    path = metadata.model_path(config.model)
    weights = metadata.weight_bytes(path, config.model) if isinstance(path, Path) else {}
    total = sum(weights.values()) + (weights.get("network", 0) if len(config.sampling.variants) > 1 else 0)
    itemsize = DTYPES[config.model.autocast or config.model.dtype]
    sample = devices.sample_bytes(sites, config.sampling.guidance > 1, itemsize)
    try:
        device = devices.device_name(config.model.device)
    except ValueError as error:
        if on_this_machine(config):
            raise
        return f"not known here: {error}"
    return devices.shard_advice(config.sampling.shard, total, sample, device)


def with_preview(config: Config, model_info: ModelInfo, samples: int) -> tuple[list[str], Budget, int]:
    """Return what a preview costs in words, the price of the fewest samples to record after it, and its own bytes."""
    first = budget.price(run.layout(preview.settings(config), model_info, samples))
    fewest = preview.fewest(config, samples)
    recording = budget.price(run.layout(config, model_info, fewest))
    lines = [
        f"preview           {samples} images of the trained model, nothing recorded: {first.unet_calls} network calls, "
        f"{format_bytes(first.total)}",
        f"at least          {format_bytes(first.total + recording.total)} on disk, if only {fewest} samples are kept",
    ]
    return lines, recording, first.total


def side_store_space(config: Config, model_info: ModelInfo, samples: int) -> int:
    """Return the bytes of what some probes read beside the recorded activations."""
    return replay.space(config, model_info, samples) + decode.space(config, model_info, samples)


def check_fits(config: Config, price: Budget, more: int = 0) -> None:
    """Raise ValueError if a plan, and `more` bytes, do not fit the disk or memory beside what is there already.

    The memory is this machine's, so it is checked only if the workers run here.
    """
    check_disk(config, price, more)
    if on_this_machine(config):
        budget.check_memory(price, machine_memory(), max(1, config.ray.sampling_actors))


def machine_memory() -> int:
    """Return the bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_disk(config: Config, price: Budget, more: int = 0) -> None:
    """Raise ValueError if a plan, and `more` bytes, do not fit the disk beside what is there already."""
    budget.check_disk(config.output, price.total + more)
