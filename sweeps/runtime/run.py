"""One run: its configuration, its model's sites, its store and the hashes of its stages."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import storage
from probing.dataset.prompts import Prompt
from probing.diffusion import metadata
from probing.diffusion import sites as site_rules
from probing.diffusion.metadata import ModelInfo
from probing.diffusion.sites import SiteSpec
from storage import Layout, SiteShape, Store
from sweeps.config.hashing import Hashes, chosen_by, hashes, science
from sweeps.config.load import to_dict, to_yaml
from sweeps.config.schema import PREVIEW, STEPS, Config, previews

DECISIONS = "curation/decisions.csv"
"""the decisions by hand that were applied to a run"""
LIBRARIES = ("torch", "diffusers", "transformers", "ray", "zarr", "numcodecs", "wandb")


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
        return site_rules.choose(self.model_info.sites, self.config.sampling.sites)


def model_info(config: Config) -> ModelInfo:
    """Reads the model's configuration files. Raises ValueError where there are none."""
    return metadata.read_model_info(config.model, metadata.config_folder(config.model))


def local_model_info(config: Config) -> ModelInfo | None:
    """The same where the files are on this machine and can be read, without asking a hub; else None."""
    folder = metadata.local_config_folder(config.model)
    try:
        return None if folder is None else metadata.read_model_info(config.model, folder)
    except (ValueError, KeyError):
        return None


def layout(config: Config, found: ModelInfo, samples: int) -> Layout:
    """The arrays of a run; one that records no site (a preview) holds images and labels alone."""
    sites = site_rules.choose(found.sites, config.sampling.sites)
    records: dict[str, Any] = (
        {"latent": found.latent} if sites else {"latent": (), "tasks": _preview_tasks(config.output)}
    )
    return Layout(
        samples=samples,
        shard=config.sampling.shard,
        variants=tuple(config.sampling.variants),
        sites=tuple(SiteShape(site.name, site.tokens, site.channels) for site in sites),
        steps=STEPS,
        image=found.image,
        **records,
        codec=config.sampling.codec,
    )


def _preview_tasks(output: str) -> dict[str, str]:
    """Labels of a preview: masks for the rules, and depth for the eye. One that was begun without depth stays so."""
    with suppress(ValueError):  # nothing there yet
        if "depth" not in (tasks := storage.open(output).layout.tasks):
            return dict(tasks)
    return {"saliency": "uint8", "depth": "float16"}


def versions() -> dict[str, str]:
    """Versions of the libraries that results depend on."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return found | {"python": platform.python_version()}


def _manifest(config: Config, found: ModelInfo, stages: Hashes) -> dict[str, Any]:
    return {
        "format_version": storage.FORMAT_VERSION,
        "model": {"name": config.model.name, "revision": found.revision},
        "sampling": {part: science(config, part) for part in ("model", "prompts", "sampling")}
        | chosen_by(config)
        | ({"decisions": previewed} if (previewed := previewed_digest(config)) else {}),
        "stages": vars(stages),
        "versions": versions(),
    }


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Dotted keys whose values differ, as `key: old -> new`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({*old, *new})
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}".lstrip("."))]
    return [] if old == new else [f"{path}: {old} -> {new}"]


def _refuse_other(store: Store, manifest: dict[str, Any], output: str) -> None:
    """A store whose activations come from other settings is never mixed with new ones."""
    if not store.exists("manifest.json"):
        return
    old = json.loads(store.get("manifest.json"))
    changed = differences(
        {k: old.get(k) for k in ("model", "sampling")}, {k: manifest[k] for k in ("model", "sampling")}
    )
    if changed:
        raise ValueError(
            f"output: {output} holds a run with other settings ({'; '.join(changed[:4])}); "
            "give output=ANOTHER, or the settings it was made with"
        )


def check_other(config: Config, found: ModelInfo) -> None:
    """Raises ValueError where the output holds a run with other sampling settings."""
    try:
        store = storage.open(config.output)
    except ValueError:
        return
    stages = hashes(config, found.revision, previewed=previewed_digest(config))
    plain = json.loads(json.dumps(_manifest(config, found, stages)))
    _refuse_other(store, plain, config.output)


def begin(config: Config, found: ModelInfo, prompts: tuple[Prompt, ...]) -> Run:
    """Creates the store of a run, or takes up the one that is there."""
    store = Store.create(config.output, layout(config, found, len(prompts)))
    decided = decisions_digest(store)
    stages = hashes(config, found.revision, decided, previewed_digest(config))
    manifest = json.loads(json.dumps(_manifest(config, found, stages) | {"decisions": decided}))
    if not store.exists(storage.keys.SAMPLES):
        store.write_samples(
            {"sample": i, "prompt": p.text, "seed": p.seed, "shard": i // config.sampling.shard}
            for i, p in enumerate(prompts)
        )
    told = [{"split": p.split, "name": p.name} for p in prompts]
    _put_if_new(store, "prompts.json", json.dumps(told).encode())
    _put_if_new(store, "config.yaml", to_yaml(config).encode())
    _put_if_new(store, "manifest.json", json.dumps(manifest, indent=1, sort_keys=True).encode())
    return Run(config, found, store, stages)


def _put_if_new(store: Store, path: str, data: bytes) -> None:
    if not store.exists(path) or store.get(path) != data:
        store.put(path, data)


def reopen(config: Config, found: ModelInfo) -> Run:
    """The run of an existing output. Raises ValueError where there is none."""
    store = storage.open(config.output)
    stages = hashes(config, found.revision, decisions_digest(store), previewed_digest(config))
    return Run(config, found, store, stages)


def decisions_digest(store: Store) -> str:
    """Checksum of the decisions by hand that belong to a run; empty where there are none."""
    return hashlib.sha256(store.get(DECISIONS)).hexdigest()[:16] if store.exists(DECISIONS) else ""


def previewed_digest(config: Config) -> str:
    """Checksum of the decisions by hand over a run's preview; empty where there is none."""
    if not previews(config):
        return ""
    try:
        return decisions_digest(storage.open(f"{config.output}/{PREVIEW}"))
    except ValueError:
        return ""


def stored_config(output: str) -> Config:
    """The configuration that an output was made with."""
    from omegaconf import OmegaConf

    from sweeps.config.load import build, container

    store = storage.open(output)
    if not store.exists("config.yaml"):
        raise ValueError(f"{output}: holds no config.yaml, so no run; give the output of a run")
    read = OmegaConf.create(store.get("config.yaml").decode())
    values = container(read, f"{output}/config.yaml", resolve=False)
    return build({**values, "output": output})


def plain(run: Run) -> dict[str, Any]:
    """The configuration as plain dictionaries, for report and tracking."""
    return to_dict(run.config)


def local_path(url: str) -> Path | None:
    """The folder of a local output, None for an object store."""
    text = url.removeprefix("file://")
    return None if "://" in text else Path(text)
