"""Model metadata: what a pipeline's JSON files and safetensors headers contain, read without loading weights."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from probing.diffusion.config import DTYPES, SCENES, ModelConfig
from probing.diffusion.sites import SiteSpec, attention_sites, conv_sites, vae_site
from probing.libraries import loading_errors


@dataclass(frozen=True)
class ModelInfo:
    """The sites and sizes of a model."""

    sites: tuple[SiteSpec, ...]
    """self-attention sites in order of execution"""
    latent: tuple[int, int, int]
    """(channels, height, width) of a latent"""
    image: tuple[int, int]
    """(height, width) of an image in pixels"""
    revision: str
    """identifies the exact weights"""
    families: dict[str, tuple[SiteSpec, ...]]
    """sites of the additional site families, `conv` and `vae`"""


def model_path(config: ModelConfig) -> Path | str:
    """The pipeline's local directory, or the hub id.

    Raises ValueError if the name is neither, the directory is no pipeline, or a hub id has no revision.
    """
    if config.name == SCENES:
        return Path(str(files("probing.scenes") / "weights" / "pipeline"))
    if Path(config.name).is_dir():
        if not (Path(config.name) / "model_index.json").exists():
            raise ValueError(f"model.name: {config.name} has no model_index.json; give a pipeline's directory")
        return Path(config.name)
    if config.name.count("/") != 1 or config.name.startswith(("/", ".")):
        raise ValueError(f"model.name: no directory {config.name}; give 'scenes', a pipeline's directory or OWNER/NAME")
    if not config.revision:
        raise ValueError(f"model.revision: {config.name} is a hub id; pin the commit to load")
    return config.name


def config_folder(config: ModelConfig) -> Path:
    """A local folder with the pipeline's configuration files; those of a hub id are downloaded, without weights.

    Raises ValueError if there is no such pipeline or no access to it.
    """
    path = model_path(config)
    if isinstance(path, Path):
        if not (path / "unet" / "config.json").exists():
            raise ValueError(f"model.name: {path} has no unet/config.json, so it is no Stable Diffusion pipeline")
        return path
    with loading_errors(config.name):
        return Path(snapshot_download(path, revision=config.revision, allow_patterns=["*.json"]))


def local_config_folder(config: ModelConfig) -> Path | None:
    """The folder with the pipeline's configuration files if it is on this machine; downloads nothing."""
    try:
        path = model_path(config)
        if isinstance(path, Path):
            return config_folder(config)
        folder = Path(snapshot_download(path, revision=config.revision, local_files_only=True))
    except (ValueError, LocalEntryNotFoundError):
        return None
    return folder if all((folder / part / "config.json").exists() for part in ("unet", "vae")) else None


def read_model_info(config: ModelConfig, folder: Path) -> ModelInfo:
    """The metadata of the pipeline whose configuration files are in `folder`.

    Raises ValueError if the UNet has no sites.
    """
    unet, vae = (json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae"))
    size = unet["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return ModelInfo(
        sites=attention_sites(unet, (height, width)),
        latent=(unet["in_channels"], height, width),
        image=(height * factor, width * factor),
        revision=revision(config),
        families={"conv": conv_sites(unet, (height, width)), "vae": (vae_site(vae, (height, width)),)},
    )


def revision(config: ModelConfig) -> str:
    """What identifies the exact weights: a hub id's commit, or a checksum of local files.

    The checksum covers the size and the first megabyte of each safetensors file; hashing gigabytes takes too long.
    """
    path = model_path(config)
    if not isinstance(path, Path):
        return config.revision
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.safetensors")):
        with file.open("rb") as handle:
            digest.update(f"{file.relative_to(path)} {file.stat().st_size}".encode())
            digest.update(handle.read(1 << 20))
    return digest.hexdigest()[:16]


def weight_bytes(folder: Path, dtype: str) -> dict[str, int]:
    """Bytes of each part's tensors once loaded as `dtype`, from the headers of a directory's safetensors.

    Half-precision and non-EMA copies of the weights are not counted. Raises ValueError for a damaged file.
    """
    sizes = {}
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        values = 0
        for file in (folder / part).glob("*.safetensors"):
            if ".fp16" in file.name or ".non_ema" in file.name:
                continue
            try:
                with safe_open(file, framework="numpy") as tensors:
                    values += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())
            except SafetensorError as error:
                raise ValueError(f"{part}/{file.name}: weights truncated or damaged; download them again") from error
        if values:
            sizes[part] = values * DTYPES[dtype]
    return sizes


def noise_levels(config: ModelConfig, steps: int) -> tuple[float, ...]:
    """Sigma that enters the UNet at each step, from the scheduler's JSON file.

    The same values as `sampling.schedule(model, steps).sigmas`, without importing torch. Empty if the model is
    not on this machine or has an unknown beta schedule; downloads nothing.
    """
    folder = local_config_folder(config)
    path = folder / "scheduler" / "scheduler_config.json" if folder else None
    if path is None or not path.exists():
        return ()
    # defaults of diffusers' LMSDiscreteScheduler
    settings: dict = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}
    settings |= json.loads(path.read_text())
    power = {"linear": 1, "scaled_linear": 2}.get(settings["beta_schedule"])
    if power is None:
        return ()
    count = settings["num_train_timesteps"]
    start, end = (settings[name] ** (1 / power) for name in ("beta_start", "beta_end"))
    # in float32 like diffusers, because 1 - alphas is tiny at the last steps
    betas = np.linspace(start, end, count, dtype=np.float32) ** power
    alphas = np.cumprod(1 - betas, dtype=np.float64).astype(np.float32)
    sigmas = np.interp(np.linspace(count - 1, 0, steps), np.arange(count), np.sqrt((1 - alphas) / alphas))
    return tuple(sigmas.astype(np.float32).tolist())
