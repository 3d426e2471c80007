"""Configuration of interventions: images, moves, sites, steps, the inner optimiser and the comparisons (no torch)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from interventions.controls import LATE_STEPS, NULLS, SHUFFLED_PROBE, VARIATIONS
from probing.diffusion.sites import ALL, ATTENTION, SiteSpec, choose

TASKS = ("saliency", "depth")
LR_UNITS = ("absolute", "rms")
WEIGHTS, PATTERN, MEAN_DIFFERENCE = "weights", "pattern", "mean_difference"
DIRECTIONS = (WEIGHTS, PATTERN, MEAN_DIFFERENCE)
"""directions of an edit: the paper's inner optimisation, which follows the probe's weights; the pattern, covariance
times weights, in which the network itself writes what the probe reads (Haufe et al. 2014); and the difference of the
mean activations of patches with and without the object (for depth: of near and far patches)"""
READING, GAP, RMS, LABEL = "reading", "gap", "rms", "label"
SCALES = (READING, GAP, RMS, LABEL)
"""units of an edit's gain: the change of the probe's reading by the paper's edit, patch by patch; a size of the whole
edit in units of the natural gap between the two classes along its direction, or of the site's root mean square; or the
natural change, patch by patch: as far as activations differ between patches whose labels differ as the target label
from that of the unedited image, which leaves patches alone whose label stays"""
MOVE_RULES = ("visible", "authors")
CONTROLS = ("none", "random_direction", "random_probe", SHUFFLED_PROBE, LATE_STEPS)
"""default controls of the real edit, each with rows of its own in the results"""
COMPARISONS = ("none", *NULLS, SHUFFLED_PROBE, LATE_STEPS, *VARIATIONS)
"""everything that can run beside the real edit: nulls of the same size, comparisons that decide nothing, and
variations"""
SIDES = ("encoder", "bottleneck", "decoder", "early", "middle", "late")
"""groups of sites: of a UNet, and the thirds of a transformer"""
MAIN, SECOND_OBJECT, ANIMATION = "interventions", "second_object", "animation"
"""experiments that are not ablations: the main measurement, appendix E, and one object moving across an image"""
GAIN = "gain"
"""the ablation of the gain: dose response with every null of the main edit"""
GUIDANCE = "guidance"
"""the ablation of the guidance scale; its unedited images are sampled again at each scale"""
PATCHING = "transplant"
"""activation patching: the experiment that uses no probe (the value is the name in results)"""


@dataclass(frozen=True, repr=False)
class EditSpec:
    """One kind of edit: where, when, along what and how strongly activations are moved (section 5.1).

    Task keys and stored recipes depend on the names and the order of these fields.
    """

    task: str
    """what the probes predict: saliency or depth"""
    sites: tuple[str, ...]
    """names or kinds of sites, or the groups `encoder`, `bottleneck`, `decoder`, `all`"""
    steps: tuple[int, ...]
    """denoising steps, counted from 1"""
    iterations: int = 128
    """steps of the inner Adam; 0 leaves the image unedited"""
    lr: float = 5e-3
    """step size of the inner Adam, in `lr_units`"""
    lr_units: str = "absolute"
    """absolute, or rms: in units of the site's root mean square at that step"""
    depth_span: float = 9.0
    """the depth target is min-max scaled to plus and minus this; 0 keeps standardised depth"""
    direction: str = WEIGHTS
    """what activations are moved along: weights, pattern or mean_difference"""
    scale: str = READING
    """unit of `gain`: reading, gap, rms or label"""
    gain: float = 1.0
    """size of the edit in units of `scale`"""

    def __repr__(self) -> str:
        # fields that came later are left out at their defaults, so that keys of earlier tasks stay the same
        later = ("direction", "scale", "gain")
        shown = [f for f in fields(self) if f.name not in later or getattr(self, f.name) != f.default]
        return f"EditSpec({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"

    def __post_init__(self) -> None:
        _check_choice("task", self.task, TASKS)
        _check_choice("lr_units", self.lr_units, LR_UNITS)
        _check_choice("directions", self.direction, DIRECTIONS)
        _check_choice("scale", self.scale, SCALES)
        if not self.sites:
            raise ValueError(f"interventions.{self.task}_sites is empty; give names, decoder or all")
        if not self.steps or list(self.steps) != sorted({*self.steps}) or self.steps[0] < 1:
            raise ValueError(f"interventions.{self.task}_steps={list(self.steps)}: give ascending steps, from 1")
        if self.iterations < 0:
            raise ValueError(f"interventions.iterations={self.iterations}: must be 0 or more")
        for name, low in (("lr", math.ulp(0.0)), ("depth_span", 0.0), ("gain", math.ulp(0.0))):
            if not low <= getattr(self, name) < math.inf:
                raise ValueError(f"interventions.{name}={getattr(self, name)}: must be a positive number")


@dataclass(frozen=True)
class InterventionConfig:
    """Which interventions a run makes. The defaults are the paper's, over all test images."""

    images: int = 0
    """number of test images to edit, in order of sample number; 0 means all"""
    moves: int = 5
    """different moves per image"""
    tasks: tuple[str, ...] = TASKS
    """saliency, depth, or both"""
    saliency_sites: tuple[str, ...] = ("decoder",)
    """sites edited for saliency: names, kinds, or groups (encoder, bottleneck, decoder; early, middle, late; all) of
    the kinds that `sampling.sites` names"""
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
    directions: tuple[str, ...] = (WEIGHTS,)
    """what activations are moved along, each with all its controls: weights (the paper's inner optimisation), pattern
    (activation covariance times the probe), mean_difference (between patches with and without the object)"""
    scale: str = READING
    """unit of the gains: reading (1 moves the probe's reading as far as the paper's edit), gap (of the natural gap
    between the two classes of patches along the direction), rms (of the site's root mean square), label (of the natural
    difference between patches whose labels differ as the target from the unedited image; other patches stay)"""
    depth_scale: str | None = None
    """the same for depth; null is `scale`"""
    saliency_gain: float = 1.0
    """size of saliency edits along the pattern or the mean difference, in units of `scale`; edits along the weights
    are the paper's own"""
    depth_gain: float = 1.0
    """the same for depth"""
    controls: tuple[str, ...] = CONTROLS
    """comparisons beside the real edit: none; nulls of the same size (random_direction, random_probe, permuted_probe,
    mirror_target, decoy_place); shuffled_probe and late_steps, which decide nothing (the first knows each image's share
    of object, the second compares timing); and the variations rank_one and natural, the paper's edit turned along the
    probe or its pattern with the same norm"""
    guidance: float | None = None
    """guidance scale while editing; null is that of sampling"""
    probes: str = ""
    """folder of the authors' unzipped probe_checkpoints.zip, at the same path on every worker: its probes of the
    trained network drive the edits, while controls use the run's own; empty means that all are the run's own"""
    move_rule: str = "visible"
    """visible: draw moves that keep at least half of the mask in the image; authors: their seeds and order, and no
    check of what stays visible"""
    seed: int = 0
    """of moves and random directions"""
    ablation_images: int = 0
    """test images of each ablation below; 0 means as many as `images`"""
    dose: tuple[int, ...] = ()
    """further numbers of iterations, each an experiment `dose` of the real edit (dose response)"""
    gains: tuple[float, ...] = ()
    """further gains, each an experiment `gain` of every direction with all its nulls (dose response)"""
    step_counts: tuple[int, ...] = ()
    """further numbers of edited steps, each an experiment `steps` (appendix D)"""
    sides: tuple[str, ...] = ()
    """further groups of sites, each an experiment `sides`: encoder, bottleneck, decoder; early, middle, late; all"""
    guidances: tuple[float, ...] = ()
    """further guidance scales, each an experiment `guidance` of the real edit; it is compared with the unedited image
    regenerated at the same scale"""
    second_objects: int = 0
    """images that get a second object, nearer to farther (appendix E, depth)"""
    transplants: int = 0
    """images for activation patching: the activations of another image of the same prompt replace an image's own at the
    edited sites, once in the edited steps and once in all steps; an upper bound for edits at these sites and steps"""
    frames: int = 0
    """positions of the object on its way across the first image, for the animation; 0 makes none"""
    rows: int = 32
    """largest sampling batch; a smaller one needs less memory and changes the last bits"""
    keep_images: int = 4
    """images whose edited pictures are kept, in order of sample number"""

    def __post_init__(self) -> None:
        counts = ("images", "ablation_images", "second_objects", "transplants", "frames", "keep_images")
        for name, low in (("moves", 1), ("rows", 1), *((name, 0) for name in (*counts, "seed"))):
            if getattr(self, name) < low:
                raise ValueError(f"interventions.{name}={getattr(self, name)}: must be {low} or more")
        if not self.directions:
            raise ValueError("interventions.directions is empty; give weights, pattern or mean_difference")
        for task in self.tasks:
            _check_choice("tasks", task, TASKS)
            for direction in self.directions:
                self.spec(task, direction)
        for control in self.controls:
            _check_choice("controls", control, COMPARISONS)
        for name in ("guidances", "gains"):
            for value in getattr(self, name):
                if not 0 < value < math.inf:
                    raise ValueError(f"interventions.{name}={value}: must be a positive number")
        if self.guidance is not None and not 0 <= self.guidance < math.inf:
            raise ValueError(f"interventions.guidance={self.guidance}: must be 0 or more")
        if min(self.dose, default=0) < 0:
            raise ValueError(f"interventions.dose={min(self.dose)}: must be 0 or more")
        for count in self.step_counts:
            if count < 1:
                raise ValueError(f"interventions.step_counts={count}: must be 1 or more")
        for side in self.sides:
            _check_choice("sides", side, (*SIDES, "all"))
        _check_choice("move_rule", self.move_rule, MOVE_RULES)

    def spec(self, task: str, direction: str = WEIGHTS) -> EditSpec:
        """The main edit of a task along a direction."""
        sites, steps = getattr(self, f"{task}_sites"), getattr(self, f"{task}_steps")
        spec = EditSpec(task, tuple(sites), tuple(steps), self.iterations, self.lr, self.lr_units, self.depth_span)
        if direction == WEIGHTS:
            return spec
        scale = self.depth_scale if task == "depth" and self.depth_scale is not None else self.scale
        return replace(spec, direction=direction, scale=scale, gain=getattr(self, f"{task}_gain"))

    def experiments(self, task: str, total: int) -> tuple[tuple[str, EditSpec, tuple[str, ...]], ...]:
        """(experiment, edit, comparisons) of a task, direction by direction; activation patching comes last.

        total: denoising steps of a sample. Of a direction, the main experiment comes first, then ablations, without
        those equal to the main edit.
        """
        found = [entry for direction in self.directions for entry in self._of_direction(task, direction)]
        if self.transplants:
            main = self.spec(task)
            all_steps = replace(main, steps=tuple(range(1, total + 1)))
            found += [(PATCHING, spec, ()) for spec in dict.fromkeys((main, all_steps))]
        return tuple(found)

    def _of_direction(self, task: str, direction: str) -> list[tuple[str, EditSpec, tuple[str, ...]]]:
        main = self.spec(task, direction)
        nulls = tuple(name for name in self.controls if name in NULLS)
        found = [(MAIN, main, tuple(self.controls))]
        if direction == WEIGHTS:
            found += [("dose", replace(main, iterations=n), ()) for n in self.dose]
        found += [("steps", replace(main, steps=tuple(range(1, n + 1))), ()) for n in self.step_counts]
        found += [("sides", replace(main, sites=(side,)), ()) for side in self.sides]
        # the paper's edit has the gain 1 in units of its own reading
        found += [(GAIN, replace(main, gain=gain), nulls) for gain in self.gains]
        found = [entry for i, entry in enumerate(found) if i == 0 or entry[1] != main]
        variations = tuple(name for name in self.controls if name in VARIATIONS)
        if task == "depth" and self.second_objects:
            found.append((SECOND_OBJECT, main, variations))
        if self.frames:
            found.append((ANIMATION, main, variations))
        return found

    def scales(self, sampling: float | None = None) -> tuple[float, ...]:
        """The further guidance scales, without that of the main edit (`sampling` unless `guidance` is set)."""
        main = sampling if self.guidance is None else self.guidance
        return tuple(scale for scale in dict.fromkeys(self.guidances) if scale != main)

    def images_of(self, experiment: str, available: int) -> int:
        """How many of the available test images an experiment edits."""
        main = min(self.images or available, available)
        if experiment == MAIN:
            return main
        counts = {SECOND_OBJECT: self.second_objects, ANIMATION: 1, PATCHING: self.transplants}
        return min(counts.get(experiment, self.ablation_images or main), main)


def choose_sites(
    sites: Sequence[SiteSpec],
    names: Sequence[str],
    key: str = "interventions.*_sites",
    kinds: Sequence[str] = (ATTENTION,),
) -> tuple[SiteSpec, ...]:
    """The sites with the given names, of the given kinds or in the given groups, in order of execution.

    sites: all that sampling can record. kinds: those that groups and `all` consist of. Raises ValueError, naming the
    setting `key`, for unknown names.
    """
    grouped = [site for site in sites if site.family in kinds]
    in_groups = {site.name for site in grouped if ALL in names or site.side in SIDES and site.side in names}
    known = list(dict.fromkeys(site.side for site in grouped))
    for name in names:
        if name in SIDES and name not in known:
            raise ValueError(f"{key}: this model has no {name} sites; its groups are {', '.join(known)}, all")
    return choose(sites, [*(name for name in names if name not in (*SIDES, ALL)), *in_groups], key)


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"interventions.{name}={value!r}: unknown; use {', '.join(allowed)}")
