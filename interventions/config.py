"""Which interventions run: images, moves, sites, steps, the inner optimiser and the controls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from interventions.controls import VARIATIONS
from probing.diffusion.sites import SiteSpec, choose

TASKS = ("saliency", "depth")
LR_UNITS = ("absolute", "rms")
MOVE_RULES = ("visible", "authors")
CONTROLS = ("none", "random_direction", "random_probe", "shuffled_probe", "late_steps")
"""what the real edit is compared with, each a row of the same table"""
COMPARISONS = (*CONTROLS, *VARIATIONS)
"""all that can stand beside the real edit: controls, and the same edit by other means"""
STEPS = 15
"""denoising steps of a sample"""
SIDES = ("encoder", "bottleneck", "decoder")
GUIDANCE = "guidance"
"""the ablation that edits under other guidance scales; it alone starts from images of its own"""
MAIN, SECOND_OBJECT, ANIMATION = "interventions", "second_object", "animation"
"""experiments that are no ablation: the measurement itself, appendix E, and one object on its way"""
TRANSPLANT = "transplant"
"""the experiment that follows no probe: another image's whole activations in place of an image's own"""


@dataclass(frozen=True)
class EditSpec:
    """One kind of edit: where, when and how strongly activations are moved (section 5.1)."""

    task: str
    """what the probes read: saliency or depth"""
    sites: tuple[str, ...]
    """names of sites, or the groups `encoder`, `bottleneck`, `decoder`, `all`"""
    steps: tuple[int, ...]
    """denoising steps, counted from 1"""
    iterations: int = 128
    """steps of the inner Adam; 0 leaves the image as it is"""
    lr: float = 5e-3
    """step size of the inner Adam, in `lr_units`"""
    lr_units: str = "absolute"
    """absolute, or rms: in units of the site's root mean square at that step"""
    depth_span: float = 9.0
    """the depth target is min-max scaled to plus and minus this; 0 keeps standardised depth"""

    def __post_init__(self) -> None:
        _one_of("task", self.task, TASKS)
        _one_of("lr_units", self.lr_units, LR_UNITS)
        if not self.sites:
            raise ValueError(f"interventions.{self.task}_sites is empty; give names, decoder or all")
        if not self.steps or self.steps[0] < 1 or list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"interventions.{self.task}_steps={list(self.steps)}: give ascending steps from 1 on")
        if self.iterations < 0:
            raise ValueError(f"interventions.iterations={self.iterations}: must be 0 or more")
        for name, low in (("lr", math.ulp(0.0)), ("depth_span", 0.0)):
            if not low <= getattr(self, name) < math.inf:
                raise ValueError(f"interventions.{name}={getattr(self, name)}: needs a positive number")


@dataclass(frozen=True)
class InterventionConfig:
    """Which interventions a run makes. The defaults are the paper's, over all test images."""

    images: int = 0
    """test images that are edited, in order of their sample number; 0 means all"""
    moves: int = 5
    """different moves of each image"""
    tasks: tuple[str, ...] = TASKS
    """saliency, depth, or both"""
    saliency_sites: tuple[str, ...] = ("decoder",)
    """sites edited for saliency: names, or encoder, bottleneck, decoder, all"""
    depth_sites: tuple[str, ...] = ("all",)
    """sites edited for depth, likewise"""
    saliency_steps: tuple[int, ...] = (1, 2, 3, 4, 5)
    """denoising steps edited for saliency"""
    depth_steps: tuple[int, ...] = (1, 2, 3)
    """denoising steps edited for depth"""
    iterations: int = 128
    """steps of the inner Adam"""
    lr: float = 5e-3
    """step size of the inner Adam, in `lr_units`"""
    lr_units: str = "absolute"
    """absolute, or rms: in units of the site's root mean square at that step"""
    depth_span: float = 9.0
    """the depth target is min-max scaled to plus and minus this; 0 keeps standardised depth"""
    controls: tuple[str, ...] = CONTROLS
    """comparisons beside the real edit: none, random_direction, random_probe, shuffled_probe, late_steps;
    and the same edit by other means: rank_one, natural"""
    guidance: float | None = None
    """guidance scale while editing; null is that of sampling"""
    probes: str = ""
    """folder of the authors' unzipped probe_checkpoints.zip, as every worker sees it: its probes of the trained
    network drive the edits, those of controls stay the run's own; empty means all are the run's own"""
    move_rule: str = "visible"
    """visible: moves that hide more than half of the mask are drawn again; authors: their seeds and
    order, without drawing again"""
    seed: int = 0
    """of moves and random directions"""
    ablation_images: int = 0
    """test images of each ablation below; 0 means as many as `images`"""
    dose: tuple[int, ...] = ()
    """further numbers of iterations, each an experiment `dose` of the real edit (dose response)"""
    step_counts: tuple[int, ...] = ()
    """further numbers of edited steps, each an experiment `steps` (appendix D)"""
    sides: tuple[str, ...] = ()
    """further groups of sites, each an experiment `sides`: encoder, bottleneck, decoder, all"""
    guidances: tuple[float, ...] = ()
    """further guidance scales, each an experiment `guidance` of the real edit; what it is compared with is the
    unedited image, made anew at the same scale"""
    second_objects: int = 0
    """images that get a second object, nearer to farther (appendix E, depth)"""
    transplants: int = 0
    """images that get the whole activations of another image of their prompt, at the edited sites, once in the edited
    steps and once in all: the most that an edit at these places can do"""
    frames: int = 0
    """places of the object on its way across the first image, for the animation; 0 makes none"""
    rows: int = 32
    """most images in one sampling batch; smaller needs less memory and changes the last bits"""
    keep_images: int = 4
    """images whose edited pictures are kept, in order of their sample number"""

    def __post_init__(self) -> None:
        counts = ("images", "ablation_images", "second_objects", "transplants", "frames", "keep_images")
        for name, low in (("moves", 1), ("rows", 1), *((name, 0) for name in counts)):
            if getattr(self, name) < low:
                raise ValueError(f"interventions.{name}={getattr(self, name)}: must be {low} or more")
        for task in self.tasks:
            _one_of("tasks", task, TASKS)
            self.spec(task)
        for control in self.controls:
            _one_of("controls", control, COMPARISONS)
        for scale in self.guidances:
            if not 0 < scale < math.inf:
                raise ValueError(f"interventions.guidances={scale}: needs a positive number")
        for side in self.sides:
            _one_of("sides", side, (*SIDES, "all"))
        _one_of("move_rule", self.move_rule, MOVE_RULES)

    def spec(self, task: str) -> EditSpec:
        """The main edit of a task."""
        return EditSpec(
            task,
            tuple(getattr(self, f"{task}_sites")),
            tuple(getattr(self, f"{task}_steps")),
            self.iterations,
            self.lr,
            self.lr_units,
            self.depth_span,
        )

    def experiments(self, task: str) -> tuple[tuple[str, EditSpec, tuple[str, ...]], ...]:
        """(experiment, edit, controls) of a task: the main one first, then ablations of the real edit.

        An ablation that would repeat the main edit is left out.
        """
        main = self.spec(task)
        found = [("dose", replace(main, iterations=n)) for n in self.dose]
        found += [("steps", replace(main, steps=tuple(range(1, n + 1)))) for n in self.step_counts]
        found += [("sides", replace(main, sites=(side,))) for side in self.sides]
        ablations = [(name, spec, ()) for name, spec in found if spec != main]
        means = tuple(name for name in self.controls if name in VARIATIONS)
        further = [(SECOND_OBJECT, main, means)] if task == "depth" and self.second_objects else []
        further += [(ANIMATION, main, means)] if self.frames else []
        always = replace(main, steps=tuple(range(1, STEPS + 1)))
        further += [(TRANSPLANT, spec, ()) for spec in dict.fromkeys((main, always))] if self.transplants else []
        return ((MAIN, main, tuple(self.controls)), *ablations, *further)

    def scales(self, sampling: float | None = None) -> tuple[float, ...]:
        """The further guidance scales, without the main edit's: `sampling`'s where no other is given."""
        main = sampling if self.guidance is None else self.guidance
        return tuple(scale for scale in dict.fromkeys(self.guidances) if scale != main)

    def images_of(self, experiment: str, available: int) -> int:
        """How many of the available test images an experiment edits."""
        main = min(self.images or available, available)
        if experiment == MAIN:
            return main
        own = {SECOND_OBJECT: self.second_objects, ANIMATION: 1, TRANSPLANT: self.transplants}
        return min(own.get(experiment, self.ablation_images or main), main)


def choose_sites(sites: Sequence[SiteSpec], names: Sequence[str]) -> tuple[SiteSpec, ...]:
    """The sites of names and groups, in order of execution. Raises ValueError for unknown names."""
    groups = {name for name in names if name in SIDES}
    grouped = {site.name for site in sites if site.side in groups}
    return choose(sites, [*(name for name in names if name not in groups), *grouped])


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"interventions.{name}={value!r}: unknown; use {', '.join(allowed)}")
