"""The probe grid: its probes, which of them are missing, and how they are packed into trials."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from probing.diffusion.sites import ALL, SiteSpec, block_of
from probing.probes.controls import PICTURE, POSITION_CONTROLS, SURFACE_CONTROLS
from storage import Store
from sweeps.config.schema import GRID, SweepConfig


@dataclass(frozen=True, order=True)
class ProbeSpec:
    """One probe of a run."""

    variant: str
    site: str
    step: int
    task: str
    control: str = "none"
    seed: int = 0
    experiment: str = GRID

    @property
    def block(self) -> str:
        """The block of the network that the site belongs to, such as `up.2`."""
        return block_of(self.site)

    @property
    def key(self) -> str:
        """Readable name."""
        parts = (self.experiment, self.variant, self.site, self.step, self.task, self.control, self.seed)
        return "/".join(map(str, parts))


@dataclass(frozen=True)
class Trial:
    """Probes that one Tune trial fits; all belong to one experiment."""

    key: str
    probes: tuple[ProbeSpec, ...]

    @property
    def experiment(self) -> str:
        """The experiment of the probes."""
        return self.probes[0].experiment if self.probes else GRID

    @property
    def name(self) -> str:
        """Readable description that is also a valid folder name: `probe-trained-up.1-saliency+depth-steps01-15`.

        The trials that one call of `pack` returns have different names.
        """
        variants = "+".join(dict.fromkeys(probe.variant for probe in self.probes))
        tasks = "+".join(dict.fromkeys(probe.task for probe in self.probes))
        steps = [probe.step for probe in self.probes]
        first, last = f"{min(steps):02d}", f"{max(steps):02d}"
        sites, blocks = {probe.site for probe in self.probes}, {probe.block for probe in self.probes}
        place = f"{len(sites)}sites" if len(blocks) > 1 else min(sites if len(sites) == 1 else blocks)
        span = f"step{first}" if first == last else f"steps{first}-{last}"
        experiment = [] if self.experiment == GRID else [self.experiment]
        return "-".join(["probe", *experiment, variants, place, tasks, span])


def picture_steps(sweep: SweepConfig) -> list[int]:
    """Return the steps whose decoded images the control `surface_rgb` reads, ascending; none without that control."""
    chosen = set(sweep.surface_rgb_steps or sweep.steps) & set(sweep.steps)
    return sorted(chosen) if PICTURE in sweep.controls else []


def _controls(sweep: SweepConfig, site: SiteSpec, variant: str, step: int) -> list[str]:
    """Return the controls of a site at a step.

    Controls that ignore the network's activations, or compare them with position, are fitted for the trained
    variant only: they would be the same for all others.
    """
    names = sweep.control_sites
    chosen_site = not names or not {site.name, site.family, ALL}.isdisjoint(names)
    controls = [c for c in sweep.controls if c == "none" or chosen_site]
    controls = [c for c in controls if c != PICTURE or step in picture_steps(sweep)]
    return [c for c in controls if variant == "trained" or c not in (*POSITION_CONTROLS, *SURFACE_CONTROLS)]


def probe_specs(sweep: SweepConfig, variants: Sequence[str], sites: Sequence[SiteSpec]) -> list[ProbeSpec]:
    """Return all probes of the main grid: variants x sites x steps x tasks x controls x seeds."""
    return [
        ProbeSpec(variant, site.name, step, task, control, seed)
        for variant in variants
        for site in sites
        for step in sorted(set(sweep.steps))
        for task in sweep.tasks
        for control in _controls(sweep, site, variant, step)
        for seed in sweep.seeds
    ]


def finished(store: Store, experiment: str, stage_hash: str) -> set[ProbeSpec]:
    """Return the probes of an experiment that have a row with status `done` of the given settings.

    There is one file of weights for each probe. If a later fit with other settings has replaced it, the probe of
    these settings has to be fitted again before anything reads it.
    """
    table = store.table("probes")
    names = ("variant", "site", "step", "task", "control", "seed", "experiment", "status", "attempt", "stage_hash")
    last: dict[ProbeSpec, tuple[int, str]] = {}
    for *key, status, attempt, row_hash in zip(*(table[name].to_pylist() for name in names), strict=True):
        if key[-1] == experiment and status == "done":
            probe = ProbeSpec(*key)
            last[probe] = max(last.get(probe, (-1, "")), (attempt or 0, row_hash))
    return {probe for probe, (_, row_hash) in last.items() if row_hash == stage_hash}


def pack(probes: Iterable[ProbeSpec], axes: Sequence[str]) -> list[Trial]:
    """Group probes into trials: probes of one experiment that agree in all `axes` go together."""
    groups: dict[tuple[str, ...], list[ProbeSpec]] = {}
    for probe in probes:
        experiment = [] if probe.experiment == GRID else [probe.experiment]
        key = (*experiment, *(str(getattr(probe, axis)) for axis in axes))
        groups.setdefault(key, []).append(probe)
    return [Trial("/".join(key) or "all", tuple(group)) for key, group in groups.items()]
