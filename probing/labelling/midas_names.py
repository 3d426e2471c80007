"""How MiDaS names the tensors of DPT, in transformers' words."""

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
"""start of MiDaS's name, start of transformers'; QKV stands for three tensors"""

STAGED = (
    (r"pretrained\.act_postprocess([1-4])\.0\.project\.0\.", "neck.reassemble_stage.readout_projects.{}.0."),
    (r"pretrained\.act_postprocess([1-4])\.3\.", "neck.reassemble_stage.layers.{}.projection."),
    (r"pretrained\.act_postprocess([1-4])\.4\.", "neck.reassemble_stage.layers.{}.resize."),
    (r"scratch\.layer([1-4])_rn\.", "neck.convs.{}."),
)
"""likewise, where MiDaS counts stages from one and transformers from zero"""

FUSION = re.compile(r"scratch\.refinenet([1-4])\.")
"""MiDaS counts the fusion of stages from fine to coarse, transformers from coarse to fine"""
INSIDE_FUSION = (("out_conv", "projection"), ("resConfUnit", "residual_layer"), (".conv", ".convolution"))

DROPPED = "pretrained.model.head."
"""the classifier of the pretrained encoder, in the file but never used"""

OTHERS = {
    "pretrained.model.patch_embed.backbone.": "DPT-Hybrid",
    "pretrained.model.blocks.0.attn.relative_position_bias_table": "DPT-BEiT",
    "pretrained.model.layers.": "DPT-Swin or DPT-LeViT",
    "pretrained.layer1.": "MiDaS v2.1",
}
"""starts of names that other models of the family have"""


def other_model(state: Mapping[str, Tensor]) -> str:
    """The other model of the family that a state dict belongs to, or an empty string."""
    found = (model for start, model in OTHERS.items() if any(n.startswith(start) for n in state))
    return next(found, "")


def translate(state: State, origin: Source) -> State:
    """A state dict in MiDaS's naming in transformers' naming; query, key and value apart.

    Raises ValueError that names tensors which DPT-Large does not have.
    """
    found: State = {}
    unknown = []
    for name, value in state.items():
        if name.startswith(DROPPED):
            continue
        new = rename(name)
        if new is None:
            unknown.append(name)
        elif "QKV" in new:
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            found |= {new.replace("QKV", part): rows for part, rows in parts}
        else:
            found[new] = value
    if unknown:
        raise origin.error(f"has {len(unknown)} tensors that DPT-Large has not, such as {unknown[0]}")
    return found


def rename(name: str) -> str | None:
    """transformers' name of a tensor that MiDaS calls `name`; None where there is none."""
    for start, new in RULES:
        if found := re.match(start, name):
            return found.expand(new) + name[found.end() :]
    for start, new in STAGED:
        if found := re.match(start, name):
            return new.format(int(found.group(1)) - 1) + name[found.end() :]
    if found := FUSION.match(name):
        rest = name[found.end() :]
        for old, new in INSIDE_FUSION:
            rest = rest.replace(old, new)
        return f"neck.fusion_stage.layers.{4 - int(found.group(1))}.{rest}"
    return None
