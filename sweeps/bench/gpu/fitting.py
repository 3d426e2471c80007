"""The probe grid on a card: all steps of one site of each size, beside reading them and beside the authors' loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probing.dataset.split import Split
from probing.diffusion import devices
from probing.diffusion.sites import SiteSpec
from probing.probes.config import ProbeConfig
from probing.probes.fit import fit_site
from probing.probes.optimiser import initial_seed, sample_orders
from probing.probes.results import FitSpec
from probing.scoring.targets import Grid, Targets, pixel_ranks, pool
from storage import Store
from sweeps.bench.gpu.bench import Bench, layout
from sweeps.bench.paired import row, seconds
from sweeps.bench.paper_loop import paper_probe

TASKS = ("saliency", "depth")
DISTINCT = 16
"""label maps that are drawn; all images have one of them, because drawing and pooling takes longer than fitting"""
CHUNKS = 8
"""chunks of noise that a store is filled with"""
KINDS = 3
"""resolutions that are measured; the smallest of the network is priced like the one before it"""
SHARE = 0.45
"""of a card's free memory, that the activations which are fitted together may take"""
LOOP_EPOCHS = 3
"""epochs of the authors' loop that are timed, at most"""


def kinds(sites: Sequence[SiteSpec]) -> list[tuple[SiteSpec, int]]:
    """A site of each resolution that is measured, smallest first, and how many sites it stands for."""
    counts = Counter(site.tokens for site in sites)
    sizes = sorted(counts)[-KINDS:]
    below = sum(count for tokens, count in counts.items() if tokens < sizes[0])
    chosen = [next(site for site in sites if site.tokens == tokens) for tokens in sizes]
    return [(site, counts[site.tokens] + (below if site is chosen[0] else 0)) for site in chosen]


def label_maps(size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Discs at random places, and slopes under them: (DISTINCT, size, size) each."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size] / size
    places = random.uniform(0.3, 0.7, size=(2, DISTINCT, 1, 1))
    masks = np.hypot(rows - places[0], columns - places[1]) < 0.2
    return masks.astype(np.uint8) * 255, (rows + masks + 0.1 * columns).astype(np.float32)


def pooled(count: int, size: int, grid: Grid) -> dict[str, Targets]:
    """Labels of `count` images pooled to a grid, by task."""
    masks, depth = label_maps(size)
    few, which = pool(masks, depth, pixel_ranks(depth), grid, 0), np.arange(count) % DISTINCT
    found: dict[str, Targets] = {}
    for task, targets in few.items():
        arrays: dict[str, Any] = {}
        for field in fields(targets):
            values = getattr(targets, field.name)
            if isinstance(values, np.ndarray):
                arrays[field.name] = values[:, which] if field.name == "object_sums" else values[which]
        found[task] = replace(targets, **arrays)
    return found


def grid(bench: Bench) -> None:
    """Fit both tasks at all steps of a site, reading included, beside reading the same activations once."""
    weighted, fitted, read, last = kinds(bench.model.sites()), 0.0, 0.0, 0.0
    done = 0
    for site, sites in weighted:
        problem = Problem(bench, site)
        where, started = bench.room(problem.bytes), bench.left()
        name = f"{site.height}x{site.width}"
        if where is None or last * problem.bytes > bench.left():
            bench.number(f"not_measured_{name}", problem.bytes / 1e9, "GB, too much for the time or the room")
            continue
        store = bench.store(
            layout(bench.model, problem.count, bench.scale.batch, bench.scale.steps, [site.name]), where
        )
        fill(store, site)
        pair = bench.compare(
            f"grid_over_reading_{name}", "reading and fitting", "reading", partial(problem.fit, store),
            partial(problem.read, store, problem.steps), pairs=1, warm_up=not last, sites=sites,
        )  # fmt: skip
        bench.drop(store)
        bench.free()
        bench.number(f"probe_{name}", (pair[0] - pair[1]) / (len(problem.steps) * len(TASKS)), "s, without reading")
        fitted, read, done = fitted + sites * pair[0], read + sites * pair[1], done + 1
        last = (started - bench.left()) / problem.bytes
    if done == len(weighted):
        bench.add(row("grid_over_reading", "reading and fitting", "reading", [(fitted, read)], unit="s"))
        probes = len(bench.model.sites()) * bench.scale.steps * len(TASKS)
        bench.number("probing", probes / max(fitted - read, 1e-9), "probes/s, without reading")


class Problem:
    """All probes of one site."""

    def __init__(self, bench: Bench, site: SiteSpec) -> None:
        self.bench, self.site, scale = bench, site, bench.scale
        self.grid = (site.height, site.width)
        self.count, self.steps = scale.train + scale.test, list(range(1, scale.steps + 1))
        self.split = Split(*np.split(np.arange(self.count), [scale.train, scale.train]))
        self.targets = pooled(self.count, bench.model.image_size[0], self.grid)
        self.bytes = len(self.steps) * self.count * site.tokens * site.channels * 2

    def read(self, store: Store, steps: Sequence[int]) -> NDArray[np.float16]:
        """Activations (S, N, T, C) of some steps."""
        acts = np.empty((len(steps), self.count, self.site.tokens, self.site.channels), np.float16)
        store.read_activations_into("trained", self.site.name, steps, None, acts)
        return acts

    def fit(self, store: Store) -> None:
        """Read and fit as a trial does: as many steps together as the memory holds."""
        device, config = self.bench.device, ProbeConfig(epochs=self.bench.scale.epochs)
        free = SHARE * devices.free_memory(str(device))
        together = max(1, min(len(self.steps), int(free * len(self.steps) / self.bytes)))
        for first in range(0, len(self.steps), together):
            steps = self.steps[first : first + together]
            specs = [FitSpec(step, task) for step in steps for task in TASKS]
            acts = self.read(store, steps)
            results = fit_site(acts, steps, self.grid, self.targets, self.split, specs, config, device)
            assert all(result.ok for result in results), "a probe failed"


def fill(store: Store, site: SiteSpec) -> None:
    """Write noise for all steps and shards of a site."""
    shape, random = store.layout, np.random.default_rng(0)
    chunks = [
        random.standard_normal((shape.shard, site.tokens, site.channels), dtype=np.float32).astype(np.float16)
        for _ in range(CHUNKS)
    ]

    def write(place: tuple[int, int]) -> None:
        step, shard = place
        values = chunks[(step + shard) % CHUNKS][: len(shape.shard_samples(shard))]
        store.write_activation("trained", site.name, step, shard, values)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, [(step, s) for step in range(1, shape.steps + 1) for s in range(shape.shards)]))


def against_authors(bench: Bench) -> None:
    """A probe of each task by the authors' loop, on full-size pixels, beside one of the grid at the same site."""
    scale, sites = bench.scale, kinds(bench.model.sites())
    site = sites[len(sites) // 2][0]
    ours = bench.record.number("probes", f"probe_{site.height}x{site.width}")
    if not ours:
        raise ValueError("needs the piece probes, which has no number for this site")
    count, epochs = scale.train + scale.test, min(LOOP_EPOCHS, scale.epochs)
    masks, depth = label_maps(bench.model.image_size[0])
    which = np.arange(count) % DISTINCT
    labels = {"saliency": torch.from_numpy(masks // 255).long(), "depth": torch.from_numpy(depth)}
    acts = torch.randn(count, site.tokens, site.channels, device=bench.device)
    train, test = (torch.arange(*part, device=bench.device) for part in ((0, scale.train), (scale.train, count)))
    orders = [order.to(bench.device) for order in sample_orders(0, scale.train, epochs)]
    for task in TASKS:
        full = labels[task].to(bench.device)[torch.from_numpy(which).to(bench.device)]

        def loop(orders: Any = orders, task: str = task, full: Any = full) -> None:
            start = initial_seed(0, 1, task)
            paper_probe(acts, full, (site.height, site.width), task, train, test, orders, start)
            bench.synchronise()

        loop(orders[:1])  # the first one also loads kernels
        spent = seconds(loop) * scale.epochs / epochs
        bench.add(row(f"authors_loop_over_grid_{task}", "the authors' loop", "a probe of the grid", [(spent, ours)],
                      unit="s", epochs=epochs, site=site.name))  # fmt: skip
