"""Narrow random pipelines of the other families, Stable Diffusion 2.x and XL, and full-size configurations."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    LMSDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from probing.scenes import text

V14: dict[str, Any] = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 768, "attention_head_dim": 8,
}  # fmt: skip
V14_VAE: dict[str, Any] = {
    "sample_size": 512, "latent_channels": 4, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 0.18215,
}  # fmt: skip
V21: dict[str, Any] = V14 | {
    "sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}  # fmt: skip
XL: dict[str, Any] = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20], "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


def scheduler(prediction: str) -> LMSDiscreteScheduler:
    return LMSDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction, steps_offset=1
    )


def _encoder(kind: Any, width: int, tokenizer: Any) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length, projection_dim=width,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    return kind(config).eval()


def _vae() -> AutoencoderKL:
    return AutoencoderKL(**V14_VAE | {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4}).eval()


def second(prediction: str = "v_prediction") -> StableDiffusionPipeline:
    """Stable Diffusion 2.x, narrow: linear projections, heads by block, velocity."""
    torch.manual_seed(0)
    tokenizer = text.build_tokenizer()
    unet = UNet2DConditionModel(
        **V21 | {"sample_size": 16, "block_out_channels": [16, 16, 32, 32], "attention_head_dim": [2, 2, 4, 4],
                 "cross_attention_dim": 24, "norm_num_groups": 8}
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=_vae(), text_encoder=_encoder(CLIPTextModel, 24, tokenizer), tokenizer=tokenizer, unet=unet.eval(),
        scheduler=scheduler(prediction), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def extra_large(zeros: bool = True) -> StableDiffusionXLPipeline:
    """XL, narrow: two text encoders, pooled text, several transformer layers in a block."""
    torch.manual_seed(0)
    tokenizer = text.build_tokenizer()
    unet = UNet2DConditionModel(
        **XL | {"sample_size": 16, "block_out_channels": [16, 32, 32], "transformer_layers_per_block": [1, 2, 3],
                "attention_head_dim": [2, 4, 4], "cross_attention_dim": 24 + 32, "norm_num_groups": 8,
                "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 32 + 6 * 8}
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=_vae(), text_encoder=_encoder(CLIPTextModel, 24, tokenizer),
        text_encoder_2=_encoder(CLIPTextModelWithProjection, 32, tokenizer), tokenizer=tokenizer,
        tokenizer_2=tokenizer, unet=unet.eval(), scheduler=scheduler("epsilon"),
        force_zeros_for_empty_prompt=zeros, add_watermarker=False,
    )  # fmt: skip
