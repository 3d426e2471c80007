"""Edited sampling: all trials of an image, with their controls, in one batch (section 5.1).

Shapes: R rows (images of the batch), T tokens, C channels.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interventions import controls
from interventions.config import LABEL, READING, RMS, EditSpec, choose_sites
from interventions.editing.readout import GridTargets, TargetLabels
from interventions.editing.steer import Adam, steer
from interventions.plan import Row
from interventions.sources.cache import ProbeCache, SiteProbes
from probing.diffusion.config import PAPER_STEPS
from probing.diffusion.families.base import LatentDiffusion
from probing.diffusion.hooks import rewrite
from probing.diffusion.sampling import calls, sample
from probing.diffusion.sites import ATTENTION, SiteSpec

MEANS = (
    "edit_norm",  # root mean square of the edit, in units of that of the site's activations
    "readout_before",  # agreement of the true probe's readings with the target: Dice over patches, or RMSE
    "readout_after",  # the same after the edit
    "readout_spearman",  # rank correlation after the edit; NaN for saliency
    "departure_before",  # activation RMS z-score; 1 is typical
    "departure_after",  # the same after the edit
)
"""columns measured inside the network, as means over the edited sites and steps of a row"""
LEAST = "readout_least"
"""column: Dice, or rank correlation, at the worst of the edited sites and steps"""


@dataclass(frozen=True, eq=False)
class Edited:
    """A finished batch."""

    rows: tuple[Row, ...]
    images: NDArray[np.uint8]
    """(R, H, W, 3)"""
    measures: dict[str, NDArray[np.float64]]
    """column (MEANS and LEAST) -> values (R); NaN if nothing was measured"""
    seconds: float
    """for the whole batch"""


def untouched(image: NDArray[np.uint8], rows: Sequence[Row]) -> Edited:
    """The result of an empty edit: the original image (H, W, 3) in every row, bit for bit.

    Sampling it again beside other rows would differ from the stored image by rounding.
    """
    measures = {name: np.full(len(rows), np.nan) for name in (*MEANS, LEAST)}
    measures["edit_norm"] = np.zeros(len(rows))
    return Edited(tuple(rows), np.repeat(image[None], len(rows), axis=0), measures, seconds=0.0)


@dataclass(eq=False)
class Editor:
    """Rewrites sites during a UNet call; set `step` to the running denoising step before each call."""

    spec: EditSpec
    rows: Sequence[Row]
    targets: TargetLabels
    probe_cache: ProbeCache
    seed: tuple[int, ...]
    """of the random directions: the run's seed and the sample"""
    late: tuple[int, ...]
    """steps of the control `late_steps`"""
    step: int = 0
    strength: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """(site, index of the step) -> norm of the real edit (trials in the batch, T)"""

    def __post_init__(self) -> None:
        device, count = self.probe_cache.device, len(self.rows)
        self.controls = tuple(dict.fromkeys(row.control for row in self.rows))
        self.trials = torch.tensor([row.trial for row in self.rows], device=device)
        self.local = torch.unique(self.trials, return_inverse=True)[1]
        # the labels of the opposite moves follow those of the moves
        moves = len(self.targets.labels) // 2
        goals = [row.trial + moves * (row.control == controls.MIRROR_TARGET) for row in self.rows]
        self.goals = torch.tensor(goals, device=device)
        kinds = controls.probes_of(self.controls)
        which = [kinds.index(controls.STEERED.get(row.control, controls.STEERED[controls.EDIT])) for row in self.rows]
        self.which = torch.tensor(which, device=device)
        self.count = torch.zeros(count, dtype=torch.float64, device=device)
        self.sums = torch.zeros(len(MEANS), count, dtype=torch.float64, device=device)
        self.least = torch.full((count,), torch.inf, dtype=torch.float64, device=device)

    def rows_with(self, *names: str) -> Tensor:
        """Indices of the rows of some controls (`edit` included)."""
        indices = [i for i, row in enumerate(self.rows) if row.control in names]
        return torch.tensor(indices, dtype=torch.long, device=self.trials.device)

    def active(self) -> bool:
        """Whether the running step is edited in any row."""
        late = self.step in self.late and controls.LATE_STEPS in self.controls
        return self.spec.iterations > 0 and (self.step in self.spec.steps or late)

    def __call__(self, site: SiteSpec, acts: Tensor) -> Tensor:
        """Edited activations (R, T, C) of a site, always in fp32."""
        with torch.autocast(acts.device.type, enabled=False):
            site_probes = self.probe_cache.get(self.spec.task, site, self.step, self.controls, self.spec.direction)
            target = self.targets.on_grid((site.height, site.width))
            edit = torch.zeros_like(acts)
            if self.step in self.spec.steps:
                self._edit(site, acts, site_probes, target, edit)
            late = self.rows_with(controls.LATE_STEPS)
            if self.step in self.late and len(late):
                # the right probe at the wrong time, as strong as the real edit was in its own steps
                strength = self.strength[site.name, self.late.index(self.step)]
                steered = self._steer(acts, site_probes, target, late)
                edit[late] = controls.rescaled(steered, strength[self.local[late]])
            self._measure(acts, edit, site_probes, target)
            return acts + edit

    def _steer(self, acts: Tensor, site_probes: SiteProbes, target: GridTargets, rows: Tensor) -> Tensor:
        """Change (n, T, C) of some rows: by the paper's optimisation, turned into the edit's direction, or natural.

        Turned, a patch moves as far as changes the reading of its probe as much as the paper's edit does.
        """
        if self.spec.scale == LABEL:
            return self._natural(site_probes, target, rows)
        unit, which = site_probes.stats.rms if self.spec.lr_units == "rms" else 1.0, self.which[rows]
        adam = Adam(self.spec.lr * unit, self.spec.iterations)
        moved = steer(acts[rows], site_probes.linear, which, target.objective, self.goals[rows], adam)
        directions = site_probes.directions
        if directions is None:
            return moved
        change = torch.bmm(moved, site_probes.linear.weight[which][..., None])[..., 0]
        # a control's probe may be zero, and then moves nothing
        reading = directions.reading[which][:, None]
        length = (change / reading).where(reading.abs() > 0, 0.0)
        return length[..., None] * directions.unit[which][:, None, :]

    def _natural(self, site_probes: SiteProbes, target: GridTargets, rows: Tensor) -> Tensor:
        """Change (n, T, C) of some rows along their directions, in proportion to the change of each patch's label.

        Its size is that between training patches of the two classes, divided by the difference of their labels.
        """
        directions, which = site_probes.directions, self.which[rows]
        if directions is None:
            raise ValueError("interventions.scale=label: edits along the weights have no natural change; use reading")
        if not directions.contrast > 0:
            raise ValueError(
                f"interventions.scale=label: in training images, {self.spec.task} is no higher in near or object "
                "patches than in others, so that no natural change is known; use scale=reading"
            )
        change = target.change[self.goals[rows]] * directions.gap / directions.contrast
        upwards = directions.reading[which].sign()[:, None] * directions.unit[which]
        return change[..., None] * upwards[:, None, :]

    def _sized(self, edit: Tensor, site_probes: SiteProbes) -> Tensor:
        """The real edit (n, T, C) with the size that the edit's scale and gain ask for."""
        gain = self.spec.gain
        if self.spec.scale in (READING, LABEL):
            return edit if gain == 1 else gain * edit
        if self.spec.scale == RMS:
            norm = site_probes.stats.rms * edit.shape[-1] ** 0.5
        elif site_probes.directions is not None:
            norm = site_probes.directions.gap
        else:
            raise ValueError("interventions.scale=gap: edits along the weights have no gap; use reading or rms")
        own = edit.square().sum(-1).mean(-1).sqrt()
        return edit * (gain * norm / own.clamp(min=1e-30)).where(own > 0, 0.0)[:, None, None]

    def _edit(self, site: SiteSpec, acts: Tensor, site_probes: SiteProbes, target: GridTargets, edit: Tensor) -> None:
        """Write the real edit and the controls of the same steps into `edit` (R, T, C)."""
        real_rows = self.rows_with(controls.EDIT)
        others = self.rows_with(*controls.OTHER_PROBES, controls.MIRROR_TARGET)
        steered = self._steer(acts, site_probes, target, torch.cat([real_rows, others]))
        real = self._sized(steered[: len(real_rows)], site_probes)
        strength = real.norm(dim=-1)
        self.strength[site.name, self.spec.steps.index(self.step)] = strength
        edit[real_rows] = real
        for i, other in zip(others.tolist(), steered[len(real_rows) :], strict=True):
            wanted = strength[self.local[i]]
            if self.rows[i].control == controls.MIRROR_TARGET:
                # its object is elsewhere, and so are its large changes: the whole edit has the norm, not each patch
                edit[i] = other * (wanted.norm() / other.norm().clamp(min=1e-30))
            else:
                edit[i] = controls.rescaled(other[None], wanted[None])[0]
        decoys = self.rows_with(controls.DECOY_PLACE)
        by_place = real[self.local[decoys]].unflatten(1, (site.height, site.width))
        shift = (site.height // 2, site.width // 2)
        edit[decoys] = by_place.roll(shift, dims=(1, 2)).flatten(1, 2)
        turned = self.rows_with("random_direction", *controls.VARIATIONS)
        if len(turned):
            directions = np.stack([self._direction(site, site_probes, self.rows[i]) for i in turned.tolist()])
            own = real[self.local[turned]]
            edit[turned] = controls.along(torch.from_numpy(directions).to(real), own, site_probes.linear.weight[0])

    def _direction(self, site: SiteSpec, site_probes: SiteProbes, row: Row) -> NDArray[np.float64]:
        """Direction (C) of a turned edit; a random one is drawn for each site, step and trial."""
        centred, probe = site_probes.stats.centred, site_probes.probe
        if row.control in controls.VARIATIONS:
            return controls.probe_direction(row.control, centred, probe)
        avoided = [probe]
        if site_probes.directions is not None:
            avoided.append(site_probes.directions.unit[0].double().cpu().numpy())
        # crc32 is the same in every process, unlike hash()
        entropy = [*self.seed, zlib.crc32(site.name.encode()), self.step, row.trial]
        return controls.random_direction(centred, avoided, np.random.default_rng(entropy))

    def _measure(self, before: Tensor, edit: Tensor, site_probes: SiteProbes, target: GridTargets) -> None:
        """Add readings of the true probe, z-scores and edit norms for the rows edited in this step."""
        after = before + edit
        now = torch.full_like(self.count, float(self.step in self.spec.steps))
        now[self.rows_with(controls.LATE_STEPS)] = float(self.step in self.late)
        true = torch.zeros_like(self.which)
        readings = [site_probes.linear.readings(acts, true) for acts in (before, after)]
        (score_before, _), (score, rank) = (target.scores(reading, self.trials) for reading in readings)
        norm = edit.square().mean((1, 2)).sqrt() / site_probes.stats.rms
        zscores = [site_probes.stats.rms_zscore(acts) for acts in (before, after)]
        values = torch.stack([v.double() for v in (norm, score_before, score, rank, *zscores)])
        self.sums += torch.where(now > 0, values, 0.0)
        self.count += now
        reached = (score if self.spec.task == "saliency" else rank).double()
        reached = torch.where((now > 0) & ~reached.isnan(), reached, torch.inf)
        self.least = torch.minimum(self.least, reached)

    def measures(self) -> dict[str, NDArray[np.float64]]:
        """Every measure (R) over the edits of each row; NaN if a row was never edited."""
        found = dict(zip(MEANS, (self.sums / self.count).cpu().numpy(), strict=True))
        if not self.count.any():
            found["edit_norm"] = np.zeros(len(self.rows))
        found[LEAST] = self.least.where(self.least < torch.inf, torch.nan).cpu().numpy()
        return found


def edit_batch(
    model: LatentDiffusion,
    prompt: str,
    sample_seed: int,
    targets: TargetLabels,
    rows: Sequence[Row],
    spec: EditSpec,
    probe_cache: ProbeCache,
    *,
    guidance: float,
    seed: tuple[int, ...] = (0, 0),
    steps: int = PAPER_STEPS,
    kinds: Sequence[str] = (ATTENTION,),
) -> Edited:
    """Sample one prompt and seed once for each row, with its edit; 0 iterations give the original.

    kinds: of the sites that groups such as `decoder` consist of. Raises ValueError for unknown sites, steps beyond the
    last, missing probes and latents that are not finite.
    """
    started = time.perf_counter()
    total = calls(model, steps)
    if max(spec.steps) > total:
        raise ValueError(f"interventions.{spec.task}_steps: step {max(spec.steps)} is beyond {total}")
    sites = choose_sites(model.recordable, spec.sites, kinds=kinds)
    editor = Editor(spec, rows, targets, probe_cache, seed, controls.late_steps(spec.steps, total))

    def around(step: int) -> AbstractContextManager[None]:
        editor.step = step
        return (
            rewrite(model.network, sites, editor, guided=model.doubles(guidance)) if editor.active() else nullcontext()
        )

    prompts, seeds = [prompt] * len(rows), [sample_seed] * len(rows)
    finished = sample(model, prompts, seeds, steps=steps, guidance=guidance, around=around)
    if not bool(torch.isfinite(finished.latents).all()):
        raise ValueError(f"sample with seed {sample_seed}: the edited latents are not finite")
    return Edited(tuple(rows), finished.images.numpy(), editor.measures(), time.perf_counter() - started)
