"""Loads a pipeline's parts strictly, and says in one line what is missing: weights, token or memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

Network = TypeVar("Network", bound=nn.Module)

FAMILIES = {"StableDiffusionPipeline": 1, "StableDiffusionXLPipeline": 2}
"""pipeline class to its number of text encoders: Stable Diffusion 1.x and 2.x, and XL"""


@dataclass(frozen=True)
class Parts:
    """What a pipeline is made of."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    encoders: tuple[nn.Module, ...]
    """text encoders"""
    tokenizers: tuple[Any, ...]
    """one for each text encoder"""
    scheduler: dict[str, Any]
    """the scheduler's configuration"""
    empty_is_zero: bool
    """whether an empty prompt stands for states of zeros (XL)"""


def load(path: Path | str, revision: str, dtype: torch.dtype, name: str) -> Parts:
    """The parts of a directory or hub id, weights from safetensors alone, no tensor missing.

    Raises ValueError, one line that begins with `model.name: NAME`, where anything is amiss.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    where = {"revision": revision or None, "local_files_only": isinstance(path, Path)}
    with one_line(name):
        index = _index(path, where)
        count = FAMILIES.get(index.get("_class_name", ""), 0)
        if not count:
            raise ValueError(f"is a {index.get('_class_name')}; of these the sites are known: {', '.join(FAMILIES)}")
        names = ["text_encoder", "text_encoder_2"][:count]
        encoders = tuple(_network(_text_class(index, n), path, n, where, dtype) for n in names)
        return Parts(
            _network(UNet2DConditionModel, path, "unet", where, dtype),
            _network(AutoencoderKL, path, "vae", where, dtype),
            encoders,
            tuple(_tokenizer(index, path, n.replace("text_encoder", "tokenizer"), where) for n in names),
            _scheduler(path, where),
            count == 2 and bool(index.get("force_zeros_for_empty_prompt", True)),
        )


def _index(path: Path | str, where: dict[str, Any]) -> dict[str, Any]:
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.load_config(str(path), **where)


def _text_class(index: dict[str, Any], part: str) -> Any:
    import transformers

    kind = (index.get(part) or [None, None])[1]
    if kind not in ("CLIPTextModel", "CLIPTextModelWithProjection"):
        raise ValueError(f"its {part} is a {kind}; a CLIP text encoder is needed")
    return getattr(transformers, kind)


def _tokenizer(index: dict[str, Any], path: Path | str, part: str, where: dict[str, Any]) -> Any:
    import transformers

    kind = getattr(transformers, (index.get(part) or [None, "AutoTokenizer"])[1], transformers.AutoTokenizer)
    return kind.from_pretrained(str(path), subfolder=part, **where)


def _scheduler(path: Path | str, where: dict[str, Any]) -> dict[str, Any]:
    from diffusers import LMSDiscreteScheduler

    return dict(LMSDiscreteScheduler.load_config(str(path), subfolder="scheduler", **where))


def _network(kind: type[Network], path: Path | str, part: str, where: dict[str, Any], dtype: torch.dtype) -> Network:
    """A network with every tensor from the file. An autoencoder that overflows in half stays in float32."""
    loader: Any = kind  # the loaders of diffusers and transformers share no base class
    named = "dtype" if kind.__module__.startswith("transformers") else "torch_dtype"
    if (
        part == "vae"
        and dtype == torch.float16
        and loader.load_config(str(path), subfolder=part, **where).get("force_upcast")
    ):
        dtype = torch.float32
    network, report = loader.from_pretrained(
        str(path), subfolder=part, use_safetensors=True, output_loading_info=True, **where, **{named: dtype}
    )  # fmt: skip
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"its {part} lacks {len(missing)} tensors ({missing[0]}); get the weights again")
    return network.eval().requires_grad_(False)


@contextmanager
def one_line(name: str) -> Iterator[None]:
    """Turns what the libraries raise while loading into one line that names the cure."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(f"model.name: {name} does not fit the device's memory; try model.dtype=float16") from error
    except MemoryError as error:
        raise ValueError(f"model.name: {name} does not fit this machine's memory; try model.dtype=float16") from error
    except Exception as error:  # the libraries raise many kinds, all of them the user's to mend
        raise ValueError(f"model.name: {name}: {why(error, name)}") from error


def why(error: BaseException, name: str) -> str:
    """What to tell about a failed load: access, network, a damaged file, or the error's own first line."""
    chain = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    kinds = {type(e).__name__ for e in chain}
    if kinds & {"GatedRepoError", "RepositoryNotFoundError"}:
        return (
            f"the hub refuses it: no such model, or it needs a token; accept its terms at "
            f"https://huggingface.co/{name}, then `hf auth login` or set HF_TOKEN"
        )
    if kinds & {"RevisionNotFoundError"}:
        return "no such model.revision; give a commit of that model"
    if kinds & {"LocalEntryNotFoundError", "ConnectError", "ConnectionError", "OfflineModeIsEnabled"}:
        return "not in the local cache, and the hub can't be reached; give a local directory"
    if "SafetensorError" in kinds:
        return "weights cut short or damaged; get them again"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return first[:400]


def weight_bytes(folder: Path, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of each part's tensors once loaded as `dtype`, from the headers of a directory's safetensors.

    Of several precisions of one part the largest file counts once. Raises ValueError for a damaged header.
    """
    found: dict[str, int] = {}
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        files = [f for f in (folder / part).glob("*.safetensors") if ".fp16" not in f.name and ".non_ema" not in f.name]
        numbers = sum(_numbers(file) for file in files)
        if numbers:
            found[part] = numbers * dtype.itemsize
    return found


def _numbers(file: Path) -> int:
    """Numbers in a safetensors file."""
    with file.open("rb") as handle:
        try:
            size = struct.unpack("<Q", handle.read(8))[0]
            if size > 100_000_000:
                raise ValueError
            header = json.loads(handle.read(size))
        except (struct.error, ValueError, MemoryError) as error:
            raise ValueError(f"{file.parent.name}/{file.name}: weights cut short or damaged; get them again") from error
    shapes = (entry["shape"] for name, entry in header.items() if name != "__metadata__")
    return sum(_product(shape) for shape in shapes)


def _product(shape: list[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total
