"""The probes that interventions need; a run is refused at its start if the sweep does not plan them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from interventions.config import ANIMATION, GAIN, PATCHING, SECOND_OBJECT, EditSpec, choose_sites
from interventions.controls import EDIT, LATE_STEPS, STEERED, late_steps, probes_of
from interventions.sources.authors import AuthorsProbes
from interventions.sources.base import PROBE_SEED, ProbeKey
from probing.diffusion.sites import SiteSpec, recorded, whole_kinds
from storage.backends import local_path
from sweeps.config.schema import GRID, Config
from sweeps.runtime.grid import ProbeSpec, finished, probe_specs
from sweeps.runtime.run import ModelInfo, reopen


def needed(config: Config, sites: Sequence[SiteSpec]) -> Iterator[tuple[str, ProbeSpec]]:
    """Yield (key and value that require it, probe) for all interventions; sites: all that the model has."""
    settings, kinds = config.interventions, whole_kinds(config.sampling.sites)
    for task in settings.tasks:
        for experiment, spec, controls in settings.experiments(task, config.total_steps):
            if spec.iterations and experiment != PATCHING:
                edited = choose_sites(sites, spec.sites, f"interventions.{task}_sites", kinds)
                yield from _needed_by_edit(config, experiment, spec, controls, edited)


def _needed_by_edit(
    config: Config, experiment: str, spec: EditSpec, controls: Sequence[str], sites: Sequence[SiteSpec]
) -> Iterator[tuple[str, ProbeSpec]]:
    edit_reason = _edit_reason(config, experiment, spec)
    late = late_steps(spec.steps, config.total_steps) if LATE_STEPS in controls else ()
    control_reasons = {
        STEERED[name]: f"interventions.controls={name}"
        for name in controls
        if name in STEERED and STEERED[name] != STEERED[EDIT]
    }
    for variant, control in probes_of(controls):
        for step in sorted({*spec.steps, *late}):
            reason = edit_reason if step in spec.steps else f"interventions.controls={LATE_STEPS}"
            for site in sites:
                probe = ProbeSpec(variant, site.name, step, spec.task, control, PROBE_SEED)
                yield control_reasons.get((variant, control)) or reason, probe


def _edit_reason(config: Config, experiment: str, spec: EditSpec) -> str:
    """Return the key and value that an experiment's sites and steps come from."""
    settings = {
        "steps": ("step_counts", len(spec.steps)),
        "sides": ("sides", spec.sites[0]),
        "dose": ("dose", spec.iterations),
        GAIN: ("gains", spec.gain),
        SECOND_OBJECT: ("second_objects", config.interventions.second_objects),
        ANIMATION: ("frames", config.interventions.frames),
    }
    if experiment in settings:
        key, value = settings[experiment]
        return f"interventions.{key}={value}"
    return f"interventions.{spec.task}_sites and {spec.task}_steps"


def check(config: Config, model_info: ModelInfo) -> None:
    """Raise ValueError if an intervention needs a probe that the sweep neither plans nor has fitted already."""
    reasons: dict[ProbeSpec, str] = {}
    for reason, probe in needed(config, model_info.recordable):
        reasons.setdefault(probe, reason)
    if reasons and config.probe.hidden:
        raise ValueError(
            f"probe.hidden={config.probe.hidden}: interventions need linear probes; "
            "set probe.hidden=0, or interventions.tasks=[] for none"
        )
    if config.interventions.probes:
        reasons = not_published(config, reasons)
    sites = recorded(model_info.recordable, config.sampling.sites)
    missing = reasons.keys() - set(probe_specs(config.sweep, config.sampling.variants, sites))
    if missing:
        with suppress(ValueError):  # no output yet
            run = reopen(config, model_info)
            missing -= finished(run.store, GRID, run.hashes.probe)
    if missing:
        first = next(probe for probe in reasons if probe in missing)
        raise ValueError(_message(config, reasons[first], first, len(missing), {site.name for site in sites}))


def not_published(config: Config, reasons: dict[ProbeSpec, str]) -> dict[ProbeSpec, str]:
    """Return the probes that the authors do not publish, so that the sweep has to fit them.

    Raises ValueError if a published probe cannot be read.
    """
    authors, own = AuthorsProbes(local_path(config.interventions.probes, "interventions.probes")), {}
    for probe, reason in reasons.items():
        key = ProbeKey(probe.task, probe.site, probe.step, probe.variant, probe.control)
        if not authors.publish(key):
            own[probe] = reason
            continue
        try:
            authors(key)
        except ValueError as error:
            raise ValueError(
                f"interventions.probes={config.interventions.probes}: {error}; give the folder of the unzipped "
                "probe_checkpoints.zip, or request sites and steps that it holds"
            ) from None
    return own


def _message(config: Config, reason: str, probe: ProbeSpec, count: int, sites: set[str]) -> str:
    """Return one line: the key that needs the probes, the first missing one, and which setting to extend."""
    sweep, sampling = config.sweep, config.sampling
    rules: list[tuple[bool, str, Sequence[object], object]] = [
        (probe.variant not in sampling.variants, "sampling.variants", sampling.variants, probe.variant),
        (probe.control not in sweep.controls, "sweep.controls", sweep.controls, probe.control),
        (probe.task not in sweep.tasks, "sweep.tasks", sweep.tasks, probe.task),
        (probe.step not in sweep.steps, "sweep.steps", sweep.steps, probe.step),
        (probe.site not in sites, "sampling.sites", sampling.sites, probe.site),
        (probe.seed not in sweep.seeds, "sweep.seeds", sweep.seeds, probe.seed),
        (True, "sweep.control_sites", sweep.control_sites, probe.site),
    ]
    _, key, values, lacking = next(rule for rule in rules if rule[0])
    return (
        f"{reason}: needs {count} probe{'s' if count > 1 else ''} that the sweep does not plan, the first of variant "
        f"{probe.variant}, control {probe.control}, task {probe.task} at {probe.site}, step {probe.step}; "
        f"add {lacking} to {key}=[{','.join(map(str, values))}], or request fewer interventions"
    )
