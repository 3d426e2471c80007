"""The experiments beside the main grid: their settings, their hashes and the probes they ask for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace

from probing.diffusion.sites import SiteSpec, choose
from probing.probes.config import ProbeConfig
from sweeps.config.hashing import digest
from sweeps.runtime.grid import Cell, finished
from sweeps.runtime.layout import EXPERIMENTS_FILE, VARIANT
from sweeps.runtime.run import Run

FIELDS = {"smoothness": ("smoothness",)}
"""settings that an experiment's numbers depend on, beside those of the probe stage; which cells there are
is no part of it, so that a wider experiment keeps what a narrow one fitted"""


def wanted(run: Run, name: str) -> bool:
    """Whether the configuration asks for an experiment."""
    return name in run.config.experiments.names


def stage_hash(run: Run, name: str) -> str:
    """Hash of an experiment: the probe stage's and what of its own settings its numbers depend on."""
    settings = asdict(run.config.experiments)
    return digest(run.hashes.probe, name, {key: settings[key] for key in FIELDS.get(name, ())})


def steps(run: Run, name: str) -> list[int]:
    """Denoising steps of an experiment, ascending."""
    given = getattr(run.config.experiments, f"{name}_steps")
    return sorted(set(given or run.config.sweep.steps))


def sites(run: Run, name: str) -> tuple[SiteSpec, ...]:
    """The recorded ones among an experiment's sites; ValueError names one that the model has not."""
    names = getattr(run.config.experiments, f"{name}_sites")
    if "blocks" in names:
        last = {site.block: site.name for site in run.sites}
        names = [*(n for n in names if n != "blocks"), *last.values()]
    chosen = choose(run.facts.sites, names) if names else ()
    return tuple(site for site in chosen if site in run.sites)


def _family(run: Run, name: str) -> list[Cell]:
    return [
        Cell(VARIANT, site.name, step, task)
        for site in run.facts.families[name]
        for step in steps(run, name)
        for task in run.config.sweep.tasks
    ]


def _smoothness(run: Run, name: str) -> list[Cell]:
    if "depth" not in run.config.sweep.tasks:
        return []
    return [Cell(VARIANT, site.name, step, "depth") for site in run.sites for step in steps(run, name)]


PROBED: dict[str, Callable[[Run, str], list[Cell]]] = {"vae": _family, "conv": _family, "smoothness": _smoothness}
"""experiments that consist of probes, and their cells"""


def cells(run: Run) -> dict[str, list[Cell]]:
    """Cells by experiment, of those that the configuration asks for."""
    return {name: make(run, name) for name, make in PROBED.items() if wanted(run, name)}


def missing(run: Run) -> dict[str, list[Cell]]:
    """Cells by experiment without a finished row of the present settings; experiments without any left out."""
    found = {}
    for name, mine in cells(run).items():
        have = finished(run.store, name, stage_hash(run, name))
        if left := [cell for cell in mine if cell not in have]:
            found[name] = left
    return found


def note(run: Run) -> None:
    """Writes down which rows of each experiment are of the present settings, for the report."""
    found = {name: stage_hash(run, name) for name in run.config.experiments.names}
    data = json.dumps(found, indent=1, sort_keys=True).encode()
    if not run.store.exists(EXPERIMENTS_FILE) or run.store.get(EXPERIMENTS_FILE) != data:
        run.store.put(EXPERIMENTS_FILE, data)


def probe_config(run: Run, name: str) -> ProbeConfig:
    """How an experiment's probes are trained: as those of the grid, but for what it varies."""
    if name == "smoothness":
        return replace(run.config.probe, smoothness=run.config.experiments.smoothness)
    return run.config.probe
