"""The content of every file that a run is made of: recorded in the output, and compared before a run goes on.

Stage hashes name files by their paths. This record keeps the digest of each file beside the hash of the stage that
reads it, so that a file that was changed in place is found. Of a labeller that is a package it keeps the version.
"""

from __future__ import annotations

from pathlib import Path

from probing import contents
from probing.dataset.prompts import files_of
from probing.diffusion import metadata
from probing.diffusion.config import SCENES
from probing.labelling import registry
from storage import Store
from storage.backends import local_path
from storage.keys import INPUTS as FILE
from storage.tables import TablePart
from sweeps.config.schema import Config
from sweeps.runtime.layout import TRAINED
from sweeps.runtime.run import Run

Inputs = dict[str, dict[str, str]]
"""stage -> file or package, with the setting that names it -> SHA-256 or version"""


def files(config: Config, stage: str) -> dict[str, Path]:
    """The files that a stage reads and that are on this machine, by `SETTING: FILE`."""
    found: dict[str, Path] = {}
    if stage == "sample":
        found |= {f"model.name: {name}": path for name, path in metadata.model_files(config.model).items()}
        for key in ("source", "test"):
            source = getattr(config.prompts, key)
            if source and source != SCENES:
                found |= {f"prompts.{key}: {path}": path for path in files_of(source)}
    if stage == "label":
        for task in ("saliency", "depth"):
            if getattr(config.labels, task) == SCENES:
                found[f"labels.{task}: labeller.safetensors"] = metadata.shipped_weights() / "labeller.safetensors"
            found |= _named(f"labels.{task}_weights", getattr(config.labels, f"{task}_weights"))
    if stage == "curate" and config.curation.safety:
        found |= _named("curation.safety_weights", config.curation.safety_weights)
    if stage == "intervene" and config.interventions.tasks:
        found |= _named("interventions.probes", config.interventions.probes)
    return found


def _named(key: str, value: str) -> dict[str, Path]:
    """The files of a setting that names a file or a directory; none for a hub id or if there is no such file."""
    if not value or not (path := local_path(value, key)).exists():
        return {}
    return {f"{key}: {value if path.is_file() else f'{value}/{name}'}": f for name, f in contents.tree(path).items()}


STAGES = ("sample", "label", "curate", "intervene")
"""stages that read files, by the names of their hashes"""


def _digests(config: Config, stage: str) -> dict[str, str]:
    try:
        found = contents.digests(files(config, stage))
    except OSError as error:
        raise ValueError(f"{error.filename}: can't be read: {error.strerror}") from error
    return found | (registry.packages(config.labels) if stage == "label" else {})


def recorded(store: Store) -> dict[str, Inputs]:
    """What an output was made of so far: stage -> hash -> digests; empty for an output of an earlier version."""
    if not store.exists(FILE):
        return {}
    try:
        found = store.document(FILE)
        return {str(stage): {str(key): dict(files) for key, files in hashes.items()} for stage, hashes in found.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{store.url}/{FILE}: damaged: {error}; delete it to accept the files as they are") from error


def check(run: Run) -> None:
    """Raise ValueError that names a file whose content is not what the output's results were made of."""
    before = recorded(run.store)
    for stage in STAGES:
        old = before.get(stage, {}).get(getattr(run.hashes, stage))
        if old is not None and _has_results(run, stage):
            _compare(run.config.output, old, _digests(run.config, stage), required=stage == "sample")


def verify(store: Store, config: Config, stage: str) -> None:
    """Raise ValueError if this machine's files of a stage are not those that the run recorded when it began.

    For workers, which may run on another machine than the planner.
    """
    known = list(recorded(store).get(stage, {}).values())
    if known and (found := _digests(config, stage)) not in known:
        _compare(config.output, known[-1], found, required=True)


def _compare(output: str, old: dict[str, str], new: dict[str, str], required: bool) -> None:
    """Compare digests; a file that is gone matters only if it is `required`.

    Versions of packages are compared where both are known: the planner may lack a package that the workers have.
    """
    for name in sorted({*old, *new}):
        was, now, package = old.get(name), new.get(name), ": package " in name
        if was == now or (now is None and not required) or (package and None in (was, now)):
            continue
        if was is None:
            change = "is new"
        else:
            kind = "" if package else "sha256 "
            change = "is gone" if now is None else f"has changed ({kind}{was[:12]} -> {now[:12]})"
        raise ValueError(
            f"{name} {change} since {output} was made; put it back as it was, or give output=ANOTHER for a new run"
        )


def record(run: Run) -> None:
    """Record what the run reads from now on; what results were made of stays as it is.

    Raises ValueError if a file cannot be read.
    """
    before = recorded(run.store)
    after = {stage: dict(hashes) for stage, hashes in before.items()}
    for stage in STAGES:
        stage_hash = getattr(run.hashes, stage)
        made = stage_hash in after.get(stage, {}) and _has_results(run, stage)
        if not made and (found := _digests(run.config, stage)):
            after.setdefault(stage, {})[stage_hash] = found
    if after != before:
        run.store.put_document(FILE, after)


def _has_results(run: Run, stage: str) -> bool:
    """Whether the output holds anything that a stage made with the present settings."""
    store, stage_hash = run.store, getattr(run.hashes, stage)
    if stage == "sample":
        return any(store.any_completed(stage, variant) for variant in store.layout.variants)
    if stage == "label":
        return store.any_completed(stage, TRAINED, stage_hash=stage_hash)
    if stage == "curate":
        return store.holds("curation/safety/")
    parts = store.parts("interventions").values()  # of which some may be damaged
    return any(stage_hash in part.stage_hashes for part in parts if isinstance(part, TablePart))
