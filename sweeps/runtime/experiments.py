"""The experiments beside the main grid: their settings, their hashes and the probes that some of them consist of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import TypeVar

from probing.diffusion.sites import SiteSpec, choose, recorded
from probing.probes.config import ProbeConfig
from storage.keys import EXPERIMENTS
from sweeps.config.hashing import digest
from sweeps.config.schema import Config
from sweeps.runtime.grid import ProbeSpec, finished
from sweeps.runtime.layout import TRAINED
from sweeps.runtime.run import ModelInfo, Run

T = TypeVar("T")
SMOOTHNESS = "smoothness"
FIELDS = {SMOOTHNESS: ("smoothness",)}
"""settings that an experiment's numbers depend on, beside those of the probe stage; which probes there are is not
among them, so that a wider experiment keeps what a narrower one fitted"""


def requested(config: Config, name: str) -> bool:
    """Return whether the configuration requests an experiment."""
    return name in config.experiments.names


def stage_hash(run: Run, name: str) -> str:
    """Return the hash of an experiment: the probe stage's and those of its own settings that its numbers depend on."""
    settings = asdict(run.config.experiments)
    return digest(run.hashes.probe, name, {key: settings[key] for key in FIELDS.get(name, ())})


def steps(config: Config, name: str) -> list[int]:
    """Return the denoising steps of an experiment, ascending."""
    return sorted(set(getattr(config.experiments, f"{name}_steps") or config.sweep.steps))


def sites(config: Config, model_info: ModelInfo, name: str) -> tuple[SiteSpec, ...]:
    """Return an experiment's sites that are recorded; `blocks` stands for the last one of each block and kind.

    Raises ValueError for a site that the model does not have.
    """
    present = recorded(model_info.recordable, config.sampling.sites)
    names = getattr(config.experiments, f"{name}_sites")
    if "blocks" in names:
        last = {(site.block, site.family): site.name for site in present}
        names = [*(n for n in names if n != "blocks"), *last.values()]
    chosen = choose(model_info.recordable, names, f"experiments.{name}_sites")
    return tuple(site for site in chosen if site in present)


def _family_probes(config: Config, model_info: ModelInfo, name: str) -> list[ProbeSpec]:
    return [
        ProbeSpec(TRAINED, site.name, step, task, experiment=name)
        for site in model_info.families[name]
        for step in steps(config, name)
        for task in config.sweep.tasks
    ]


def _smoothness_probes(config: Config, model_info: ModelInfo, name: str) -> list[ProbeSpec]:
    if "depth" not in config.sweep.tasks:
        return []
    return [
        ProbeSpec(TRAINED, site.name, step, "depth", experiment=name)
        for site in recorded(model_info.recordable, config.sampling.sites)
        for step in steps(config, name)
    ]


PROBED: dict[str, Callable[[Config, ModelInfo, str], list[ProbeSpec]]] = {
    "vae": _family_probes,
    "conv": _family_probes,
    SMOOTHNESS: _smoothness_probes,
}
"""experiments that consist of probes, fitted by the probe stage"""


def probe_specs(config: Config, model_info: ModelInfo) -> list[ProbeSpec]:
    """Return the probes of all requested experiments."""
    return [
        probe for name, specs in PROBED.items() if requested(config, name) for probe in specs(config, model_info, name)
    ]


def missing(run: Run) -> list[ProbeSpec]:
    """Return the experiments' probes without a finished row of the current settings."""
    result = []
    for name, specs in PROBED.items():
        if requested(run.config, name):
            result += unfinished(run, name, specs(run.config, run.model_info, name), lambda probe: [probe])
    return result


def unfinished(run: Run, name: str, tasks: Sequence[T], probes: Callable[[T], Iterable[ProbeSpec]]) -> list[T]:
    """Return the tasks of an experiment with a probe that has no finished row of the current settings."""
    done = finished(run.store, name, stage_hash(run, name)) if tasks else set()
    return [task for task in tasks if not done.issuperset(probes(task))]


def write_hashes(run: Run) -> None:
    """Record which rows of each experiment belong to the current settings, for the report."""
    hashes = {name: stage_hash(run, name) for name in run.config.experiments.names}
    run.store.put_document(EXPERIMENTS, hashes)


def probe_config(run: Run, name: str) -> ProbeConfig:
    """Return how an experiment's probes are trained: as those of the grid, except for what it varies."""
    if name == SMOOTHNESS:
        return replace(run.config.probe, smoothness=run.config.experiments.smoothness)
    return run.config.probe
