"""The settings of a run: dataclasses with a docstring per field, composed of those of the lower packages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from difflib import get_close_matches

from interventions.config import InterventionConfig
from probing.dataset.curation import CurationConfig
from probing.dataset.prompts import PromptConfig
from probing.diffusion import metadata, schedules
from probing.diffusion.config import PAPER_STEPS, ModelConfig
from probing.diffusion.sites import ALL, ATTENTION
from probing.diffusion.variants import OTHER_SEED, VARIANTS, is_plain, kind, own_seed
from probing.labelling.registry import LabelConfig
from probing.probes.config import ProbeConfig
from probing.probes.controls import CONTROLS
from probing.probes.tasks import TASKS
from storage.backends.paths import CONTROL, without_slash
from storage.codec import CODECS
from sweeps.config.experiments import ExperimentConfig

TRIAL_AXES = ("variant", "block", "site", "step", "task")
GRID = "grid"
"""the main grid in the tables' column `experiment`"""
ANY = (0, math.inf)
"""the range of a number that may be anything but negative"""
LARGEST_NUMBER = 2**63 - 1
"""of whole numbers, in tables and random generators"""
LONGEST_NAME = 120
"""characters of a run's name; W&B allows 128 in a group"""
MOST_STEPS = 1000
"""of a sample"""
MOST_CPUS = 1024
"""of one machine; more would start as many processes or threads"""
PREVIEW = "preview"
"""folder of a preview's own store, inside the run's output"""


@dataclass(frozen=True)
class SamplingConfig:
    """How samples are made and what is recorded of them."""

    guidance: float = 7.5
    """guidance scale; with 1 or less only the conditional half runs; models that embed it are told it"""
    scheduler: str = schedules.LMS
    """lms (the paper's linear multistep sampler), own (that of the model's files), or a scheduler class of diffusers"""
    steps: int = PAPER_STEPS
    """denoising steps of a sample; samplers such as Heun's make more network calls, and each call counts as a step of
    the results"""
    shard: int = 8
    """samples that go through the UNet together; also the unit of work, writing and retry"""
    variants: list[str] = field(default_factory=lambda: ["trained", "random"])
    """copies of the network: trained, random (permuted weights), reinit, random_forced; random@101 besides random is
    the same with another seed; same_prompt_other_seed: the trained network from other noise (a text-only baseline)"""
    sites: list[str] = field(default_factory=lambda: ["all"])
    """sites to record: kinds (attention, cross, mlp, residual) and names of single sites, as `scenesweep sites --family
    all` lists them; all is attention"""
    recorded_steps: list[int] = field(default_factory=list)
    """steps whose activations are recorded; empty means all. Latents are kept of every step"""
    threads: int = 1
    """CPU threads of one sampling worker; part of the hash because it changes the last bits"""
    codec: str = "none"
    """compressor of the activations"""
    retries: int = 2
    """how often a failed shard is retried"""
    preview: bool = False
    """for raw prompts: sample images without recording first, then record only the samples that curation keeps"""

    def __post_init__(self) -> None:
        threads, steps = (1, MOST_CPUS), (1, MOST_STEPS)
        _check_range(self, "sampling", guidance=ANY, steps=steps, shard=(1, math.inf), threads=threads, retries=ANY)
        schedules.check_name(self.scheduler)
        for name in self.variants:
            _check_variant(name, self.variants)
        if "trained" not in self.variants:
            raise ValueError("sampling.variants: add trained, whose images are labelled")
        _one_of("sampling.codec", self.codec, tuple(CODECS))
        if self.sites == [ATTENTION]:  # the same sites, and so the same run
            object.__setattr__(self, "sites", [ALL])


@dataclass(frozen=True)
class SweepConfig:
    """Which probes are fitted, and how they are packed into trials."""

    steps: list[int] = field(default_factory=list)
    """denoising steps, from 1; -1 is the last; empty means all"""
    tasks: list[str] = field(default_factory=lambda: ["saliency", "depth"])
    """what the probes predict"""
    controls: list[str] = field(default_factory=lambda: ["none"])
    """probe controls: none, shuffled, permuted, other_image, position, position_activation, surface_point, surface,
    surface_rgb (patches of the decoded clean estimate)"""
    control_sites: list[str] = field(default_factory=list)
    """kinds or names of recorded sites at which controls other than none are fitted; empty means all"""
    surface_rgb_steps: list[int] = field(default_factory=list)
    """steps at which surface_rgb is fitted; empty means all. Decoding is most of its cost"""
    seeds: list[int] = field(default_factory=lambda: [0])
    """seeds of initial weights and sample order; the report shows the lowest seed and the spread over all"""
    trial_axes: list[str] = field(default_factory=lambda: ["variant", "block"])
    """axes that get a trial of their own: [variant, block] makes 14 trials, all four 960"""

    def __post_init__(self) -> None:
        for axis in self.trial_axes:
            _one_of("sweep.trial_axes", axis, TRIAL_AXES)
        for task in self.tasks:
            _one_of("sweep.tasks", task, tuple(TASKS))
        for control in self.controls:
            if control == OTHER_SEED:
                raise ValueError(f"sweep.controls={control!r}: not a probe control; add it to sampling.variants")
            _one_of("sweep.controls", control, CONTROLS)
        for name in ("tasks", "controls", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"sweep.{name} is empty; give at least one")
        if min(self.seeds) < 0:
            raise ValueError(f"sweep.seeds={min(self.seeds)}: must be 0 or more")


@dataclass(frozen=True)
class RayConfig:
    """Where the work runs. Nothing here changes a result."""

    address: str = "local"
    """local (a private Ray), auto or HOST:PORT (a cluster), none (this process, without Ray)"""
    num_cpus: int = 0
    """CPUs of the private Ray; 0 means all of the machine"""
    sampling_actors: int = 0
    """sampling workers; 0 means as many as fit, on a cluster also those that wait for it to grow"""
    sampling_gpus: float = 0.0
    """GPUs, or a fraction of one, of each sampling worker"""
    label_gpus: float = 0.0
    """GPUs of each labelling worker"""
    probe_gpus: float = 0.0
    """GPUs of each probe trial"""

    def __post_init__(self) -> None:
        gpus = {f"{stage}_gpus": ANY for stage in ("sampling", "label", "probe")}
        _check_range(self, "ray", num_cpus=(0, MOST_CPUS), sampling_actors=ANY, **gpus)
        if not self.address:
            raise ValueError("ray.address is empty; use local, auto, HOST:PORT or none")


@dataclass(frozen=True)
class TrackingConfig:
    """The W&B mirror."""

    mode: str = "offline"
    """offline (no account needed), online or disabled"""
    runs: str = "site"
    """one run per site (32 and a summary), or per cell (960)"""
    project: str = "scenesweep"
    """W&B project"""
    entity: str = ""
    """W&B team or user; empty is the account's default"""

    def __post_init__(self) -> None:
        _one_of("tracking.mode", self.mode, ("offline", "online", "disabled"))
        _one_of("tracking.runs", self.runs, ("site", "cell"))


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    name: str = "scenes"
    """name of the sweep; W&B's group"""
    output: str = "runs/scenes"
    """output folder or URL (s3://, gs://)"""
    model: ModelConfig = field(default_factory=ModelConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    curation: CurationConfig = field(default_factory=CurationConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    experiments: ExperimentConfig = field(default_factory=ExperimentConfig)
    interventions: InterventionConfig = field(default_factory=InterventionConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        _check_values(self, "")
        if not self.output:
            raise ValueError("output is empty; give a folder or URL, such as output=runs/mine")
        object.__setattr__(self, "output", without_slash(self.output))
        _resolve_steps(self)
        if not 0 < len(self.name) <= LONGEST_NAME:
            raise ValueError(f"name={self.name[:60]!r}: has {len(self.name)} characters; give 1 to {LONGEST_NAME}")
        seed = self.model.random_seed
        for name in self.sampling.variants:
            if not is_plain(name) and own_seed(name, seed) == seed:
                raise ValueError(f"sampling.variants={name!r}: the same as {kind(name)}; model.random_seed is {seed}")

    @property
    def total_steps(self) -> int:
        """Denoising steps of a sample as results count them: network calls."""
        return metadata.calls(self.model, self.sampling.scheduler, self.sampling.steps)


def _resolve_steps(config: Config) -> None:
    """Replace steps that count from the end, and the grid's empty list; raise ValueError for others there are not."""
    total = config.total_steps
    # of experiments and tasks that do not run, steps do not matter
    running = {"sampling": ("recorded",), "sweep": ("", "surface_rgb"), "experiments": config.experiments.names,
               "interventions": config.interventions.tasks}  # fmt: skip
    for section in running:
        group = getattr(config, section)
        found: dict[str, list[int]] = {}
        for name in (name for name in vars(group) if name == "steps" or name.endswith("_steps")):
            if name.removesuffix("steps").removesuffix("_") not in running[section]:
                continue
            for step in (steps := getattr(group, name)):
                if not 1 <= abs(step) <= total:
                    raise ValueError(f"{section}.{name}={step}: steps are 1 to {total}")
            if any(step < 0 for step in steps):
                found[name] = [step if step > 0 else total + 1 + step for step in steps]
        if section == "sweep" and not group.steps:
            found["steps"] = config.sampling.recorded_steps or list(range(1, total + 1))
        if found:
            object.__setattr__(config, section, replace(group, **found))
    recorded = config.sampling.recorded_steps
    if recorded != sorted(set(recorded)):
        raise ValueError(f"sampling.recorded_steps={recorded}: give each step once, in ascending order")
    if left := [step for step in config.sweep.steps if recorded and step not in recorded]:
        raise ValueError(f"sweep.steps={left[0]}: not in sampling.recorded_steps={recorded}")
    for count in config.interventions.step_counts:
        if count > total:
            raise ValueError(f"interventions.step_counts={count}: steps are 1 to {total}")


def _check_values(group: object, prefix: str) -> None:
    """Raise ValueError for a number or text that no setting can have, whatever its meaning."""
    for name, value in vars(group).items():
        if is_dataclass(value):
            _check_values(value, f"{prefix}{name}.")
            continue
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f"{prefix}{name}={item}: must be a finite number")
            if isinstance(item, int) and abs(item) > LARGEST_NUMBER:
                raise ValueError(f"{prefix}{name}={str(item)[:20]}...: must be below 2**63")
            if isinstance(item, str) and CONTROL.search(item):
                raise ValueError(f"{prefix}{name}={item!r}: has line breaks or other control characters")


def _check_range(group: object, prefix: str, **limits: tuple[float, float]) -> None:
    """Raise ValueError for a number of a group outside its (lowest, highest) value."""
    for name, (low, high) in limits.items():
        value = getattr(group, name)
        if not low <= value <= high:
            most = f" and at most {high:g}" if high < math.inf else ""
            raise ValueError(f"{prefix}.{name}={value}: must be {low:g} or more{most}")


def _check_variant(name: str, listed: Sequence[str]) -> None:
    _one_of("sampling.variants", kind(name), VARIANTS)
    try:
        own_seed(name, 0)
    except ValueError as error:
        raise ValueError(f"sampling.variants={error}") from None
    if kind(name) not in listed:
        raise ValueError(f"sampling.variants={name!r}: add {kind(name)}, the report's main baseline")


def _one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{key}={value!r}: unknown; {hint(value, allowed)}")


def hint(word: str, allowed: Iterable[str], prefix: str = "") -> str:
    """The end of a message on an unknown word: the closest allowed one, or all of them."""
    names = list(allowed)
    near = get_close_matches(word, names, 1)
    return f"did you mean {prefix + near[0]!r}?" if near else f"use {', '.join(prefix + name for name in names)}"


def previews(config: Config) -> bool:
    """Whether samples are chosen by a preview; prompts that are curated already need none."""
    return config.sampling.preview and config.prompts.source != "scenes" and not config.prompts.test
