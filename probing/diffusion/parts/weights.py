"""Shapes of a part's weights, from the headers of its safetensors files, and those that its configuration states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from probing.diffusion.parts.fields import refuse
from probing.diffusion.sites import unet_blocks

Tensors = Iterator[tuple[str, str, tuple[int | None, ...] | None]]
"""(field, tensor, shape with None for any size, or None if there must be no such tensor)"""


def unet_tensors(unet: Mapping[str, Any]) -> Tensors:
    """The tensors whose names and shapes follow from the UNet's configuration, one for each field that sets sizes."""
    channels, last = unet["block_out_channels"], len(unet["block_out_channels"]) - 1
    layers = by_level(unet, "layers_per_block", 2)
    widths = by_level(unet, "cross_attention_dim", 1280)
    kernel, out_kernel = unet.get("conv_in_kernel", 3), unet.get("conv_out_kernel", 3)
    time = unet.get("time_embedding_dim") or 4 * channels[0]
    yield "conv_in_kernel", "conv_in.weight", (channels[0], unet["in_channels"], kernel, kernel)
    yield "conv_out_kernel", "conv_out.weight", (unet["out_channels"], channels[0], out_kernel, out_kernel)
    yield "time_embedding_dim", "time_embedding.linear_1.weight", (time, channels[0])
    guidance = unet.get("time_cond_proj_dim")
    yield "time_cond_proj_dim", "time_embedding.cond_proj.weight", (channels[0], guidance) if guidance else None
    if unet.get("addition_embed_type"):
        inputs = unet.get("projection_class_embeddings_input_dim")
        yield "projection_class_embeddings_input_dim", "add_embedding.linear_1.weight", (time, inputs)
    else:
        yield "addition_embed_type", "add_embedding.linear_1.weight", None
    mid = unet.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    blocks = [
        *(("down_block_types", f"down_blocks.{i}", kind, i, layers[i])
          for i, kind in enumerate(unet["down_block_types"])),
        *(("up_block_types", f"up_blocks.{i}", kind, last - i, layers[last - i] + 1)
          for i, kind in enumerate(unet["up_block_types"])),
        ("mid_block_type", "mid_block", mid or "", last, 2 if "CrossAttn" in (mid or "") else 1 if mid else 0),
    ]  # fmt: skip
    linear: tuple[int | None, ...] = (None, None) if unet.get("use_linear_projection") else (None, None, 1, 1)
    own = {block.site.module: block for block in unet_blocks(unet, (1, 1))}
    for field, path, kind, level, count in blocks:
        attentions = (1 if path == "mid_block" else count) if "CrossAttn" in kind else 0
        if count:
            shape = (channels[level], None, 3, 3)
            yield "block_out_channels", f"{path}.resnets.{count - 1}.conv1.weight", shape
        yield "layers_per_block", f"{path}.resnets.{count}.conv1.weight", None
        yield field, f"{path}.attentions.{attentions}.norm.weight", None
        if attentions:
            block = f"{path}.attentions.{attentions - 1}"
            yield "use_linear_projection", f"{block}.proj_in.weight", linear
            inner, depth = f"{block}.transformer_blocks", own[path].depths[-1]
            width = (channels[level], widths[level])
            seen = width if own[path].only_cross else (channels[level], channels[level])
            yield "only_cross_attention", f"{inner}.{depth - 1}.attn1.to_k.weight", seen
            yield "cross_attention_dim", f"{inner}.{depth - 1}.attn2.to_k.weight", width
            yield "transformer_layers_per_block", f"{inner}.{depth}.norm1.weight", None


def vae_tensors(vae: Mapping[str, Any]) -> Tensors:
    """Those that follow from the autoencoder's configuration."""
    channels, layers, latent = vae["block_out_channels"], vae["layers_per_block"], vae["latent_channels"]
    yield "latent_channels", "decoder.conv_in.weight", (channels[-1], latent, 3, 3)
    yield "block_out_channels", "decoder.conv_out.weight", (3, channels[0], 3, 3)
    post = (latent, latent, 1, 1) if vae.get("use_post_quant_conv", True) else None
    yield "use_post_quant_conv", "post_quant_conv.weight", post
    quant = (2 * latent, 2 * latent, 1, 1) if vae.get("use_quant_conv", True) else None
    yield "use_quant_conv", "quant_conv.weight", quant
    norm = (channels[-1],) if vae.get("mid_block_add_attention", True) else None
    yield "mid_block_add_attention", "decoder.mid_block.attentions.0.group_norm.weight", norm
    for i, width in enumerate(channels):
        yield "block_out_channels", f"encoder.down_blocks.{i}.resnets.{layers - 1}.conv1.weight", (width, None, 3, 3)
        yield "layers_per_block", f"encoder.down_blocks.{i}.resnets.{layers}.conv1.weight", None
        mirrored = channels[-1 - i]
        yield "block_out_channels", f"decoder.up_blocks.{i}.resnets.{layers}.conv1.weight", (mirrored, None, 3, 3)
        yield "layers_per_block", f"decoder.up_blocks.{i}.resnets.{layers + 1}.conv1.weight", None


def text_tensors(text: Mapping[str, Any]) -> Tensors:
    """Those that follow from a CLIP text encoder's configuration."""
    width, layers = text["hidden_size"], text.get("num_hidden_layers", 12)
    inner = text.get("intermediate_size", 2048)
    yield "vocab_size", "embeddings.token_embedding.weight", (text.get("vocab_size", 49408), width)
    positions = text.get("max_position_embeddings", 77)
    yield "max_position_embeddings", "embeddings.position_embedding.weight", (positions, width)
    yield "intermediate_size", f"encoder.layers.{layers - 1}.mlp.fc1.weight", (inner, width)
    yield "num_hidden_layers", f"encoder.layers.{layers}.mlp.fc1.weight", None


def by_level(values: Mapping[str, Any], field: str, default: int) -> list[int]:
    value = values.get(field, default)
    return list(value) if isinstance(value, list | tuple) else [value] * len(values["block_out_channels"])


def tensor_shapes(folder: Path, part: str, variant: str = "") -> dict[str, tuple[int, ...]]:
    """Shapes of a part's tensors by name, from the headers of its safetensors files; empty if there are none here.

    Other copies of the weights than the one to load are left out. Raises ValueError for a damaged file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder / part, variant):
        try:
            with safe_open(file, framework="numpy") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{part}/{file.name}: weights truncated or damaged; download them again") from error
    return shapes


def weight_files(folder: Path, variant: str = "") -> list[Path]:
    """The safetensors files of a part that are loaded: of a variant such as `fp16` if it has one, else the main."""
    # what some systems leave beside a file, such as ._model.safetensors, is no weights
    found = [file for file in sorted(folder.glob("*.safetensors")) if not file.name.startswith(".")]
    # NAME.safetensors, NAME.VARIANT.safetensors, NAME-00001-of-00002.safetensors, NAME.VARIANT-00001-of-00002...
    copies = {file: file.name.removesuffix(".safetensors").partition(".")[2].partition("-")[0] for file in found}
    of_variant = [file for file, copy in copies.items() if variant and copy == variant]
    return of_variant or [file for file, copy in copies.items() if not copy]


def check_tensors(folder: Path, part: str, expected: Tensors) -> None:
    shapes = tensor_shapes(folder, part)
    if not shapes:  # a hub id's weights are loaded later
        return
    # text encoders are saved with and without this prefix
    shapes = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
    for field, tensor, shape in expected:
        found = shapes.get(tensor)
        fits = (
            found is not None and len(found) == len(shape)
            and all(want in (None, have) for want, have in zip(shape, found, strict=True))
            if shape is not None
            else found is None
        )  # fmt: skip
        if found is None and shape is not None:
            raise ValueError(f"its {part} lacks {tensor}, which {part}/config.json ({field}) states; download it again")
        if not fits:
            size = "absent" if shape is None else "x".join("?" if n is None else str(n) for n in shape)
            problem = f" does not fit the weights: {tensor} is {'x'.join(map(str, found or ()))}, expected {size}"
            raise refuse(f"{part}/config.json", field, problem)
