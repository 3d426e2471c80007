"""Prints plans and site tables: what a run costs before anything runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from probing import sites as site_rules
from probing.model import ModelConfig
from probing.sites import SiteSpec
from storage import budget
from storage.format import Layout
from sweeps import grid, preview_stage
from sweeps import run as runs
from sweeps.config import STEPS, Config, previews

RATE = {"scenes": 3.0, "": 0.25}
"""samples a second and worker, where none was measured: scenes on a CPU core; SD v1.4 on a GPU"""


def human(count: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _sites(model: ModelConfig, family: str) -> tuple[SiteSpec, ...]:
    import json

    from probing import model as models

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
    lines.append(f"{len(found)} sites, {total} values, {human(2 * total)} per image and step")
    return "\n".join(lines)


def describe(config: Config, rate: float) -> str:
    """The plan of a run in words and numbers. Raises ValueError where it does not fit."""
    found = runs.facts(config)
    samples = _sample_count(config)
    layout = runs.layout(config, found, samples)
    price = budget.price(layout)
    lines = _costs(config, layout, price, rate)
    lines += [f"  {name:16} {human(size)}" for name, size in price.families().items()]
    lines += ["sites, all variants and steps:"]
    lines += [f"  {name:16} {human(size)}" for name, size in price.sites().items()]
    needed = price.total
    if previews(config):
        preview, needed = _preview(config, found, samples)
        lines = [*preview, "then, priced as if the preview kept every sample:", *lines]
    budget.check_disk(config.output, needed)
    budget.check_memory(price, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return "\n".join(lines)


def _preview(config: Config, found: runs.Facts, samples: int) -> tuple[list[str], int]:
    """What the preview costs in words, and the bytes that it and the fewest samples to record need."""
    first = budget.price(runs.layout(preview_stage.settings(config), found, samples))
    fewest = preview_stage.fewest(config, samples)
    then = budget.price(runs.layout(config, found, fewest)).total
    lines = [
        f"preview           {samples} images of the trained model, nothing recorded: {first.unet_calls} UNet calls, "
        f"{human(first.total)}",
        f"at least          {human(first.total + then)} on the disk, were only {fewest} samples kept",
    ]
    return lines, first.total + then


def _sample_count(config: Config) -> int:
    if config.prompts.source == "scenes" or config.prompts.count and not config.prompts.test:
        return config.prompts.count
    from probing.prompts import read

    return len(read(config.prompts).prompts)


def _shard(config: Config, sites: Sequence[SiteSpec]) -> str:
    """What a shard takes on this machine's device, and how many samples fit."""
    import torch

    from probing import memory, pretrained
    from probing import model as models

    path, dtype = models.model_path(config.model), getattr(torch, config.model.dtype)
    weights = pretrained.weight_bytes(path, dtype) if isinstance(path, Path) else {}
    total = sum(weights.values()) + (weights.get("unet", 0) if len(config.sampling.variants) > 1 else 0)
    computed = getattr(torch, config.model.autocast or config.model.dtype)
    sample = memory.sample_bytes(sites, config.sampling.guidance > 1, computed.itemsize)
    return memory.shard_advice(config.sampling.shard, total, sample, models.pick_device(config.model.device))


def _costs(config: Config, layout: Layout, price: budget.Budget, rate: float) -> list[str]:
    variants = config.sampling.variants
    sites = site_rules.choose(runs.facts(config).sites, config.sampling.sites)
    cells = grid.cells(config.sweep, variants, sites)
    trials = grid.pack(cells, config.sweep.trial_axes)
    how = "as given" if rate else "as a rule of thumb; --rate takes a measured one"
    rate = rate or RATE.get(config.model.name, RATE[""])
    hours = layout.samples * len(variants) / rate / 3600
    workers = max(1, config.ray.sampling_actors)
    return [
        f"{layout.samples} samples x {len(variants)} variants ({', '.join(variants)}), "
        f"{STEPS} steps, shards of {layout.shard}",
        f"UNet calls        {price.unet_calls} (two halves of guidance counted as one)",
        f"probes            {len(cells)} in {len(trials)} trials",
        f"files             {price.files}, the largest {human(price.chunk_bytes)}",
        f"memory            {human(price.peak_writer_bytes)} of buffers per sampling worker",
        f"shard of {layout.shard:<8} {_shard(config, sites)}",
        f"sampling          {hours / workers:.2f} h on {workers} worker(s) at {rate:g} samples/s each ({how})",
        f"disk              {human(price.total)}, of it:",
    ]
