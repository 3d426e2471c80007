"""What can be known to be wrong before a run starts: one list of checks, for `plan` and all verbs that run stages.

Nothing is written before all of them have passed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from interventions.config import choose_sites
from interventions.counterfactual import move_range
from interventions.plan import batches
from probing.dataset import tokens
from probing.dataset.curation import split_by_prompt
from probing.dataset.prompts import Prompt, Reading, check_grammar, files_of, read
from probing.diffusion import metadata, published
from probing.diffusion.config import EMBEDDED, SCENES, ModelConfig
from probing.diffusion.devices import device_name
from probing.diffusion.sites import choose, recorded, whole_kinds
from probing.labelling import registry
from probing.probes.controls import SURFACE_CONTROLS
from storage.backends import local_folder, local_path
from sweeps.config.schema import GRID, Config, previews
from sweeps.planning import requirements
from sweeps.runtime import experiments, inputs, side_store
from sweeps.runtime.grid import finished
from sweeps.runtime.layout import TRAINED
from sweeps.runtime.run import ModelInfo, Run, check_other, model_info, reopen
from sweeps.stages import curate, label, preview
from sweeps.stages.experiments import renders, transfer

PUBLISHED_PROMPTS = {"train_split_prompts_seeds.csv": 246, "test_split_prompts_seeds.csv": 371}
"""number of prompts in the files that the paper's authors publish"""
SCENES_IMAGE = (128, 128)
"""size of the images that the scenes labeller was trained on; another one has other positions"""
AFTER_LABELS = ("curate", "probe", "experiments", "intervene")
"""verbs that need the split"""


@dataclass(frozen=True)
class Start:
    """A run that has not begun, and what its inputs contain."""

    config: Config
    verbs: Sequence[str]
    """what will be run"""
    model_info: ModelInfo
    reading: Reading | None
    """the prompts; None for a plan that knows their number alone: those of the grammar take long to draw"""
    load: bool
    """whether weights of labellers are loaded once, which takes seconds"""
    readable: bool = True
    """whether the output can be read from here; if not, a plan does not look at it"""
    notes: list[str] = field(default_factory=list)
    """lines for the user"""
    unread: Sequence[str] = ()
    """without reading: the split of each prompt, empty where the run makes the split"""

    @property
    def splits(self) -> Sequence[str]:
        """The split of each prompt as its file gives it."""
        return self.unread if self.reading is None else [prompt.split for prompt in self.reading.prompts]

    @property
    def samples(self) -> int:
        """Number of prompts, those of a preview included."""
        return len(self.splits)

    @cached_property
    def begun(self) -> Run | None:
        """The run that the output holds already, so that all checks read its records once; None if there is none."""
        if not self.readable or side_store.open_if_present(self.config.output) is None:
            return None
        return reopen(self.config, self.model_info)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts. Must not be used where they were not read."""
        assert self.reading is not None
        return self.reading.prompts


def check(config: Config, verbs: Sequence[str], plan: bool = False) -> Start:
    """Check everything that can be wrong with a run's settings and inputs.

    plan: whether nothing is going to run; then weights that are not here yet are no error.
    Raises ValueError with one line for the first problem.
    """
    _check_settings(config)
    notes: list[str] = []
    stand_in = _published(config, notes) if plan else None
    config = config if stand_in is None else replace(config, model=stand_in)
    metadata.check(config.model, config.sampling.scheduler, config.sampling.steps, partial=plan)
    splits = _splits_for_plan(config, notes) if plan else None
    reading = _read(config, tokenised=stand_in is None) if splits is None else None
    readable = not plan or stand_in is None and _readable(config, notes)
    start = Start(config, verbs, model_info(config), reading, not plan, readable, notes, splits or ())
    if reading is not None:
        notes += tokens.notes(reading.prompts)
    for one in CHECKS:
        one(start)
    return start


def _readable(config: Config, notes: list[str]) -> bool:
    try:
        side_store.open_if_present(config.output)
    except Exception as error:  # readers of object stores raise many kinds
        notes.append(f"output: {config.output} can't be read from here ({type(error).__name__}), and is not looked at")
        return False
    return True


def _published(config: Config, notes: list[str]) -> ModelConfig | None:
    """The published configuration in the place of a hub id whose files are not here, so that no network is needed."""
    folder = published.folder(config.model.name)
    if folder is None or metadata.local_config_folder(config.model) is not None:
        return None
    needed = "" if config.model.revision else "; a run needs model.revision, the commit to load"
    notes.append(
        f"model.name: {config.model.name} is not on this machine; planned with its published configuration{needed}"
    )
    return replace(config.model, name=str(folder))


def _read(config: Config, tokenised: bool = True) -> Reading:
    reading = read(config.prompts)
    if config.model.name in EMBEDDED:
        tokens.check_words(reading.prompts)
    if not tokenised:
        return reading
    return replace(reading, prompts=tokens.with_cuts(reading.prompts, metadata.config_folder(config.model)))


def _splits_for_plan(config: Config, notes: list[str]) -> list[str] | None:
    """The split of each prompt, where a plan can do without reading them; else None.

    It can with prompts of the grammar, and with files that are not here whose number of prompts is known: given by
    prompts.count, or that of the authors' files. The split is empty where the run makes it.
    """
    prompts = config.prompts
    if prompts.source == SCENES and not prompts.test:
        check_grammar(prompts)
        return [""] * prompts.count
    files = [prompts.source, *filter(None, [prompts.test])]
    missing = [name for name in files if name != SCENES and not _is_there(name)]
    published_counts = [PUBLISHED_PROMPTS.get(Path(name).name, 0) for name in files]
    if not missing or not (all(published_counts) if prompts.test else prompts.count):
        return None  # reading them says what is missing
    notes.append(f"prompts: no file {' and '.join(missing)} here; a run needs it")
    if not prompts.test:
        return [""] * prompts.count
    train, test = (min(count, prompts.count or count) for count in published_counts)
    return ["train"] * train + ["test"] * test


def _is_there(source: str) -> bool:
    try:
        files_of(source)
    except ValueError:
        return False
    return True


def _check_settings(config: Config) -> None:
    """What follows from the settings alone. Not in their classes, so that finished runs can still be read."""
    if not config.sampling.sites:
        raise ValueError("sampling.sites is empty; give kinds or names of sites, such as attention")
    if on_this_machine(config):
        device_name(config.model.device)
    _check_writable(config)
    renders.check(config)


def on_this_machine(config: Config) -> bool:
    """Return whether the workers run here, not on a cluster's nodes."""
    return config.ray.address in ("none", "local")


def _check_writable(config: Config) -> None:
    folder = local_folder(config.output)
    if folder is None:
        return
    parent = folder
    while not (parent.exists() or parent == parent.parent):
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"output: cannot write to {parent}; give output=ANOTHER folder")


def _check_output(start: Start) -> None:
    """The output holds no results of other settings or of files that have changed since."""
    if not start.readable:
        return
    prompts = start.prompts if start.reading is not None else None
    # with a preview, the prompts of the main output are those that it keeps
    check_other(start.config, start.model_info, None if previews(start.config) else prompts)
    if start.begun:
        inputs.check(start.begun)
    if previews(start.config):
        config = preview.settings(start.config)
        check_other(config, start.model_info, prompts)
        if side_store.open_if_present(config.output):
            inputs.check(reopen(config, start.model_info))


def _check_split(start: Start) -> None:
    """There are prompts enough for the split, and for what needs a part of it."""
    config = start.config
    if not set(AFTER_LABELS) & set(start.verbs):
        return
    if config.prompts.test:
        parts = list(start.splits)
        start.notes.append("split: given by the two files; curation.train, val and test do not apply")
    else:
        names = [str(i) for i in range(start.samples)] if start.reading is None else [p.text for p in start.prompts]
        parts = split_by_prompt(names, config.curation)
    if config.probe.selection == "val" and "val" not in parts:
        raise ValueError(
            f"probe.selection=val: curation.val={config.curation.val:g} leaves no validation images of "
            f"{len(set(parts))} prompts; raise it, or set probe.selection=last"
        )
    if "other_image" in config.sweep.controls and parts.count("train") < 2:
        raise ValueError("sweep.controls=other_image: needs 2 training images or more; raise curation.train")


def _check_labellers(start: Start) -> None:
    """The labellers are there, unless all labels are."""
    config = start.config
    if "label" not in start.verbs:
        return
    if start.begun and label.complete(start.begun):
        return
    for task in ("saliency", "depth"):
        if getattr(config.labels, task) == SCENES and start.model_info.image != SCENES_IMAGE:
            height, width = start.model_info.image
            raise ValueError(
                f"labels.{task}=scenes: labels images of {SCENES_IMAGE[0]} x {SCENES_IMAGE[1]}, the model's have "
                f"{height} x {width}; use another labeller"
            )
    start.notes.extend(registry.check(config.labels, load=start.load, installed=on_this_machine(config)))


def _check_earlier_stages(start: Start) -> None:
    """What a single verb reads was made with these settings, by the stages before it."""
    config, verbs = start.config, set(start.verbs)
    if "sample" in verbs:
        return
    run = start.begun
    if run is None:
        raise ValueError(f"{config.output}: nothing is sampled yet; run `scenesweep sample` first")
    if "label" in verbs:
        if not run.store.any_completed("sample", TRAINED):
            raise ValueError(f"{config.output}: nothing is sampled yet; run `scenesweep sample` first")
    elif "curate" in verbs:
        if not label.complete(run):
            raise ValueError(
                f"{config.output}: not every shard is sampled and labelled with these settings; "
                "run `scenesweep sample` and `scenesweep label` first"
            )
    elif verbs & set(AFTER_LABELS):
        curate.kept(run)
        if "probe" not in verbs:
            _check_fitted(run, verbs)


def _check_fitted(run: Run, verbs: set[str]) -> None:
    """The probes that edits and transfer read are fitted with these settings."""
    config = run.config
    needed = {p for _, p in requirements.needed(config, run.model_info.recordable)} if "intervene" in verbs else set()
    if config.interventions.probes:
        needed = set(requirements.not_published(config, dict.fromkeys(needed, "")))
    if "experiments" in verbs:
        needed |= set(transfer.read_probes(run))
    missing = needed - finished(run.store, GRID, run.hashes.probe) if needed else set()
    if missing:
        first = min(missing)
        raise ValueError(
            f"{config.output}: {len(missing)} probes are not fitted with these settings yet, the first of variant "
            f"{first.variant}, control {first.control}, task {first.task} at {first.site}, step {first.step}; "
            "run `scenesweep probe` first"
        )


def _check_safety_checker(start: Start) -> None:
    """The safety checker is there, if curation uses one."""
    curation = start.config.curation
    if curation.safety and "curate" in start.verbs:
        weights = curation.safety_weights or registry.SAFETY_CHECKER
        if registry.is_hub_id(weights):
            registry.check_pinned(weights, "curation.safety_weights")
            return
        folder = local_path(weights, "curation.safety_weights")
        inside = folder / "safety_checker" if (folder / "safety_checker").is_dir() else folder
        missing = folder.is_dir() and not (inside / "config.json").exists()
        if missing or not folder.exists():
            raise ValueError(
                f"curation.safety_weights: {weights}: no safety checker there; give its directory, a "
                "pipeline's directory that has one, or a hub id"
            )


def _check_experiments(start: Start) -> None:
    """The experiments' sites exist, and what they read is recorded."""
    config, info = start.config, start.model_info
    present = recorded(info.recordable, config.sampling.sites)
    names = config.sweep.control_sites
    controls = choose(info.recordable, names, "sweep.control_sites")
    chosen = {"sweep.control_sites": not names or bool(set(controls) & set(present))}
    for name in config.experiments.names:
        if hasattr(config.experiments, f"{name}_sites"):
            chosen[f"experiments.{name}_sites"] = bool(experiments.sites(config, info, name))
        if name in info.families and not info.families[name]:
            raise ValueError(f"experiments.names={name}: this model has no such site; leave it out")
    for key in (key for key, some in chosen.items() if present and not some):
        start.notes.append(f"{key}: none of its sites is in sampling.sites, so nothing is done there")
    if "experiments" in start.verbs and "transfer" in config.experiments.names and config.probe.hidden:
        raise ValueError(
            f"probe.hidden={config.probe.hidden}: a hidden layer has no single direction, which transfer needs; "
            "set probe.hidden=0, or leave transfer out of experiments.names"
        )
    surface = sorted(set(config.sweep.controls) & set(SURFACE_CONTROLS))
    store = side_store.open_if_present(config.output) if surface and start.readable else None
    if store is not None and not store.layout.latent:
        raise ValueError(
            f"sweep.controls={surface[0]}: {config.output} holds no latents, which it reads; leave it out, or sample "
            "into another output"
        )


def _check_interventions(start: Start) -> None:
    """The probes that edits need are planned or fitted, and the edits fit their batches."""
    if "intervene" not in start.verbs:
        return
    settings = start.config.interventions
    for task in settings.tasks:
        names, key = settings.spec(task).sites, f"interventions.{task}_sites"
        choose_sites(start.model_info.recordable, names, key, whole_kinds(start.config.sampling.sites))
        for _, _, controls in settings.experiments(task, start.config.total_steps):
            batches(1, controls, settings.rows)
    height, width = start.model_info.image
    most = len(move_range(height)) * len(move_range(width))
    if settings.tasks and settings.moves > most:
        raise ValueError(f"interventions.moves={settings.moves}: an image has {most} different moves")
    requirements.check(start.config, start.model_info)


CHECKS: tuple[Callable[[Start], None], ...] = (
    _check_output,
    _check_split,
    _check_labellers,
    _check_safety_checker,
    _check_experiments,
    _check_interventions,
    _check_earlier_stages,
)
"""in order; the first problem is the one that is told"""
