"""Edited sampling: all trials of an image, with their controls, in one batch (section 5.1)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interventions.config import STEPS, EditSpec, choose_sites
from interventions.controls import (
    EDIT,
    STEERED,
    VARIATIONS,
    along,
    late_steps,
    probe_direction,
    probes_of,
    random_direction,
    rescaled,
)
from interventions.plan import Row
from interventions.readout import Goals, Wanted
from interventions.sources.cache import ProbeCache, SiteProbes, name_number
from interventions.steer import Adam, steer
from probing.diffusion.hooks import rewrite
from probing.diffusion.model import LatentDiffusion
from probing.diffusion.sampling import sample
from probing.diffusion.sites import SiteSpec


@dataclass(frozen=True, eq=False)
class Edited:
    """A finished batch. What was measured inside is a mean over the edited sites and steps; (R) each."""

    rows: tuple[Row, ...]
    images: NDArray[np.uint8]
    """(R, H, W, 3)"""
    norm: NDArray[np.float64]
    """root mean square of the edit, in units of that of the site's activations"""
    readout_before: NDArray[np.float64]
    """the true probe's reading against the wanted label: Dice over cells, or RMSE"""
    readout_after: NDArray[np.float64]
    """the same after the edit"""
    readout_spearman: NDArray[np.float64]
    """rank correlation after the edit; NaN for saliency"""
    readout_least: NDArray[np.float64]
    """Dice, or rank correlation, at the worst of the edited sites and steps"""
    departure_before: NDArray[np.float64]
    """root mean square of the standardised activations; 1 is normal"""
    departure_after: NDArray[np.float64]
    """the same after the edit"""
    seconds: float
    """for the whole batch"""


MEASURES = (
    "norm", "readout_before", "readout_after", "readout_spearman", "departure_before", "departure_after",
)  # fmt: skip


def untouched(image: NDArray[np.uint8], rows: Sequence[Row]) -> Edited:
    """What an empty edit gives: the original image (H, W, 3) in every row, bit for bit.

    Sampling it again beside other rows would differ from the stored image by rounding.
    """
    unread = {name: np.full(len(rows), np.nan) for name in (*MEASURES, "readout_least")}
    unread["norm"] = np.zeros(len(rows))
    return Edited(tuple(rows), np.repeat(image[None], len(rows), axis=0), **unread, seconds=0.0)


@dataclass(eq=False)
class Editor:
    """Rewrites sites of a running UNet call; `step` says which denoising step is running."""

    spec: EditSpec
    rows: Sequence[Row]
    goals: Goals
    cabinet: ProbeCache
    seed: tuple[int, ...]
    """of the random directions: the run's seed and the sample"""
    late: tuple[int, ...]
    """steps of the control `late_steps`"""
    step: int = 0
    strength: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """(site, order of the step) -> norm of the real edit (trials in the batch, T)"""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """measure -> sum over edits (R)"""
    least: Tensor | None = None
    """worst agreement so far with the wanted label (R)"""

    def __post_init__(self) -> None:
        self.controls = tuple(dict.fromkeys(row.control for row in self.rows))
        self.device = self.cabinet.device
        self.trials = torch.tensor([row.trial for row in self.rows], device=self.device)
        self.local = torch.unique(self.trials, return_inverse=True)[1]
        kinds = probes_of(self.controls)
        which = [kinds.index(STEERED.get(row.control, STEERED[EDIT])) for row in self.rows]
        self.which = torch.tensor(which, device=self.device)
        self.count = torch.zeros(len(self.rows), device=self.device)

    def rows_with(self, *controls: str) -> Tensor:
        """Positions of the rows of some controls."""
        places = [i for i, row in enumerate(self.rows) if row.control in controls]
        return torch.tensor(places, dtype=torch.long, device=self.device)

    def active(self) -> bool:
        """Whether the running step is edited in any row."""
        late = self.step in self.late and "late_steps" in self.controls
        return self.spec.iterations > 0 and (self.step in self.spec.steps or late)

    def __call__(self, site: SiteSpec, acts: Tensor) -> Tensor:
        """Edited activations (R, T, C) of a site, always in fp32."""
        with torch.autocast(self.device.type, enabled=False):
            return self._edited(site, acts)

    def _edited(self, site: SiteSpec, acts: Tensor) -> Tensor:
        place = self.cabinet.place(self.spec.task, site, self.step, self.controls)
        wanted = self.goals.on((site.height, site.width))
        moved = torch.zeros_like(acts)
        if self.step in self.spec.steps:
            self._real(site, acts, place, wanted, moved)
        if self.step in self.late:
            self._late(site, acts, place, wanted, moved)
        after = acts + moved
        self._measure(acts, after, moved, place, wanted)
        return after

    def _steer(self, acts: Tensor, place: SiteProbes, wanted: Wanted, rows: Tensor) -> Tensor:
        unit = place.normal.rms if self.spec.lr_units == "rms" else 1.0
        adam = Adam(self.spec.lr * unit, self.spec.iterations)
        return steer(acts[rows], place.readers, self.which[rows], wanted.objective, self.trials[rows], adam)

    def _real(self, site: SiteSpec, acts: Tensor, place: SiteProbes, wanted: Wanted, moved: Tensor) -> None:
        """The real edit and the controls that go with it, written into `moved`."""
        real_rows, others = self.rows_with(EDIT), self.rows_with("random_probe", "shuffled_probe")
        together = torch.cat([real_rows, others])
        found = self._steer(acts, place, wanted, together)
        real = found[: len(real_rows)]
        strength = real.norm(dim=-1)
        self.strength[site.name, self.spec.steps.index(self.step)] = strength
        moved[real_rows] = real
        moved[others] = rescaled(found[len(real_rows) :], strength[self.local[others]])
        turned = self.rows_with("random_direction", *VARIATIONS)
        if len(turned):
            moved[turned] = self._turned(site, place, real[self.local[turned]], turned)

    def _turned(self, site: SiteSpec, place: SiteProbes, real: Tensor, rows: Tensor) -> Tensor:
        """The real edit along another direction, one per site, step and trial."""
        found = np.stack([self._direction(site, place, self.rows[i]) for i in rows.tolist()])
        return along(torch.from_numpy(found).to(real), real, place.readers.weight[0])

    def _direction(self, site: SiteSpec, place: SiteProbes, row: Row) -> NDArray[np.float64]:
        if row.control in VARIATIONS:
            return probe_direction(row.control, place.normal.centred, place.direction)
        entropy = [*self.seed, name_number(site.name), self.step, row.trial]
        return random_direction(place.normal.centred, place.direction, np.random.default_rng(entropy))

    def _late(self, site: SiteSpec, acts: Tensor, place: SiteProbes, wanted: Wanted, moved: Tensor) -> None:
        """The right probe at the wrong time, as strong as the real edit was in its own steps."""
        rows = self.rows_with("late_steps")
        if len(rows):
            strength = self.strength[site.name, self.late.index(self.step)]
            found = self._steer(acts, place, wanted, rows)
            moved[rows] = rescaled(found, strength[self.local[rows]])

    def _measure(self, before: Tensor, after: Tensor, moved: Tensor, place: SiteProbes, wanted: Wanted) -> None:
        """Adds what the true probe reads, and how big the edit is, for the rows edited now."""
        late = self.rows_with("late_steps")
        now = torch.full_like(self.count, float(self.step in self.spec.steps))
        now[late] = float(self.step in self.late)
        true = torch.zeros_like(self.which)
        readings = [place.readers.read(acts, true) for acts in (before, after)]
        (score, _), (score_after, rank) = (wanted.scores(r, self.trials) for r in readings)
        values = (
            moved.square().mean((1, 2)).sqrt() / place.normal.rms, score, score_after, rank,
            place.normal.departure(before), place.normal.departure(after),
        )  # fmt: skip
        reached = (score_after if self.spec.task == "saliency" else rank).double()
        reached = torch.where((now > 0) & ~reached.isnan(), reached, torch.inf)
        self.least = reached if self.least is None else torch.minimum(self.least, reached)
        for name, value in zip(MEASURES, values, strict=True):
            value = torch.where(now > 0, value.double(), 0.0)
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += now

    def means(self) -> dict[str, NDArray[np.float64]]:
        """Every measure as a mean over the edits of each row; NaN where a row was never edited."""
        nothing = torch.full((len(self.rows),), torch.nan, dtype=torch.float64)
        count = self.count.double().cpu()
        found = {n: (self.sums[n].cpu() / count if n in self.sums else nothing).numpy() for n in MEASURES}
        least = nothing if self.least is None else self.least.where(self.least < torch.inf, torch.nan)
        found["readout_least"] = least.cpu().numpy()
        return found if self.sums else {**found, "norm": np.zeros(len(self.rows))}


def edit_batch(
    model: LatentDiffusion,
    prompt: str,
    sample_seed: int,
    goals: Goals,
    rows: Sequence[Row],
    spec: EditSpec,
    cabinet: ProbeCache,
    *,
    guidance: float,
    seed: tuple[int, ...] = (0, 0),
    total: int = STEPS,
) -> Edited:
    """Samples one prompt and seed once for each row, with its edit; 0 iterations give the original.

    Raises ValueError for unknown sites, steps beyond `total` and missing probes.
    """
    started = time.perf_counter()
    if max(spec.steps) > total:
        raise ValueError(f"interventions.{spec.task}_steps: step {max(spec.steps)} is beyond {total}")
    sites = choose_sites(model.sites(), spec.sites)
    editor = Editor(spec, rows, goals, cabinet, seed, late_steps(spec.steps, total))

    @contextmanager
    def around(step: int) -> Iterator[None]:
        editor.step = step
        if editor.active():
            with rewrite(model.unet, sites, editor, guided=guidance > 1):
                yield
        else:
            yield

    finished = sample(
        model, [prompt] * len(rows), [sample_seed] * len(rows),
        steps=total, guidance=guidance, around=around,
    )  # fmt: skip
    if not bool(torch.isfinite(finished.latents).all()):
        raise ValueError(f"sample with seed {sample_seed}: the edited latents are not finite")
    return Edited(tuple(rows), finished.images.numpy(), **editor.means(),
                  seconds=time.perf_counter() - started)  # fmt: skip
