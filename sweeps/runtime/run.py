"""One run: its configuration, its model's metadata, its store and the hashes of its stages."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import storage
from probing.dataset.prompts import Prompt
from probing.diffusion import metadata
from probing.diffusion.metadata import ModelInfo
from probing.diffusion.schedules import LMS
from probing.diffusion.sites import SiteSpec, recorded
from storage import CorruptFile, Layout, SiteShape, Store
from storage.keys import CONFIG, DECISIONS, LAYOUT, MANIFEST, PROMPTS, SAMPLES
from sweeps.config.hashing import Hashes, chosen_by, hashes, science
from sweeps.config.load import build, from_yaml, to_yaml
from sweeps.config.schema import PREVIEW, Config, previews

LIBRARIES = ("torch", "diffusers", "transformers", "ray", "zarr", "numcodecs", "wandb")
"""libraries whose versions results may depend on"""


@dataclass(frozen=True)
class Run:
    """A configuration together with the store that it fills."""

    config: Config
    model_info: ModelInfo
    store: Store
    hashes: Hashes

    @cached_property
    def sites(self) -> tuple[SiteSpec, ...]:
        """The recorded sites in order of execution."""
        return recorded(self.model_info.recordable, self.config.sampling.sites)


def model_info(config: Config) -> ModelInfo:
    """Return the metadata of the run's model. Raises ValueError if its configuration files cannot be read."""
    return metadata.read_model_info(config.model, metadata.config_folder(config.model))


def local_model_info(config: Config) -> ModelInfo | None:
    """Return the same if the files are on this machine, without contacting a hub; else None."""
    folder = metadata.local_config_folder(config.model)
    try:
        return None if folder is None else metadata.read_model_info(config.model, folder)
    except (ValueError, KeyError):
        return None


def site_shape(site: SiteSpec) -> SiteShape:
    """Return what a store holds of a site of the model."""
    return SiteShape(site.name, site.tokens, site.channels, module=site.module, height=site.height, width=site.width)


def layout(config: Config, model_info: ModelInfo, samples: int) -> Layout:
    """Return the arrays of a run; one that records no site (a preview) has only images and labels."""
    sites = recorded(model_info.recordable, config.sampling.sites)
    found = Layout(
        samples=samples,
        shard=config.sampling.shard,
        variants=tuple(config.sampling.variants),
        sites=tuple(map(site_shape, sites)),
        steps=config.total_steps,
        recorded_steps=tuple(config.sampling.recorded_steps),
        sigmas=_sigmas(config),
        image=model_info.image,
        latent=model_info.latent,
        codec=config.sampling.codec,
    )
    if sites:
        return found
    tasks = {"saliency": "uint8", "depth": "float16"}
    with suppress(ValueError):  # no output yet
        tasks = storage.open(config.output).layout.tasks  # earlier previews may lack depth, and stay as they are
    return replace(found, latent=(), tasks=tasks)


def _sigmas(config: Config) -> tuple[float, ...]:
    """Return the noise level of each step of the paper's sampler; see `_with_levels` for others."""
    return metadata.noise_levels(config.model, config.sampling.steps) if config.sampling.scheduler == LMS else ()


def _with_levels(arrays: Layout, config: Config) -> Layout:
    """Return a layout with the noise levels of samplers other than the paper's, which only diffusers knows.

    Only for a new store that records sites: the import takes seconds, and a store keeps the levels it has.
    """
    if config.sampling.scheduler == LMS or not arrays.sites:
        return arrays
    from probing.diffusion.sampling import noise_levels

    levels = noise_levels(config.model, config.sampling.scheduler, config.sampling.steps)
    return replace(arrays, alphas=tuple(level.alpha for level in levels), sigmas=tuple(level.sigma for level in levels))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results may depend on."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return found | {"python": platform.python_version()}


def _manifest(config: Config, model_info: ModelInfo, stages: Hashes) -> dict[str, object]:
    """Return the manifest as JSON holds it: lists in place of tuples."""
    sampling: dict[str, object] = {part: science(config, part) for part in ("model", "prompts", "sampling")}
    sampling |= chosen_by(config)
    if previewed := previewed_digest(config):
        sampling["decisions"] = previewed
    manifest = {
        "format_version": storage.FORMAT_VERSION,
        "model": {"name": config.model.name, "revision": model_info.revision},
        "sampling": sampling,
        "stages": vars(stages),
        "versions": versions(),
    }
    return json.loads(json.dumps(manifest))


def differences(old: object, new: object, path: str = "") -> list[str]:
    """Return the dotted keys whose values differ, as `key: old -> new`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({*old, *new})
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}".lstrip("."))]
    return [] if old == new else [f"{path}: {old} -> {new}"]


def _open(output: str) -> Store | None:
    try:
        return storage.open(output)
    except ValueError:
        return None


def _has_results(store: Store) -> bool:
    """Return whether an output holds a complete shard, or anything that was made of one."""
    return store.records.any() or store.holds("results/")


def _changes(store: Store, config: Config, model_info: ModelInfo, prompts: Sequence[Prompt] | None) -> list[str]:
    """Return how an output differs from what the settings would make; prompts are compared if they are known."""
    stages = hashes(config, model_info.revision, previewed=previewed_digest(config))
    try:
        old = store.document(MANIFEST)
    except (CorruptFile, FileNotFoundError):
        changed = _other_records(store, stages.sample)
    else:
        new = _manifest(config, model_info, stages)
        # the settings of sampling are sections of the configuration, whose names the keys begin with
        changed = differences(old.get("model"), new["model"], "model")
        changed += differences(old.get("sampling"), new["sampling"])
    if not changed and prompts is not None:
        changed = _changed_prompts(store, prompts)
        with suppress(CorruptFile):  # a damaged layout is written again
            store.get(LAYOUT, MANIFEST)
            changed = changed or store.layout.diff(layout(config, model_info, len(prompts)))
    return changed


def _other_records(store: Store, stage_hash: str) -> list[str]:
    """Return that shards were sampled with other settings, if so; which ones, only a readable manifest would tell."""
    records = store.records.read("shards/sample/")
    others = {getattr(record, "stage_hash", None) for _, record in records} - {None, stage_hash}
    return [f"its shards were sampled with other settings, and its {MANIFEST} can't be read"] if others else []


def _changed_prompts(store: Store, prompts: Sequence[Prompt]) -> list[str]:
    """Return the samples whose prompt, seed, split or name differs from what an output holds."""
    try:
        table, notes = store.samples().to_pydict(), store.read_json(PROMPTS, list, recorded_in=MANIFEST)
    except (ValueError, FileNotFoundError):
        return []  # damaged: written again
    if len(table["prompt"]) != len(prompts) or len(notes) != len(prompts):
        return [f"prompts: {len(table['prompt'])} -> {len(prompts)}"]
    changed = []
    names = ("prompt", "seed", "split", "name")
    for i, (prompt, text, seed, note) in enumerate(zip(prompts, table["prompt"], table["seed"], notes, strict=True)):
        was, now = (text, seed, note["split"], note["name"]), (prompt.text, prompt.seed, prompt.split, prompt.name)
        if was != now:
            place = f"sample {i}, now {prompt.place}" if prompt.place else f"sample {i}"
            changed += differences(dict(zip(names, was, strict=True)), dict(zip(names, now, strict=True)), place)
    return changed


def check_other(config: Config, model_info: ModelInfo, prompts: Sequence[Prompt] | None = None) -> None:
    """Raise ValueError if the output holds results of other sampling settings or prompts: they are never mixed.

    An output without any complete shard is no obstacle: it is begun anew.
    """
    store = _open(config.output)
    if store is None or not (changed := _changes(store, config, model_info, prompts)) or not _has_results(store):
        return
    shown = "; ".join(change[:200] for change in changed[:4])
    raise ValueError(
        f"output: {config.output} holds a run with other settings ({shown}); "
        "give output=ANOTHER, or the settings it was made with"
    )


def begin(config: Config, model_info: ModelInfo, prompts: tuple[Prompt, ...]) -> Run:
    """Create the store of a run, or open the existing one, and write its documents. Only for the lease holder.

    Raises ValueError if the output holds a run with other sampling settings.
    """
    check_other(config, model_info, prompts)
    started = _open(config.output)
    if started is not None and not _has_results(started) and _changes(started, config, model_info, prompts):
        started.erase()
        started = None
    arrays = layout(config, model_info, len(prompts))
    store = Store.create(config.output, arrays if started else _with_levels(arrays, config))
    decisions = decisions_digest(store)
    stages = hashes(config, model_info.revision, decisions, previewed_digest(config))
    manifest = _manifest(config, model_info, stages) | {"format_version": store.layout.format, "decisions": decisions}
    store.write_samples(
        {"sample": i, "prompt": p.text, "seed": p.seed, "shard": i // config.sampling.shard}
        for i, p in enumerate(prompts)
    )
    notes = [{"split": p.split, "name": p.name} | ({"cut": p.cut} if p.cut else {}) for p in prompts]
    documents = {PROMPTS: json.dumps(notes), CONFIG: to_yaml(config)}
    for path, text in documents.items():
        if not store.exists(path) or store.get(path) != text.encode():
            store.put(path, text.encode())
    store.put_document(MANIFEST, manifest, store.checksums([LAYOUT, SAMPLES, DECISIONS, *documents]))
    return Run(config, model_info, store, stages)


def reopen(config: Config, info: ModelInfo | None = None) -> Run:
    """Return the run of an existing output; its model's metadata is read unless given.

    Raises ValueError if there is no run.
    """
    store, info = storage.open(config.output), info or model_info(config)
    stages = hashes(config, info.revision, decisions_digest(store), previewed_digest(config))
    return Run(config, info, store, stages)


def decisions_digest(store: Store) -> str:
    """Return the checksum of the manual decisions that belong to a run; empty if there are none.

    Raises ValueError if they are lost or damaged, since nothing else holds what a person decided.
    """
    try:
        return hashlib.sha256(store.get(DECISIONS, recorded_in=MANIFEST)).hexdigest()[:16]
    except FileNotFoundError:
        if DECISIONS not in store.recorded(MANIFEST):
            return ""
        reason = "is missing"
    except CorruptFile as error:
        reason = error.detail
    raise ValueError(
        f"{store.url}/{DECISIONS}: {reason}; give the manual decisions again: `scenesweep curate --decisions FILE`"
    )


def replace_decisions(store: Store, data: bytes | None) -> None:
    """Write the manual decisions of a run, or delete them; the manifest records them until the next run's `begin`."""
    if data is not None:
        store.put(DECISIONS, data)
    elif store.exists(DECISIONS):
        store.delete(DECISIONS)
    with suppress(CorruptFile, FileNotFoundError):
        others = {path: one for path, one in store.recorded(MANIFEST).items() if path != DECISIONS}
        store.put_document(MANIFEST, store.document(MANIFEST), others | store.checksums([DECISIONS]))


def previewed_digest(config: Config) -> str:
    """Return the checksum of the manual decisions over a run's preview; empty if there is no preview."""
    if not previews(config):
        return ""
    try:
        store = storage.open(f"{config.output}/{PREVIEW}")
    except ValueError:
        return ""
    return decisions_digest(store)


def stored_config(output: str) -> Config:
    """Return the configuration that an output was made with. Raises ValueError if there is none."""
    store = storage.open(output)
    if not store.exists(CONFIG):
        raise ValueError(f"{output}: holds no {CONFIG}, so no run; give the output of a run")
    return build({**from_yaml(store.get(CONFIG, MANIFEST), f"{output}/{CONFIG}"), "output": output})
