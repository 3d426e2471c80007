"""The configuration of a run: composed of its owners' parts, read, checked and hashed here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from interventions.config import InterventionConfig
from probing.dataset.curation import CurationConfig
from probing.dataset.prompts import PromptConfig
from probing.diffusion.model import ModelConfig
from probing.diffusion.variants import OTHER_SEED, VARIANTS, is_plain, kind, own_seed
from probing.labelling.registry import LabelConfig
from probing.probes.config import ProbeConfig
from probing.probes.controls import CONTROLS
from probing.probes.tasks import TASKS
from storage.codec import CODECS
from sweeps.config.experiments import ExperimentConfig

TRIAL_AXES = ("variant", "block", "site", "step", "task")
STEPS = 15
"""denoising steps of the experiment"""


@dataclass(frozen=True)
class SamplingConfig:
    """How samples are made and what is recorded of them."""

    guidance: float = 7.5
    """classifier-free guidance scale; 1 or less runs the conditional half alone"""
    shard: int = 8
    """samples that go through the UNet together: unit of work, of writing and of retry"""
    variants: list[str] = field(default_factory=lambda: ["trained", "random"])
    """copies of the network: trained, random (permuted weights), reinit, random_forced; random@101 beside random is
    the same with another seed; same_prompt_other_seed: the trained network from other noise (what the text gives)"""
    sites: list[str] = field(default_factory=lambda: ["all"])
    """names of the sites to record, or all"""
    threads: int = 1
    """CPU threads of one sampling worker; part of the hash because it changes the last bits"""
    codec: str = "none"
    """compressor of the activations"""
    retries: int = 2
    """how often a failed shard is tried again"""
    preview: bool = False
    """raw prompts: images first, without recording; only samples that curation keeps are recorded"""

    def __post_init__(self) -> None:
        if self.shard < 1:
            raise ValueError(f"sampling.shard={self.shard}: must be 1 or more")
        if self.threads < 1:
            raise ValueError(f"sampling.threads={self.threads}: must be 1 or more")
        for name in self.variants:
            _check_variant(name, self.variants)
        if "trained" not in self.variants:
            raise ValueError("sampling.variants: `trained` is needed, its images give the labels")
        _known("sampling.codec", self.codec, tuple(CODECS))


@dataclass(frozen=True)
class SweepConfig:
    """Which probes are fitted, and how they are packed into trials."""

    steps: list[int] = field(default_factory=lambda: list(range(1, STEPS + 1)))
    """denoising steps, 1 to 15"""
    tasks: list[str] = field(default_factory=lambda: ["saliency", "depth"])
    """what the probes read"""
    controls: list[str] = field(default_factory=lambda: ["none"])
    """probe controls: none, shuffled, other_image, position, position_activation, surface_point, surface,
    surface_rgb (patches of the decoded clean estimate)"""
    control_sites: list[str] = field(default_factory=list)
    """sites that the controls other than none are fitted at; empty means all"""
    surface_rgb_steps: list[int] = field(default_factory=list)
    """steps that surface_rgb is fitted at; empty means all. Decoding is most of its cost"""
    seeds: list[int] = field(default_factory=lambda: [0])
    """seeds of start and order; the report shows the lowest, 0 is the protocol's, and the spread over all"""
    trial_axes: list[str] = field(default_factory=lambda: ["variant", "block"])
    """axes that get a trial of their own: [variant, block] makes 14 trials, all four 960"""
    experiment: str = "grid"
    """name under which the rows are kept"""

    def __post_init__(self) -> None:
        for name in ("steps", "surface_rgb_steps"):
            for step in getattr(self, name):
                if not 1 <= step <= STEPS:
                    raise ValueError(f"sweep.{name}={step}: steps are 1 to {STEPS}")
        for axis in self.trial_axes:
            _known("sweep.trial_axes", axis, TRIAL_AXES)
        for task in self.tasks:
            _known("sweep.tasks", task, tuple(TASKS))
        for control in self.controls:
            if control == OTHER_SEED:
                raise ValueError(f"sweep.controls={control!r}: it is sampled; add it to sampling.variants")
            _known("sweep.controls", control, CONTROLS)
        for name in ("steps", "tasks", "controls", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"sweep.{name} is empty; give at least one")


@dataclass(frozen=True)
class RayConfig:
    """Where the work runs. Nothing here changes a result."""

    address: str = "local"
    """local (a private Ray), auto or HOST:PORT (a cluster), none (this process, without Ray)"""
    num_cpus: int = 0
    """CPUs of the private Ray; 0 means the machine's"""
    sampling_actors: int = 0
    """sampling workers; 0 means as many as fit, on a cluster also those that wait for it to grow"""
    sampling_gpus: float = 0.0
    """GPUs, or a fraction of one, of each sampling worker"""
    label_gpus: float = 0.0
    """GPUs of each labelling worker"""
    probe_gpus: float = 0.0
    """GPUs of each probe trial"""


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
        _known("tracking.mode", self.mode, ("offline", "online", "disabled"))
        _known("tracking.runs", self.runs, ("site", "cell"))


@dataclass(frozen=True)
class Config:
    """Everything that a run needs to know."""

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
        seed = self.model.random_seed
        for name in self.sampling.variants:
            if not is_plain(name) and own_seed(name, seed) == seed:
                raise ValueError(f"sampling.variants={name!r}: the same as {kind(name)}; model.random_seed is {seed}")


def _check_variant(name: str, listed: Sequence[str]) -> None:
    _known("sampling.variants", kind(name), VARIANTS)
    try:
        own_seed(name, 0)
    except ValueError as error:
        raise ValueError(f"sampling.variants={error}") from None
    if kind(name) not in listed:
        raise ValueError(f"sampling.variants={name!r}: add {kind(name)}, which the report leads with, beside it")


def _known(where: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        near = get_close_matches(value, allowed, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"use {', '.join(allowed)}"
        raise ValueError(f"{where}={value!r}: unknown; {hint}")


def presets() -> dict[str, Path]:
    """Name to file of the presets that ship with the package."""
    folder = Path(str(files("sweeps.config") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load(preset: str, overrides: Sequence[str]) -> Config:
    """Defaults, then a preset or file, then `key=value` pairs, checked.

    Raises ValueError with one line naming key, value and cure.
    """
    base = OmegaConf.create(to_dict(Config()))
    given = OmegaConf.merge(_read(preset), _pairs(overrides))
    _refuse_unknown(base, given, "")
    try:
        merged = OmegaConf.merge(base, given)
        made = build(container(merged, "configuration", resolve=True))
    except OmegaConfBaseException as error:
        raise ValueError(f"configuration: {str(error).splitlines()[0]}") from error
    _check_selection(made)
    return made


def _check_selection(config: Config) -> None:
    """Refuses to select epochs by validation images that there will not be.

    Here and not in the parts, so that a run that was begun with such settings can still be looked at.
    """
    if config.probe.selection != "val":
        return
    if config.prompts.test:
        why = f"prompts.test={config.prompts.test} makes a split of two files without any"
    elif config.curation.val <= 0:
        why = f"curation.val={config.curation.val:g} leaves none"
    else:
        return
    raise ValueError(f"probe.selection=val: needs validation images, and {why}; set probe.selection=last")


def container(found: Any, where: str, resolve: bool) -> dict[str, Any]:
    """Plain dictionaries and lists of what OmegaConf read. Raises ValueError where it holds no keys."""
    values = OmegaConf.to_container(found, resolve=resolve)
    if not isinstance(values, dict):
        raise ValueError(f"{where} holds no keys; write `key: value` lines")
    return {str(key): value for key, value in values.items()}


def _read(preset: str) -> Any:
    known = presets()
    path = known.get(preset, Path(preset))
    if preset not in known and not path.is_file():
        near = get_close_matches(preset, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"presets: {', '.join(known)}"
        raise ValueError(f"preset {preset!r}: no such preset or file; {hint}")
    try:
        found = OmegaConf.load(path)
    except Exception as error:  # the YAML reader raises several kinds
        raise ValueError(f"{path}: not readable YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(found, DictConfig):
        raise ValueError(f"{path}: holds no keys; write `key: value` lines")
    base = found.pop("preset", None)
    return OmegaConf.merge(_read(base), found) if base else found


def _pairs(overrides: Sequence[str]) -> Any:
    for text in overrides:
        if "=" not in text or text.startswith("="):
            raise ValueError(f"argument {text!r}: write key=value, such as sampling.shard=16")
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except Exception as error:
        raise ValueError(f"arguments: {str(error).splitlines()[0]}") from error


def _refuse_unknown(base: Any, given: Any, prefix: str) -> None:
    for key in given:
        path = f"{prefix}{key}"
        if key not in base:
            near = get_close_matches(str(key), [str(k) for k in base], 1)
            names = ", ".join(f"{prefix}{k}" for k in base)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"keys: {names}"
            raise ValueError(f"{path}: unknown key; {hint}")
        inner, value = base[key], given[key]
        if OmegaConf.is_dict(inner):
            if not OmegaConf.is_dict(value):
                raise ValueError(f"{path}={value}: a group of keys; set one of them, {path}.KEY=VALUE")
            _refuse_unknown(inner, value, f"{path}.")


def build(values: Mapping[str, Any]) -> Config:
    """A Config from nested dictionaries; each value is checked against its field's type."""
    return _make(Config, values, "")


def _make(kind: type, values: Mapping[str, Any], prefix: str) -> Any:
    arguments = {}
    for item in dataclasses.fields(kind):
        if item.name not in values:
            continue
        default = _default(item)
        value = values[item.name]
        if dataclasses.is_dataclass(default):
            arguments[item.name] = _make(type(default), value, f"{prefix}{item.name}.")
        else:
            arguments[item.name] = _checked(f"{prefix}{item.name}", str(item.type), value, default)
    return kind(**arguments)


def _default(item: dataclasses.Field) -> Any:
    if item.default is not dataclasses.MISSING:
        return item.default
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else None


def _checked(path: str, kind: str, value: Any, default: Any) -> Any:
    """The value as the field's type wants it. Raises ValueError naming key, value and type."""
    if kind.startswith(("list", "tuple")):
        value = value if isinstance(value, list | tuple) else [value]
        inner = kind[kind.index("[") + 1 : -1].split(",")[0].strip()
        found = [_scalar(path, inner, entry) for entry in value]
        return found if kind.startswith("list") else tuple(found)
    if kind.startswith("dict"):
        return value
    if "None" in kind and value is None:
        return None
    return _scalar(path, kind.split("|")[0].strip(), value)


def _scalar(path: str, kind: str, value: Any) -> Any:
    try:
        if kind == "bool":
            if not isinstance(value, bool):
                raise ValueError
            return value
        if kind == "int":
            if isinstance(value, bool) or int(value) != float(value):
                raise ValueError
            return int(value)
        if kind == "float":
            if isinstance(value, bool):
                raise ValueError
            return float(value)
        if kind == "str":
            return "" if value is None else str(value)
    except (TypeError, ValueError):
        raise ValueError(f"{path}={value!r}: needs {_KINDS[kind]}") from None
    return value


_KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain dictionaries and lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def digest(*parts: Any) -> str:
    """Short hash of plain values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


NOT_SCIENCE = {
    "model": {"device"},
    "sampling": {"retries", "preview"},
    "interventions": {
        "keep_images", "images", "tasks", "ablation_images", "dose", "step_counts", "sides", "second_objects",
        "guidances", "transplants",
    },
}  # fmt: skip
"""fields that change no result and so are in no hash: those of interventions only say how many edits there are"""


WHERE_SET = {("interventions", "probes")}
"""fields that are in a hash only where they are set, so that runs without them keep theirs"""


def science(config: Config, part: str) -> dict[str, Any]:
    """The fields of one part that results depend on."""
    values = dataclasses.asdict(getattr(config, part))
    left_out = NOT_SCIENCE.get(part, set()) | {k for k, v in values.items() if not v and (part, k) in WHERE_SET}
    return {k: v for k, v in values.items() if k not in left_out}


PREVIEW = "preview"
"""folder of a preview's own store, inside the run's output"""


def previews(config: Config) -> bool:
    """Whether samples are chosen by a preview: not where the prompts are curated already."""
    return config.sampling.preview and config.prompts.source != "scenes" and not config.prompts.test


_CHOOSING = {
    "labels": ("saliency", "saliency_weights", "threshold"),
    "curation": (
        "min_foreground",
        "max_foreground",
        "min_contrast",
        "min_saturation",
        "max_plain",
        "safety",
        "safety_weights",
    ),
}


def chosen_by(config: Config) -> dict[str, Any]:
    """The settings by which a preview chooses samples; empty where there is none."""
    if not previews(config):
        return {}
    return {part: {key: science(config, part)[key] for key in keys} for part, keys in _CHOOSING.items()}


@dataclass(frozen=True)
class Hashes:
    """A stage's hash covers its own scientific settings and the hash of the stage before."""

    sample: str
    label: str
    curate: str
    probe: str
    intervene: str


def hashes(config: Config, revision: str, decisions: str = "", previewed: str = "") -> Hashes:
    """Hashes of all stages; `revision` names the model's exact weights, `decisions` those by hand over
    recorded samples, `previewed` those over the preview's."""
    parts = [science(config, part) for part in ("model", "prompts", "sampling")]
    chosen = chosen_by(config)
    sample = digest(*parts, revision, *([chosen] if chosen else []), *([previewed] if previewed else []))
    label = digest(sample, science(config, "labels"))
    curate = digest(label, science(config, "curation"), *([decisions] if decisions else []))
    probe = digest(curate, science(config, "probe"))
    return Hashes(sample, label, curate, probe, digest(probe, science(config, "interventions")))
