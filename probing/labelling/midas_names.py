"""Translation of MiDaS's tensor names to those of transformers' DPT."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from probing.labelling.checkpoints import Source, State

RULES = (
    (r"pretrained\.model\.cls_token", "dpt.embeddings.cls_token"),
    (r"pretrained\.model\.pos_embed", "dpt.embeddings.position_embeddings"),
    (r"pretrained\.model\.patch_embed\.proj\.", "dpt.embeddings.patch_embeddings.projection."),
    (r"pretrained\.model\.norm\.", "dpt.layernorm."),
    (r"pretrained\.model\.blocks\.(\d+)\.norm1\.", r"dpt.encoder.layer.\1.layernorm_before."),
    (r"pretrained\.model\.blocks\.(\d+)\.norm2\.", r"dpt.encoder.layer.\1.layernorm_after."),
    (r"pretrained\.model\.blocks\.(\d+)\.attn\.qkv\.", r"dpt.encoder.layer.\1.attention.attention.QKV."),
    (r"pretrained\.model\.blocks\.(\d+)\.attn\.proj\.", r"dpt.encoder.layer.\1.attention.output.dense."),
    (r"pretrained\.model\.blocks\.(\d+)\.mlp\.fc1\.", r"dpt.encoder.layer.\1.intermediate.dense."),
    (r"pretrained\.model\.blocks\.(\d+)\.mlp\.fc2\.", r"dpt.encoder.layer.\1.output.dense."),
    (r"scratch\.output_conv\.(\d)\.", r"head.head.\1."),
)
"""prefix of MiDaS's name, prefix of transformers' name; QKV stands for three tensors"""

STAGED = (
    (r"pretrained\.act_postprocess([1-4])\.0\.project\.0\.", "neck.reassemble_stage.readout_projects.{}.0."),
    (r"pretrained\.act_postprocess([1-4])\.3\.", "neck.reassemble_stage.layers.{}.projection."),
    (r"pretrained\.act_postprocess([1-4])\.4\.", "neck.reassemble_stage.layers.{}.resize."),
    (r"scratch\.layer([1-4])_rn\.", "neck.convs.{}."),
)
"""likewise; MiDaS counts these stages from one and transformers from zero"""

FUSION = re.compile(r"scratch\.refinenet([1-4])\.")
"""MiDaS counts fusion stages from fine to coarse, transformers from coarse to fine"""
INSIDE_FUSION = (("out_conv", "projection"), ("resConfUnit", "residual_layer"), (".conv", ".convolution"))

DROPPED = "pretrained.model.head."
"""prefix of the pretrained encoder's classifier, which is in the file but never used"""

OTHERS = {
    "pretrained.model.patch_embed.backbone.": "DPT-Hybrid",
    "pretrained.model.blocks.0.attn.relative_position_bias_table": "DPT-BEiT",
    "pretrained.model.layers.": "DPT-Swin or DPT-LeViT",
    "pretrained.layer1.": "MiDaS v2.1",
}
"""prefixes of names that only other models of the family have"""


def other_model(state: Mapping[str, Tensor]) -> str:
    """The other model of the family that a state dict belongs to, or an empty string."""
    return next((model for prefix, model in OTHERS.items() if any(n.startswith(prefix) for n in state)), "")


def translate(state: State, origin: Source) -> State:
    """Convert a state dict from MiDaS's naming to transformers', with query, key and value split.

    Raises ValueError if there are tensors that DPT-Large does not have.
    """
    translated: State = {}
    unknown = []
    for name, value in state.items():
        if name.startswith(DROPPED):
            continue
        new = rename(name)
        if new is None:
            unknown.append(name)
        elif "QKV" in new:
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            translated |= {new.replace("QKV", part): rows for part, rows in parts}
        else:
            translated[new] = value
    if unknown:
        raise origin.error(f"has {len(unknown)} tensors unknown to DPT-Large, such as {unknown[0]}")
    return translated


def rename(name: str) -> str | None:
    """transformers' name of the tensor that MiDaS calls `name`; None if DPT-Large has no such tensor."""
    for pattern, new in RULES:
        if match := re.match(pattern, name):
            return match.expand(new) + name[match.end() :]
    for pattern, new in STAGED:
        if match := re.match(pattern, name):
            return new.format(int(match.group(1)) - 1) + name[match.end() :]
    if match := FUSION.match(name):
        rest = name[match.end() :]
        for old, new in INSIDE_FUSION:
            rest = rest.replace(old, new)
        return f"neck.fusion_stage.layers.{4 - int(match.group(1))}.{rest}"
    return None
