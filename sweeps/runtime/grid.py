"""The probe grid: its cells, which of them are missing, and how they are packed into trials."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from probing.diffusion.sites import SiteSpec
from probing.probes.controls import PICTURE, POSITION_CONTROLS, SURFACE_CONTROLS
from storage import Store
from sweeps.config.schema import SweepConfig


@dataclass(frozen=True, order=True)
class Cell:
    """One probe."""

    variant: str
    site: str
    step: int
    task: str
    control: str = "none"
    seed: int = 0

    @property
    def block(self) -> str:
        """The block of the network that the site belongs to."""
        return self.site.rsplit(".", 1)[0]


_LISTED = ("variant", "task")
"""axes whose values all stand in a trial's name"""


@dataclass(frozen=True)
class Trial:
    """Cells that one Tune trial fits."""

    key: str
    cells: tuple[Cell, ...]
    experiment: str = ""
    """whose probes they are; empty for the main grid"""

    @property
    def name(self) -> str:
        """What is fitted, to be read: `probe-trained-up.1-saliency+depth-steps01-15`; good for a folder's name.

        Trials that `pack` makes of one list of cells have different names.
        """
        variants, tasks = ("+".join(dict.fromkeys(getattr(c, axis) for c in self.cells)) for axis in _LISTED)
        first, last = (f"{end(c.step for c in self.cells):02d}" for end in (min, max))
        steps = f"step{first}" if first == last else f"steps{first}-{last}"
        return "-".join(filter(None, ["probe", self.experiment, variants, self._place(), tasks, steps]))

    def _place(self) -> str:
        """The site or the block that all cells share, else how many sites there are."""
        sites, blocks = {c.site for c in self.cells}, {c.block for c in self.cells}
        return min(sites if len(sites) == 1 else blocks) if len(blocks) == 1 else f"{len(sites)}sites"


def picture_steps(sweep: SweepConfig) -> list[int]:
    """Steps whose decoded pictures are read, ascending; none without the control that reads them."""
    chosen = set(sweep.surface_rgb_steps or sweep.steps) & set(sweep.steps)
    return sorted(chosen) if PICTURE in sweep.controls else []


def _controls(sweep: SweepConfig, site: str, variant: str, step: int) -> list[str]:
    """Controls of a site at a step; those that do without the network's activations, or ask what these add to
    position, are fitted for the trained variant alone."""
    wanted = [c for c in sweep.controls if c == "none" or _chosen(sweep, site)]
    wanted = [c for c in wanted if c != PICTURE or step in picture_steps(sweep)]
    return [c for c in wanted if variant == "trained" or c not in (*POSITION_CONTROLS, *SURFACE_CONTROLS)]


def _chosen(sweep: SweepConfig, site: str) -> bool:
    return not sweep.control_sites or site in sweep.control_sites


def cells(sweep: SweepConfig, variants: Sequence[str], sites: Sequence[SiteSpec]) -> list[Cell]:
    """All cells of a sweep: variants x sites x steps x tasks x controls x seeds."""
    return [
        Cell(variant, site.name, step, task, control, seed)
        for variant in variants
        for site in sites
        for step in sorted(set(sweep.steps))
        for task in sweep.tasks
        for control in _controls(sweep, site.name, variant, step)
        for seed in sweep.seeds
    ]


def finished(store: Store, experiment: str, stage_hash: str) -> set[Cell]:
    """Cells that have a row with status `done` of the present settings."""
    table = store.table("probes", stage_hash)
    names = ("variant", "site", "step", "task", "control", "seed", "experiment", "status")
    columns = [table[name].to_pylist() for name in names]
    return {Cell(*key) for *key, name, status in zip(*columns, strict=True) if name == experiment and status == "done"}


def pack(wanted: Iterable[Cell], axes: Sequence[str], experiment: str = "") -> list[Trial]:
    """Groups cells into trials: cells that agree in all `axes` go together."""
    start = [experiment] if experiment else []
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in wanted:
        groups.setdefault(tuple(getattr(cell, axis) for axis in axes), []).append(cell)
    return [
        Trial("/".join([*start, *map(str, key)]) or "all", tuple(found), experiment) for key, found in groups.items()
    ]
