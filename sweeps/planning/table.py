"""Prints plans and site tables: what a run costs before anything runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from probing.diffusion import sites as site_rules
from probing.diffusion.model import ModelConfig
from probing.diffusion.sites import SiteSpec
from storage import budget
from storage.budget import format_bytes
from storage.format import Layout
from sweeps.config.schema import STEPS, Config, previews
from sweeps.planning import cluster_costs, costs, requirements
from sweeps.planning.cluster_costs import Rates
from sweeps.planning.costs import StagePrice
from sweeps.runtime import grid, run
from sweeps.stages import decode, replay
from sweeps.stages import preview as preview_stage
from sweeps.stages.experiments.registry import PROBED

RATE = {"scenes": 3.0, "": 0.25}
"""samples a second and worker, assumed where none was measured: scenes on a CPU core; SD v1.4 on a GPU"""


def _sites(model: ModelConfig, family: str) -> tuple[SiteSpec, ...]:
    import json

    from probing.diffusion import model as models

    folder = models.config_folder(model)
    unet, vae = (json.loads((folder / n / "config.json").read_text()) for n in ("unet", "vae"))
    size = unet["sample_size"]
    latent = (size, size) if isinstance(size, int) else tuple(size)
    if family == "vae":
        return (site_rules.vae_site(vae, latent),)
    rule = site_rules.attention_sites if family == "attention" else site_rules.conv_sites
    return rule(unet, latent)


def site_table(model: ModelConfig, family: str) -> str:
    """Sites with tokens, channels and bytes per image and step in fp16."""
    found = _sites(model, family)
    lines = [f"{'site':14} {'side':11} {'cells':>9} {'channels':>8} {'bytes':>9}  module"]
    for site in found:
        cells = f"{site.height} x {site.width}"
        lines.append(f"{site.name:14} {site.side:11} {cells:>9} {site.channels:>8} {site.values * 2:>9}  {site.module}")
    total = sum(site.values for site in found)
    lines.append(f"{len(found)} sites, {total} values, {format_bytes(2 * total)} per image and step")
    return "\n".join(lines)


def on_gpus(config: Config, gpus: int, rates: Rates) -> str:
    """Hours and price of a run on 1, 8 and so many GPUs.

    Raises ValueError where a number makes no sense, and where the run does not fit the disk; its memory is the nodes'.
    """
    if gpus < 1 or min(vars(rates).values()) < 0:
        raise ValueError(f"--gpus={gpus} and all rates: give numbers above 0")
    samples, found = _sample_count(config), run.facts(config)
    requirements.check(config, found)
    layout, whole = run.layout(config, found, samples), rates.filled()
    cells = grid.cells(config.sweep, config.sampling.variants, site_rules.choose(found.sites, config.sampling.sites))
    check_disk(config, budget.price(layout), further_space(config, found, samples))
    trials = grid.pack(cells, config.sweep.trial_axes)
    test = _test_count(config, samples)
    work = cluster_costs.stages(config, budget.price(layout), samples, test, len(trials), len(cells), whole)
    return "\n".join([*cluster_costs.table(work, cluster_costs.counts(gpus), whole), f"rates: {rates.told()}"])


def describe(config: Config, rate: float) -> str:
    """The plan of a run in words and numbers. Raises ValueError where it does not fit."""
    found = run.facts(config)
    requirements.check(config, found)
    samples = _sample_count(config)
    layout = run.layout(config, found, samples)
    price = budget.price(layout)
    lines = _costs(config, layout, price, rate)
    lines += [f"  {name:16} {format_bytes(size)}" for name, size in price.families().items()]
    lines += ["sites, all variants and steps:"]
    lines += [f"  {name:16} {format_bytes(size)}" for name, size in price.sites().items()]
    lines.append(f"further families   {format_bytes(replay.space(config, found, samples))} of activations beside these")
    if decoded := decode.space(config, found, samples):
        lines.append(f"decoded pictures   {format_bytes(decoded)} of their colours")
    further = further_space(config, found, samples)
    if previews(config):
        preview, then, first = with_preview(config, found, samples)
        check_fits(config, then, first + further)
        return "\n".join([*preview, "then, priced as if the preview kept every sample:", *lines])
    check_fits(config, price, further)
    return "\n".join(lines)


def with_preview(config: Config, found: run.ModelInfo, samples: int) -> tuple[list[str], budget.Budget, int]:
    """What a preview costs in words, the price of the fewest samples to record after it, and its own bytes."""
    first = budget.price(run.layout(preview_stage.settings(config), found, samples))
    fewest = preview_stage.fewest(config, samples)
    then = budget.price(run.layout(config, found, fewest))
    lines = [
        f"preview           {samples} images of the trained model, nothing recorded: {first.unet_calls} UNet calls, "
        f"{format_bytes(first.total)}",
        f"at least          {format_bytes(first.total + then.total)} on the disk, were only {fewest} samples kept",
    ]
    return lines, then, first.total


def further_space(config: Config, found: run.ModelInfo, samples: int) -> int:
    """Bytes of what some probes read beside the recorded activations."""
    return replay.space(config, found, samples) + decode.space(config, found, samples)


def check_fits(config: Config, price: budget.Budget, more: int = 0) -> None:
    """Raises ValueError where a plan, and `more` bytes, fit neither disk nor memory beside what is there already.

    The memory is this machine's, so it is looked at only where the workers run here.
    """
    check_disk(config, price, more)
    if config.ray.address in ("none", "local"):
        budget.check_memory(price, memory(), max(1, config.ray.sampling_actors))


def check_disk(config: Config, price: budget.Budget, more: int = 0) -> None:
    """Raises ValueError where a plan, and `more` bytes, do not fit the disk beside what is there already."""
    folder = run.local_path(config.output)
    chunks = (p for p in folder.rglob("c/**/*") if p.is_file()) if folder else ()
    present = sum(p.stat().st_size for p in chunks)
    budget.check_disk(config.output, price.total + more, present)


def memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _sample_count(config: Config) -> int:
    if config.prompts.source == "scenes" or config.prompts.count and not config.prompts.test:
        return config.prompts.count
    from probing.dataset.prompts import read

    return len(read(config.prompts).prompts)


def _test_count(config: Config, samples: int) -> int:
    """Test images: those of the second file of prompts, else the most that curation can leave of so many samples."""
    if not config.prompts.test:
        return costs.test_samples(config, samples)
    from probing.dataset.prompts import read

    return sum(prompt.split == "test" for prompt in read(config.prompts).prompts)


def _shard(config: Config, sites: Sequence[SiteSpec]) -> str:
    """What a shard takes on this machine's device, and how many samples fit."""
    import torch

    from probing.diffusion import memory, pretrained
    from probing.diffusion import model as models

    path, dtype = models.model_path(config.model), getattr(torch, config.model.dtype)
    weights = pretrained.weight_bytes(path, dtype) if isinstance(path, Path) else {}
    total = sum(weights.values()) + (weights.get("unet", 0) if len(config.sampling.variants) > 1 else 0)
    computed = getattr(torch, config.model.autocast or config.model.dtype)
    sample = memory.sample_bytes(sites, config.sampling.guidance > 1, computed.itemsize)
    return memory.shard_advice(config.sampling.shard, total, sample, models.pick_device(config.model.device))


def _costs(config: Config, layout: Layout, price: budget.Budget, rate: float) -> list[str]:
    variants = config.sampling.variants
    sites = site_rules.choose(run.facts(config).sites, config.sampling.sites)
    cells = grid.cells(config.sweep, variants, sites)
    trials = grid.pack(cells, config.sweep.trial_axes)
    return [
        f"{layout.samples} samples x {len(variants)} variants ({', '.join(variants)}), "
        f"{STEPS} steps, shards of {layout.shard}",
        f"UNet calls        {price.unet_calls} (two halves of guidance counted as one)",
        f"probes            {len(cells)} in {len(trials)} trials",
        f"experiments       {', '.join(config.experiments.names) or 'none'}",
        f"files             {price.files}, the largest {format_bytes(price.chunk_bytes)}",
        f"memory            {format_bytes(price.peak_writer_bytes)} of buffers per sampling worker",
        f"shard of {layout.shard:<8} {_shard(config, sites)}",
        *_stages(config, price, layout.samples, rate),
        f"disk              {format_bytes(price.total)}, of it:",
    ]


def _stages(config: Config, price: budget.Budget, samples: int, rate: float) -> list[str]:
    """The table of all stages."""
    found = run.facts(config)
    sites = site_rules.choose(found.sites, config.sampling.sites)
    test = _test_count(config, samples)
    variants = len(config.sampling.variants)
    prices = [StagePrice("preview", f"{samples} images", samples * STEPS)] if previews(config) else []
    prices += [
        StagePrice("sampling", f"{samples} samples x {variants} variants", price.unet_calls),
        StagePrice("labelling", f"{samples} samples"),
        *costs.further_sites(config, samples),
        *costs.decoded(config, samples),
        *_probes(config, found, sites),
        *costs.emergence(config, test),
        *costs.transfer(config, _transferred(config, found, sites)),
        *costs.edits(config, test),
    ]
    told = "given with --rate" if rate else "assumed; --rate takes a measured one"
    return costs.table(prices, rate or RATE.get(config.model.name, RATE[""]), max(1, config.ray.sampling_actors), told)


def _probes(config: Config, found: run.ModelInfo, sites: Sequence[SiteSpec]) -> list[StagePrice]:
    """The grid, and each experiment that consists of probes."""
    grid_cells = len(grid.cells(config.sweep, config.sampling.variants, sites))
    prices = [StagePrice("probing", f"{grid_cells} probes")]
    for name in (name for name in PROBED if name in config.experiments.names):
        steps = len(set(getattr(config.experiments, f"{name}_steps") or config.sweep.steps))
        tasks = int("depth" in config.sweep.tasks) if name == "smoothness" else len(config.sweep.tasks)
        prices.append(StagePrice(f"probing: {name}", f"{len(found.families.get(name, sites)) * steps * tasks} probes"))
    return prices


def _transferred(config: Config, found: run.ModelInfo, sites: Sequence[SiteSpec]) -> int:
    """How many sites the transfer experiment takes: those of its setting that are recorded."""
    names = config.experiments.transfer_sites
    if "blocks" in names:
        names = [*(n for n in names if n != "blocks"), *{site.block: site.name for site in sites}.values()]
    chosen = site_rules.choose(found.sites, names) if names else ()
    return sum(site in sites for site in chosen)
