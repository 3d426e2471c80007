"""Which probes the interventions need, and a refusal before anything runs where the sweep does not plan them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from interventions.config import ANIMATION, SECOND_OBJECT, TRANSPLANT, EditSpec, choose_sites
from interventions.controls import STEERED, late_steps, probes_of
from interventions.sources.authors import AuthorsProbes
from interventions.sources.base import PROBE_SEED, ProbeKey
from probing.diffusion import sites as site_rules
from probing.diffusion.sites import SiteSpec
from sweeps.config.schema import GRID, STEPS, Config
from sweeps.runtime import run as runs
from sweeps.runtime.grid import ProbeSpec, finished, probe_specs
from sweeps.runtime.run import ModelInfo

_LATE = "late_steps"


def needed(config: Config, sites: Sequence[SiteSpec]) -> Iterator[tuple[str, ProbeSpec]]:
    """(key and value that ask for it, probe) of all interventions over the model's sites."""
    wanted = config.interventions
    for task in wanted.tasks:
        for experiment, spec, controls in wanted.experiments(task):
            if spec.iterations and experiment != TRANSPLANT:
                yield from _of_edit(config, experiment, spec, controls, choose_sites(sites, spec.sites))


def _of_edit(
    config: Config, experiment: str, spec: EditSpec, controls: Sequence[str], sites: Sequence[SiteSpec]
) -> Iterator[tuple[str, ProbeSpec]]:
    asks = _asking(config, experiment, spec)
    late = late_steps(spec.steps, STEPS) if _LATE in controls else ()
    others = [name for name in controls if name in STEERED and name != _LATE]
    by_kind = {STEERED[name]: _key("controls", name) for name in others}
    for variant, control in probes_of(controls):
        for step in sorted({*spec.steps, *late}):
            told = by_kind.get((variant, control)) or (asks if step in spec.steps else _key("controls", _LATE))
            for site in sites:
                yield told, ProbeSpec(variant, site.name, step, spec.task, control, PROBE_SEED)


def _asking(config: Config, experiment: str, spec: EditSpec) -> str:
    """The key that an experiment's sites and steps come from."""
    asked = {
        "steps": ("step_counts", len(spec.steps)),
        "sides": ("sides", spec.sites[0]),
        "dose": ("dose", spec.iterations),
        SECOND_OBJECT: ("second_objects", config.interventions.second_objects),
        ANIMATION: ("frames", config.interventions.frames),
    }
    if experiment in asked:
        return _key(*asked[experiment])
    return f"interventions.{spec.task}_sites and {spec.task}_steps"


def _key(name: str, value: object) -> str:
    return f"interventions.{name}={value}"


def check(config: Config, found: ModelInfo) -> None:
    """Raises ValueError where an intervention needs a probe that the sweep neither plans nor has fitted already."""
    wanted: dict[ProbeSpec, str] = {}
    for told, cell in needed(config, found.sites):
        wanted.setdefault(cell, told)
    if wanted and config.probe.hidden:
        raise ValueError(
            f"probe.hidden={config.probe.hidden}: interventions need linear probes; "
            "set probe.hidden=0, or interventions.tasks=[] for none"
        )
    wanted = _own(config, wanted)
    recorded = site_rules.choose(found.sites, config.sampling.sites)
    missing = wanted.keys() - set(probe_specs(config.sweep, config.sampling.variants, recorded))
    missing -= _fitted(config, found) if missing else set()
    if missing:
        first = next(cell for cell in wanted if cell in missing)
        raise ValueError(_refusal(config, wanted[first], first, len(missing), {site.name for site in recorded}))


def _own(config: Config, wanted: dict[ProbeSpec, str]) -> dict[ProbeSpec, str]:
    """Those that the sweep has to fit. Raises ValueError where a probe that the authors should give can't be read."""
    if not config.interventions.probes:
        return wanted
    theirs, own = AuthorsProbes(Path(config.interventions.probes)), {}
    for cell, told in wanted.items():
        key = ProbeKey(cell.task, cell.site, cell.step, cell.variant, cell.control)
        if not theirs.publish(key):
            own[cell] = told
            continue
        try:
            theirs(key)
        except ValueError as error:
            raise ValueError(
                f"interventions.probes={config.interventions.probes}: {error}; give the folder of the unzipped "
                "probe_checkpoints.zip, or ask for sites and steps that it holds"
            ) from None
    return own


def _fitted(config: Config, found: ModelInfo) -> set[ProbeSpec]:
    """Probes of the same settings that an earlier run into this output has left."""
    with suppress(ValueError):  # nothing there yet
        run = runs.reopen(config, found)
        return finished(run.store, GRID, run.hashes.probe)
    return set()


def _refusal(config: Config, told: str, cell: ProbeSpec, count: int, recorded: set[str]) -> str:
    """One line: the key that asks, what is missing, the cure."""
    sweep, sampling = config.sweep, config.sampling
    rules: list[tuple[bool, str, Sequence[object], object]] = [
        (cell.variant not in sampling.variants, "sampling.variants", sampling.variants, cell.variant),
        (cell.control not in sweep.controls, "sweep.controls", sweep.controls, cell.control),
        (cell.task not in sweep.tasks, "sweep.tasks", sweep.tasks, cell.task),
        (cell.step not in sweep.steps, "sweep.steps", sweep.steps, cell.step),
        (cell.site not in recorded, "sampling.sites", sampling.sites, cell.site),
        (cell.seed not in sweep.seeds, "sweep.seeds", sweep.seeds, cell.seed),
        (True, "sweep.control_sites", sweep.control_sites, cell.site),
    ]
    _, name, have, lacks = next(rule for rule in rules if rule[0])
    listed = ",".join(map(str, have))
    return (
        f"{told}: needs {count} probe{'s' if count > 1 else ''} that the sweep does not plan, the first of variant "
        f"{cell.variant}, control {cell.control}, task {cell.task} at {cell.site}, step {cell.step}; "
        f"add {lacks} to {name}=[{listed}], or ask for fewer interventions"
    )
