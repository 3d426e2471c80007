"""Loads the model under study, and makes its randomised variants."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from probing.diffusion import devices, metadata
from probing.diffusion.config import EMBEDDED, PAPER_STEPS, ModelConfig
from probing.diffusion.families.base import LatentDiffusion, adapter_of
from probing.diffusion.families.registry import Family
from probing.diffusion.parts import single
from probing.diffusion.parts.checks import check
from probing.diffusion.parts.noise import read_scheduler
from probing.diffusion.parts.reading import components, read_index
from probing.diffusion.schedules import LMS
from probing.diffusion.variants import OTHER_SEED, VARIANTS, kind, own_seed
from probing.libraries import loading_errors, quiet_libraries

Network = TypeVar("Network", bound=nn.Module)


def load(config: ModelConfig, variants: int = 1, sampler: str = LMS, steps: int = PAPER_STEPS) -> LatentDiffusion:
    """Load the trained model, with weights from safetensors alone and no tensor missing.

    variants: how many variants of the network will be used. sampler, steps: `sampling.scheduler`, `sampling.steps`.
    Raises ValueError if there is no such pipeline, no access to it, not enough memory for it, or the sampler cannot
    sample it.
    """
    path, device = metadata.model_path(config), devices.pick_device(config.device)
    with loading_errors(config.name):
        sizes = metadata.weight_bytes(path, config) if isinstance(path, Path) else {}
    devices.check_memory(sizes, str(device), variants, config.name)
    with quiet_libraries(), loading_errors(config.name):
        check(metadata.config_folder(config), sampler, steps)
        return _load_parts(path, config, device, sampler)


class _Origin(TypedDict):
    """Keyword arguments of the libraries' loaders."""

    revision: str | None
    local_files_only: bool


def _load_parts(path: Path | str, config: ModelConfig, device: torch.device, sampler: str) -> LatentDiffusion:
    """The model on its device. Raises ValueError if the pipeline is of another class or lacks tensors."""
    folder = metadata.config_folder(config)
    index, family = read_index(folder)
    origin: _Origin = {"revision": config.revision or None, "local_files_only": isinstance(path, Path)}
    named = components(index, family).items()
    loaded: dict[str, Any] = {}
    if isinstance(path, Path) and path.is_file():
        loaded, path = single.load(path, folder, index, family), folder
        for part, network in loaded.items():
            network.eval().requires_grad_(False).to(_dtype(part, dict(network.config) if part == "vae" else {}, config))
    loaded |= {part: _load_part(path, part, names, origin, config) for part, names in named if part not in loaded}
    return assemble(folder, loaded, config, device, sampler)


def assemble(
    folder: Path, loaded: Mapping[str, Any], config: ModelConfig, device: torch.device, sampler: str = LMS
) -> LatentDiffusion:
    """The model of a pipeline's parts, networks and tokenizers by name; they are moved to the device.

    folder: the pipeline's configuration files. Raises ValueError if the network's sites are not where they should be.
    """
    index, family = read_index(folder)
    for part in set(loaded) & set(family.weighted_parts):
        loaded[part].to(device=device)
    network, vae = loaded[family.network], loaded["vae"]
    for convolutional in (network, vae):
        convolutional.to(memory_format=torch.channels_last)
    own = _own_parts(family, index, loaded)
    model = adapter_of(family)(
        family=family,
        network=network,
        vae=vae,
        scheduler_config=read_scheduler(folder, sampler),
        device=device,
        autocast=getattr(torch, config.autocast) if config.autocast and device.type == "cuda" else None,
        sampler=sampler,
        size=config.size,
        embedded=config.name in EMBEDDED,
        **own,
    )
    model.check_sites()
    return model


def _own_parts(family: Family, index: Mapping[str, Any], loaded: Mapping[str, Any]) -> dict[str, Any]:
    """What an adapter takes beside the parts that every family has."""
    import diffusers

    if family.network == "unet":
        from probing.diffusion.families.unet import TextEncoder

        text = tuple(TextEncoder(loaded[f"text_encoder{s}"], loaded[f"tokenizer{s}"]) for s in family.encoders)
        for one in text:
            # a tokenizer whose file names no length would pad to more positions than there are
            positions = one.encoder.config.max_position_embeddings
            one.tokenizer.model_max_length = min(one.tokenizer.model_max_length, positions)
        zero = len(text) == 2 and bool(index.get("force_zeros_for_empty_prompt", True))
        return {"text": text, "empty_is_zero": zero}
    others = {part: loaded.get(part) for part in family.text_parts}
    options = {"id2label": index["id2label"]} if index.get("id2label") else {}
    pipeline = getattr(diffusers, index["_class_name"])
    return {
        "pipeline": pipeline(**{family.network: loaded[family.network]}, vae=loaded["vae"], scheduler=None,
                             **others, **options)
    }  # fmt: skip


def _load_part(path: Path | str, part: str, component: tuple[str, str], origin: _Origin, config: ModelConfig) -> Any:
    """A network or a tokenizer, of the library and class that the index names."""
    import diffusers
    import transformers

    library, name = component
    if part.startswith("tokenizer"):
        loader = getattr(transformers, name, transformers.AutoTokenizer)
        return loader.from_pretrained(str(path), subfolder=part, **origin)
    network_class = getattr(diffusers if library == "diffusers" else transformers, name)
    return _load_network(network_class, path, part, origin, config)


def _load_network(
    network_class: type[Network], path: Path | str, part: str, origin: _Origin, config: ModelConfig
) -> Network:
    """A network with every tensor from the file."""
    loader: Any = network_class  # the loaders of diffusers and transformers share no base class
    dtype = _dtype(part, loader.load_config(str(path), subfolder=part, **origin) if part == "vae" else {}, config)
    dtype_key = "dtype" if network_class.__module__.startswith("transformers") else "torch_dtype"
    options = {dtype_key: dtype, **origin, **({"variant": config.variant} if config.variant else {})}
    network, report = loader.from_pretrained(
        str(path), subfolder=part, use_safetensors=True, output_loading_info=True, **options
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"its {part} lacks {len(missing)} tensors ({missing[0]}); download the weights again")
    return network.eval().requires_grad_(False)


def _dtype(part: str, settings: Mapping[str, Any], config: ModelConfig) -> torch.dtype:
    """The type of a network's weights; settings: its configuration."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    # autoencoders marked so (XL's) overflow in float16
    return torch.float32 if part == "vae" and dtype == torch.float16 and settings.get("force_upcast") else dtype


@torch.no_grad()
def permute_weights(network: nn.Module, seed: int) -> None:
    """Permute every module's `weight` elementwise; biases stay (section 3.3, the random control)."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor):
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            shuffled = weight.detach().contiguous().flatten()[order].view(weight.shape)
            weight.copy_(shuffled)


def variant(model: LatentDiffusion, name: str, seed: int) -> LatentDiffusion:
    """The model with the network of a variant; all other parts are shared.

    The network's seed is the one in the name (`random@101`), or else `seed`. Raises ValueError for an unknown variant.
    """
    if name in ("trained", OTHER_SEED):
        return model
    if kind(name) in ("random", "random_forced"):
        network = copy.deepcopy(model.network)
        permute_weights(network, own_seed(name, seed))
        return replace(model, network=network)
    if kind(name) == "reinit":
        state = torch.get_rng_state()
        torch.manual_seed(own_seed(name, seed))
        trained: Any = model.network
        fresh = type(trained).from_config(trained.config)
        torch.set_rng_state(state)
        fresh.to(device=model.device, dtype=trained.dtype, memory_format=torch.channels_last)
        return replace(model, network=fresh.eval().requires_grad_(False))
    raise ValueError(f"variants: no variant {name!r}; use {', '.join(VARIANTS)}")
