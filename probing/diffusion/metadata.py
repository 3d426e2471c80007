"""Model metadata: what a pipeline's JSON files and safetensors headers contain, read without loading weights."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import huggingface_hub  # loads its parts when they are used, which takes a third of a second
import numpy as np

from probing import contents
from probing.diffusion import schedules
from probing.diffusion.config import DTYPES, EMBEDDED, PAPER_STEPS, ModelConfig
from probing.diffusion.families.layouts import layout
from probing.diffusion.families.registry import family_of, has_configuration
from probing.diffusion.parts import checks, noise, reading, single, weights
from probing.diffusion.schedules import LMS
from probing.diffusion.sites import ATTENTION, SiteSpec
from probing.libraries import loading_errors
from storage.backends import local_path


@dataclass(frozen=True)
class ModelInfo:
    """The sites and sizes of a model."""

    sites: tuple[SiteSpec, ...]
    """self- and joint-attention sites in order of execution"""
    latent: tuple[int, int, int]
    """(channels, height, width) of a latent"""
    image: tuple[int, int]
    """(height, width) of an image in pixels"""
    revision: str
    """identifies the exact weights"""
    families: dict[str, tuple[SiteSpec, ...]]
    """sites of the other site families: `cross`, `mlp`, `residual`, `conv` and `vae`"""
    recordable: tuple[SiteSpec, ...]
    """sites of all kinds that sampling can record, in order of execution"""
    family: str = "Stable Diffusion"
    """name of the model's family"""


def shipped_weights() -> Path:
    """The folder of the scenes model's weights, which ship with the package."""
    return Path(str(files("probing.scenes") / "weights"))


def model_path(config: ModelConfig) -> Path | str:
    """The pipeline's local directory, the single file of its weights, or the hub id.

    Raises ValueError if the name is none of them, the directory is no pipeline, a file has no configuration, or a hub
    id has no revision.
    """
    if Path(config.name).suffix in single.WEIGHTS and not local_path(config.name, "model.name").is_dir():
        return _checkpoint(config)
    if config.config:
        raise ValueError(
            f"model.config={config.config}: only for a single safetensors file as model.name; leave it out"
        )
    if config.name in EMBEDDED:
        return shipped_weights() / EMBEDDED[config.name]
    folder = local_path(config.name, "model.name")
    if folder.is_dir():
        if not (folder / "model_index.json").exists():
            raise ValueError(f"model.name: {folder} has no model_index.json; give a pipeline's directory")
        return folder
    if config.name.count("/") != 1 or config.name.startswith(("/", ".", "~")):
        raise ValueError(
            f"model.name: no directory {config.name}; give {', '.join(EMBEDDED)}, a pipeline's directory or OWNER/NAME"
        )
    if not config.revision:
        raise ValueError(f"model.revision: {config.name} is a hub id; pin the commit to load")
    return config.name


def _checkpoint(config: ModelConfig) -> Path:
    """The single file of a model's weights. Raises ValueError if it is not there, or has no configuration."""
    file = local_path(config.name, "model.name")
    if file.suffix != ".safetensors":
        raise ValueError(f"model.name: {file.name} can run code when it is read; give a safetensors file")
    if not file.is_file():
        raise ValueError(f"model.name: no file {file}")
    if not config.config:
        raise ValueError(
            f"model.config: {file.name} holds weights alone; give a local directory with the pipeline's configuration "
            "files (model_index.json and a folder for each part, without weights)"
        )
    folder = local_path(config.config, "model.config")
    if not (folder / "model_index.json").exists():
        raise ValueError(f"model.config: {folder} has no model_index.json; give a pipeline's directory")
    return file


def config_folder(config: ModelConfig) -> Path:
    """A local folder with the pipeline's configuration files; those of a hub id are downloaded, without weights.

    Raises ValueError if there is no such pipeline or no access to it.
    """
    path = model_path(config)
    if isinstance(path, Path):
        return local_path(config.config, "model.config") if path.is_file() else path
    with loading_errors(config.name):
        return Path(
            huggingface_hub.snapshot_download(path, revision=config.revision, allow_patterns=["*.json", "*/merges.txt"])
        )


def local_config_folder(config: ModelConfig) -> Path | None:
    """The folder with the pipeline's configuration files if it is on this machine; downloads nothing."""
    try:
        path = model_path(config)
        if isinstance(path, Path):
            return config_folder(config)
    except ValueError:
        return None
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(huggingface_hub.snapshot_download(path, revision=config.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    try:
        index = reading.read_json(folder, "model_index.json")
    except ValueError:
        return None
    return folder if has_configuration(folder, index) else None


def read_model_info(config: ModelConfig, folder: Path) -> ModelInfo:
    """The metadata of the pipeline whose configuration files are in `folder`.

    Raises ValueError if sizes cannot be read from them, or the UNet has no sites; `check` looks at all fields.
    """
    with loading_errors(config.name):
        # without a class, a folder of the UNet's and the VAE's files, which is enough to plan
        kind = reading.read_json(folder, "model_index.json").get("_class_name", "StableDiffusionPipeline")
        family = family_of(kind)
        found = layout(family, *reading.read_network(folder, family, sizes_only=True), config.size)
    families = dict(found.families)
    sites = families.pop(ATTENTION)
    return ModelInfo(sites, found.latent, found.image, revision(config), families, found.recordable, family.name)


def revision(config: ModelConfig) -> str:
    """What identifies the exact weights: a hub id's commit, or a checksum of local files.

    The checksum covers the size and the first megabyte of each safetensors file, as in all earlier versions, so that
    their runs can be resumed; a run's record of its inputs covers every byte. Settings of the scheduler that earlier
    versions dropped are part of it, so that their runs of such a model are not mixed with others.
    """
    path = model_path(config)
    if not isinstance(path, Path):
        return config.revision
    if path.is_file():
        return _digest(contents.digests(model_files(config)))
    digest = hashlib.sha256()
    # by their paths below the folder, so that it does not matter whether a part is a symbolic link
    for file in sorted(path / name for name in contents.tree(path) if name.endswith(".safetensors")):
        with file.open("rb") as handle:
            digest.update(f"{file.relative_to(path)} {file.stat().st_size}".encode())
            digest.update(handle.read(1 << 20))
    try:
        dropped = noise.unlike_earlier(reading.read_json(path, noise.SCHEDULER_FILE))
    except ValueError:  # a model that cannot be sampled, or a folder without its scheduler's file
        dropped = {}
    added = hashlib.sha256(json.dumps(dropped, sort_keys=True).encode()).hexdigest()[:8] if dropped else ""
    return digest.hexdigest()[:16] + (f"+{added}" if added else "")


def model_files(config: ModelConfig) -> dict[str, Path]:
    """The files of a pipeline's directory that are loaded, by relative path; none for a hub id, whose commit is pinned.

    Parts may be symbolic links.
    """
    path = model_path(config)
    if not isinstance(path, Path):
        return {}
    if path.is_file():
        folder = config_folder(config)
        return {path.name: path, **{f"model.config/{n}": f for n, f in _directory_files(folder, "").items()}}
    return _directory_files(path, config.variant)


def _directory_files(path: Path, variant: str) -> dict[str, Path]:
    names = ("unet", "transformer", "vae", "scheduler", *TEXT_PARTS)
    found = [path / "model_index.json"]
    for part in (path / name for name in names):
        if part.is_dir():
            found += weights.weight_files(part, variant)
            found += sorted(f for f in part.iterdir() if f.suffix in (".json", ".txt", ".model") and f.name[0] != ".")
    return {file.relative_to(path).as_posix(): file for file in found}


def identity(config: ModelConfig) -> str:
    """Name and content of a model, for files that refer to it: a hub id's commit, or a digest over all files."""
    found = contents.digests(model_files(config))
    return f"{config.name}@{_digest(found) if found else config.revision}"


def _digest(found: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def weight_bytes(folder: Path, config: ModelConfig) -> dict[str, int]:
    """Bytes of each part's tensors once loaded, from the headers of a directory's safetensors, or of a single file; the
    denoising network's under the key `network`.

    Other copies of the weights are not counted. Raises ValueError for a damaged file.
    """
    if folder.is_file():
        found = {part: sum(one.values()) for part, one in single.tensor_sizes(folder).items()}
        return {"network" if p == "unet" else p: size * DTYPES[config.dtype] for p, size in found.items() if size}
    sizes = {}
    for part in ("unet", "transformer", "vae", *(name for name in TEXT_PARTS if name.startswith("text_encoder"))):
        if shapes := weights.tensor_shapes(folder, part, config.variant):
            size = sum(map(math.prod, shapes.values())) * DTYPES[config.dtype]
            sizes["network" if part in ("unet", "transformer") else part] = size
    return sizes


TEXT_PARTS = tuple(f"{part}{suffix}" for part in ("text_encoder", "tokenizer") for suffix in ("", "_2", "_3"))


def check(config: ModelConfig, sampler: str = LMS, steps: int = PAPER_STEPS, partial: bool = False) -> None:
    """Raise ValueError if a field of the model's configuration files is neither honoured nor without effect here.

    Also if the weights, where they are on this machine, have other sizes than the files state. Other arguments as in
    `checks.check`.
    """
    folder, path = config_folder(config), model_path(config)
    with loading_errors(config.name):
        checks.check(folder, sampler, steps, partial)
        if isinstance(path, Path) and path.is_file():
            single.check(path, folder, reading.read_index(folder)[1], partial)


def calls(config: ModelConfig, sampler: str, steps: int) -> int:
    """Network calls of a sample, which are the steps that a store has.

    For a model whose files are not on this machine, as many as steps: it is the paper's sampler's number.
    """
    folder = None if sampler == LMS else local_config_folder(config)
    if folder is None:
        return steps
    with loading_errors(config.name):
        return schedules.calls(sampler, steps, noise.read_scheduler(folder, sampler, steps))


def noise_levels(config: ModelConfig, steps: int) -> tuple[float, ...]:
    """Sigma of the unscaled latents that enter each step of LMS, from the scheduler's JSON file.

    The same values as `sampling.schedule(model, steps).sigmas`, without importing torch. Empty if the model is
    not on this machine, or if its sigmas are spaced by a rule of their own; downloads nothing.
    """
    folder = local_config_folder(config)
    try:
        settings = noise.lms_settings(noise.read_scheduler(folder)) if folder else {}
    except ValueError:
        settings = {}
    # quantiles of a beta distribution are left to the library
    if not settings or settings.get("use_beta_sigmas"):
        return ()
    count, start, end = settings.get("num_train_timesteps", 1000), settings["beta_start"], settings["beta_end"]
    # in float32 like diffusers, because 1 - alphas is tiny at the last steps
    if settings.get("trained_betas") is not None:
        betas = np.array(settings["trained_betas"], dtype=np.float32)
    elif settings.get("beta_schedule", "linear") == "squaredcos_cap_v2":
        bars = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - bars[1:] / bars[:-1], 0.999).astype(np.float32)
    else:
        power = 2 if settings.get("beta_schedule") == "scaled_linear" else 1
        betas = np.linspace(start ** (1 / power), end ** (1 / power), count, dtype=np.float32) ** power
    alphas = np.cumprod(1 - betas, dtype=np.float64).astype(np.float32)
    spacing = settings.get("timestep_spacing", "linspace")
    if spacing == "leading":
        times = np.arange(steps)[::-1] * (count // steps) + settings.get("steps_offset", 0)
    elif spacing == "trailing":
        times = np.arange(count, 0, -count / steps).round() - 1
    else:
        times = np.linspace(count - 1, 0, steps)
    sigmas = np.interp(times, np.arange(count), np.sqrt((1 - alphas) / alphas))
    if settings.get("use_karras_sigmas"):
        sigmas = np.linspace(sigmas[0] ** (1 / 7), sigmas[-1] ** (1 / 7), len(sigmas)) ** 7
    elif settings.get("use_exponential_sigmas"):
        sigmas = np.geomspace(sigmas[0], sigmas[-1], len(sigmas))
    return tuple(sigmas.astype(np.float32).tolist())
